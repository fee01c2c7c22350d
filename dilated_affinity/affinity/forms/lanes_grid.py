"""Interface of the forms of Eq. 6 for different devices, and the form for CPUs.

A form is a subclass of `Grid`; its state may have any shape. `forms.select` chooses one.
"""

import functools

from keras import ops

from dilated_affinity.affinity.geometry import NEIGHBORS, neighbor_offsets, reach

_LANES = 8
"""The class axis is padded to a multiple of this, the width of vector instructions."""


class Grid:
    """Base class of the forms of Eq. 6; holds the constants of the iterations.

    Args:
        probabilities: float32 (B, H, W, C); only the shape is used.
        affinities: float32 (B, H, W, 8|R|).
        valid: float32 (B, H, W, 1), 1 where valid, else 0; None if all pixels are valid.
        self_weight: lambda of Eq. 6, float32 scalar.
        rates: (vertical, horizontal) pairs.
    """

    class_axis = -1
    """The axis of the classes in the state."""

    def __init__(self, probabilities, affinities, valid, self_weight, rates):
        self.classes = probabilities.shape[-1]
        self.height, self.width = ops.shape(probabilities)[1:3]
        self.vertical, self.horizontal = reach(rates)
        self.offsets = neighbor_offsets(rates).tolist()
        self.affinities = affinities
        self.self_weight = self_weight
        self.valid = valid

    def start(self, values):
        """The state for values (B, H, W, C), 0 where not valid."""
        raise NotImplementedError

    def end(self, state, elsewhere):
        """The values of a state, `elsewhere` where not valid; the class axis may be padded."""
        raise NotImplementedError

    def step(self, state):
        """The state after one iteration."""
        raise NotImplementedError

    def iterate(self, state, iterations):
        """The state after a number of iterations."""
        return ops.fori_loop(0, iterations, lambda _, current: self.step(current), state)

    def changed(self, before, after):
        """Number of pixels of each image whose label differs between two states, float32 (B,)."""
        # Without argmax, which converters to other formats do not support as Keras computes it.
        axis = self.class_axis
        highest = before == ops.max(before, axis=axis, keepdims=True)
        kept = ops.max(ops.where(highest, after, -1.0), axis=axis) == ops.max(after, axis=axis)
        # Invalid pixels stay 0 and keep their label.
        differs = ops.where(kept, 0.0, 1.0)
        return ops.sum(differs, axis=tuple(range(1, len(differs.shape))))

    def where_valid(self, values, elsewhere):
        return values if self.valid is None else ops.where(self.valid > 0, values, elsewhere)

    def existing_neighbors(self):
        """Yields for each neighbour, in channel order, 1 at pixels where it exists, else 0."""
        if self.valid is not None:
            yield from self.neighbors(self.valid)
            return
        # Computed from indices; shifted ones would be stored by XLA as constants of full size.
        rows = ops.reshape(ops.arange(self.height), (-1, 1, 1))
        columns = ops.reshape(ops.arange(self.width), (-1, 1))
        for dy, dx in self.offsets:
            row_exists = (rows + dy >= 0) & (rows + dy < self.height)
            column_exists = (columns + dx >= 0) & (columns + dx < self.width)
            yield ops.cast(row_exists & column_exists, "float32")

    def neighbors(self, tensor, sign=1):
        """Yields for each neighbour, in channel order, its value at every pixel; 0 where none is.

        With `sign=-1`, the value of the pixel whose neighbour a pixel is.
        """
        return self.views(self.with_margin(tensor), sign)

    def with_margin(self, tensor):
        """Pads the tensor with zeros as far as neighbours reach."""
        return ops.pad(tensor, [[0, 0], [self.vertical] * 2, [self.horizontal] * 2, [0, 0]])

    def views(self, padded, sign=1):
        """Yields `neighbors` of a tensor padded by `with_margin`."""
        for dy, dx in self.offsets:
            top, left = self.vertical + sign * dy, self.horizontal + sign * dx
            yield padded[:, top : top + self.height, left : left + self.width]

    def quotient(self, mixed, total, current):
        """The quotient of Eq. 6; `current` where all weights of a pixel are 0.

        `total` is the sum of `mixed` over the classes, provided that `current` sums to 1.
        """
        return ops.where(total > 0, mixed / ops.where(total > 0, total, 1.0), current)

    def gradient(self, upstream, probabilities, iterations):
        """Gradients of all iterations with respect to the probabilities and the affinities.

        Keeps the state of every iteration in memory.

        Args:
            upstream: Gradient with respect to the output of `end`, (B, H, W, C).
            probabilities: Input of `start`.
            iterations: Number of iterations, int.
        """

        def forward(state, _):
            return self.step(state), state

        def backward(done, carried):
            to_values, to_affinities, refined = carried
            state = ops.take(states, iterations - 1 - done, axis=0)
            before, more = self._step_gradient(to_values, *map(self.values, (state, refined)))
            return before, to_affinities + more, state

        to_values = self.where_valid(self.widened(upstream), 0.0)
        to_affinities = ops.zeros_like(self.affinities, "float32")
        if iterations:
            refined, states = ops.scan(forward, self.start(probabilities), length=iterations)
            carried = to_values, to_affinities, refined
            # Not a scan: Keras' stacks outputs that it does not have, which XLA may refuse.
            to_values, to_affinities, _ = ops.fori_loop(0, iterations, backward, carried)
        # Invalid pixels pass through unchanged.
        return self.where_valid(to_values, self.widened(upstream)), to_affinities

    def widened(self, values):
        """Pads the class axis of values (B, H, W, C) to the size that `values` returns."""
        return values

    def values(self, state):
        """The values of a state, (B, H, W, classes), float32."""
        return state

    def _step_gradient(self, upstream, current, refined):
        """Gradients of one iteration with respect to `current` and the affinities."""
        peak = ops.max(current, axis=-1, keepdims=True)
        total = self.self_weight * peak + self.support
        positive = total > 0
        to_mixed = ops.where(positive, upstream / ops.where(positive, total, 1.0), 0.0)
        to_mixed = self.where_valid(to_mixed, 0.0)
        to_total = -ops.sum(to_mixed * refined, axis=-1, keepdims=True)
        to_own = ops.sum(to_mixed * current, axis=-1, keepdims=True) + to_total
        # Equal maxima share their gradient.
        highest = ops.cast(current == peak, "float32")
        highest = highest / ops.sum(highest, axis=-1, keepdims=True)
        to_current = self.self_weight * (peak * to_mixed + to_own * highest)
        to_current = to_current + self.where_valid(ops.where(positive, 0.0, upstream), 0.0)
        affinities = ops.cast(self.affinities, "float32")
        of_others = zip(
            self.neighbors(to_mixed, sign=-1), self.neighbors(affinities, sign=-1), strict=True
        )
        for channel, (mixed, others) in enumerate(of_others):
            to_current = to_current + others[..., channel : channel + 1] * mixed
        seen = zip(self.neighbors(current), self.existing_neighbors(), strict=True)
        to_affinities = [
            ops.sum(to_mixed * neighbor, axis=-1, keepdims=True) + to_total * exists
            for neighbor, exists in seen
        ]
        return to_current, ops.concatenate(to_affinities, axis=-1)


class LanesGrid(Grid):
    """The form for CPUs: (B, H, W, C), the class axis padded to whole vector instructions."""

    def __init__(self, probabilities, affinities, valid, self_weight, rates):
        super().__init__(probabilities, affinities, valid, self_weight, rates)
        # Where not valid, probabilities stay 0 throughout, so that these neighbours add nothing to
        # the numerator; the denominator's sum over neighbours is the same in every iteration.
        self.support = sum(
            affinities[..., channel : channel + 1] * exists
            for channel, exists in enumerate(self.existing_neighbors())
        )

    def start(self, values):
        # Selected, not multiplied: invalid values may be NaN.
        return self.where_valid(self.widened(values), 0.0)

    def end(self, state, elsewhere):
        return state if self.valid is None else self.where_valid(state, self.widened(elsewhere))

    def widened(self, values):
        return ops.pad(values, [[0, 0]] * 3 + [[0, -self.classes % _LANES]])

    def step(self, state):
        own = self.self_weight * ops.max(state, axis=-1, keepdims=True)
        mixed = own * state
        weighted = [
            self.affinities[..., channel : channel + 1] * neighbor
            for channel, neighbor in enumerate(self.neighbors(state))
        ]
        # One sum for each rate: a single chain of dependent additions would stall the processor.
        for first in range(0, len(weighted), NEIGHBORS):
            mixed = mixed + functools.reduce(ops.add, weighted[first : first + NEIGHBORS])
        return self.where_valid(self.quotient(mixed, own + self.support, state), 0.0)
