"""Eq. 6 in the form that XLA fuses into few kernels on a GPU."""

import functools

from keras import ops

from dilated_affinity.affinity.forms.lanes_grid import Grid

_UNROLLED_STEPS = 2
"""Iterations in a loop's body. XLA copies the loop's state each time, unless they are even."""


class FusedGrid(Grid):
    """Form for GPUs: (B, H, W, C) within a margin of zeros, one sum over all neighbours.

    Affinities to neighbours that do not exist are set to 0 once, so that no iteration has to check.

    Args:
        storage_dtype: `"float32"`, or `"bfloat16"` to keep affinities and states in; sums and
            quotients are float32 in either case.

    For the others see `Grid`.
    """

    def __init__(
        self, probabilities, affinities, valid, self_weight, rates, storage_dtype="float32"
    ):
        super().__init__(probabilities, affinities, valid, self_weight, rates)
        self.storage_dtype = storage_dtype
        exists = ops.concatenate(list(self.existing_neighbors()), axis=-1)
        # Selected, not multiplied: invalid values may be NaN.
        kept = self.where_valid(ops.where(exists > 0, affinities, 0.0), 0.0)
        self.affinities = ops.cast(kept, storage_dtype)
        self.support = ops.sum(ops.cast(self.affinities, "float32"), axis=-1, keepdims=True)

    def start(self, values):
        return self._state(self.where_valid(values, 0.0))

    def end(self, state, elsewhere):
        return self.where_valid(self.values(state), elsewhere)

    def _state(self, values):
        return self.with_margin(ops.cast(values, self.storage_dtype))

    def values(self, state):
        top, left = self.vertical, self.horizontal
        inside = state[:, top : top + self.height, left : left + self.width]
        return ops.cast(inside, "float32")

    def iterate(self, state, iterations):
        """The state after a number of iterations, an int that fixes the loop's length."""

        def unrolled(_, current):
            for _ in range(_UNROLLED_STEPS):
                current = self.step(current)
            return current

        loops, rest = divmod(iterations, _UNROLLED_STEPS)
        if loops:
            state = ops.fori_loop(0, loops, unrolled, state)
        return functools.reduce(lambda current, _: self.step(current), range(rest), state)

    def step(self, state):
        return self._state(self.refine(self.values(state), self.views(state)))

    def refine(self, current, neighbors):
        """One iteration on float32 values (B, H, W, C) and the values of their neighbours."""
        own = self.self_weight * ops.max(current, axis=-1, keepdims=True)
        mixed = own * current
        for channel, neighbor in enumerate(neighbors):
            weight = ops.cast(self.affinities[..., channel : channel + 1], "float32")
            mixed = mixed + weight * ops.cast(neighbor, "float32")
        # Affinities of invalid pixels are 0, so that these stay 0.
        return self.quotient(mixed, own + self.support, current)
