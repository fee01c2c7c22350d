"""Eq. 6 in the form that XLA fuses into few kernels on a GPU."""

import functools

from keras import ops

from dilated_affinity.affinity.forms.lanes_grid import Grid

_STEPS_PER_TURN = 2
"""XLA copies what a loop carries once a turn, unless it is written an even number of times."""


class FusedGrid(Grid):
    """(B, H, W, C) within a margin of zeros; one sum over all neighbours, and nothing between.

    Affinities to neighbours that do not exist are set to 0 once, so that no iteration asks.

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
        # Selected, not multiplied: what is not valid may be NaN.
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
        """The state after a number of iterations, an int: their number makes the loop's length."""

        def turn(_, current):
            for _ in range(_STEPS_PER_TURN):
                current = self.step(current)
            return current

        turns, rest = divmod(iterations, _STEPS_PER_TURN)
        if turns:
            state = ops.fori_loop(0, turns, turn, state)
        return functools.reduce(lambda current, _: self.step(current), range(rest), state)

    def step(self, state):
        return self._state(self.refine(self.values(state), self.views(state)))

    def refine(self, current, neighbors):
        """One iteration on float32 values (B, H, W, C) and what their neighbours have."""
        own = self.self_weight * ops.max(current, axis=-1, keepdims=True)
        mixed = own * current
        for channel, neighbor in enumerate(neighbors):
            weight = ops.cast(self.affinities[..., channel : channel + 1], "float32")
            mixed = mixed + weight * ops.cast(neighbor, "float32")
        # What is not valid listens to no one and stays 0.
        return self.quotient(mixed, own + self.support, current)
