"""Eq. 6 on one set of affinities: what its forms for different devices share, and that for CPUs.

A form is a class of this interface; its state may have any shape. `affinity.forms` chooses one.
"""

import functools

from keras import ops

from dilated_affinity.affinity.geometry import NEIGHBORS, neighbor_offsets, reach

_LANES = 8
"""The class axis is padded to a multiple of this: vector instructions take whole groups."""


class Grid:
    """What does not change from one iteration to the next.

    Args:
        probabilities: float32 (B, H, W, C), for its shape alone.
        affinities: float32 (B, H, W, 8|R|).
        valid: float32 (B, H, W, 1), 1 where valid, else 0; None where all is.
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
        """The state of values (B, H, W, C), 0 where not valid."""
        raise NotImplementedError

    def end(self, state, elsewhere):
        """The values of a state, but `elsewhere` where not valid; classes may be padded still."""
        raise NotImplementedError

    def step(self, state):
        """The state after one iteration."""
        raise NotImplementedError

    def iterate(self, state, iterations):
        """The state after a number of iterations."""
        return ops.fori_loop(0, iterations, lambda _, current: self.step(current), state)

    def changed(self, before, after):
        """In how many pixels of each image the label differs between two states, float32 (B,)."""
        # Not by argmax, which converters to other formats do not know as Keras computes it.
        axis = self.class_axis
        highest = before == ops.max(before, axis=axis, keepdims=True)
        kept = ops.max(ops.where(highest, after, -1.0), axis=axis) == ops.max(after, axis=axis)
        # What is not valid stays 0, and keeps its label.
        differs = ops.where(kept, 0.0, 1.0)
        return ops.sum(differs, axis=tuple(range(1, len(differs.shape))))

    def where_valid(self, values, elsewhere):
        return values if self.valid is None else ops.where(self.valid > 0, values, elsewhere)

    def existing_neighbors(self):
        """1 for pixels whose neighbour is there, else 0; for each neighbour, in channel order."""
        if self.valid is not None:
            yield from self.neighbors(self.valid)
            return
        # From the indices, not by shifting ones: XLA would keep an image of each as a constant.
        rows = ops.reshape(ops.arange(self.height), (-1, 1, 1))
        columns = ops.reshape(ops.arange(self.width), (-1, 1))
        for dy, dx in self.offsets:
            row_exists = (rows + dy >= 0) & (rows + dy < self.height)
            column_exists = (columns + dx >= 0) & (columns + dx < self.width)
            yield ops.cast(row_exists & column_exists, "float32")

    def neighbors(self, tensor, sign=1):
        """The tensor seen from every pixel's neighbours, in channel order; 0 where none is.

        With `sign=-1` seen from the pixels whose neighbour a pixel is.
        """
        return self.views(self.with_margin(tensor), sign)

    def with_margin(self, tensor):
        """The tensor within zeros as far as neighbours reach."""
        return ops.pad(tensor, [[0, 0], [self.vertical] * 2, [self.horizontal] * 2, [0, 0]])

    def views(self, padded, sign=1):
        """`neighbors` of a tensor that has its margin."""
        for dy, dx in self.offsets:
            top, left = self.vertical + sign * dy, self.horizontal + sign * dx
            yield padded[:, top : top + self.height, left : left + self.width]

    def quotient(self, mixed, total, current):
        """The quotient of Eq. 6, but `current` where a pixel listens neither to itself nor others.

        `total` is the sum of `mixed` over the classes, wherever they summed to 1 before.
        """
        return ops.where(total > 0, mixed / ops.where(total > 0, total, 1.0), current)

    def gradient(self, upstream, probabilities, iterations):
        """Gradients of all iterations by the probabilities and the affinities.

        Keeps the state of every iteration.

        Args:
            upstream: Gradient by what `end` returned, (B, H, W, C).
            probabilities: What went into `start`.
            iterations: How many, int.
        """

        def forward(state, _):
            return self.step(state), state

        def backward(carried, state):
            to_values, to_affinities, refined = carried
            before, more = self._step_gradient(to_values, *map(self.values, (state, refined)))
            return (before, to_affinities + more, state), None

        to_values = self.where_valid(self.widened(upstream), 0.0)
        to_affinities = ops.zeros_like(self.affinities, "float32")
        if iterations:
            refined, states = ops.scan(forward, self.start(probabilities), length=iterations)
            carried = to_values, to_affinities, refined
            (to_values, to_affinities, _), _ = ops.scan(backward, carried, states, reverse=True)
        # What is not valid came out as it went in.
        return self.where_valid(to_values, self.widened(upstream)), to_affinities

    def widened(self, values):
        """Values (B, H, W, C) with as many classes as `values` returns."""
        return values

    def values(self, state):
        """The values of a state, (B, H, W, classes), float32."""
        return state

    def _step_gradient(self, upstream, current, refined):
        """Gradients of one iteration by `current` and by the affinities."""
        peak = ops.max(current, axis=-1, keepdims=True)
        total = self.self_weight * peak + self.support
        listens = total > 0
        to_mixed = ops.where(listens, upstream / ops.where(listens, total, 1.0), 0.0)
        to_mixed = self.where_valid(to_mixed, 0.0)
        to_total = -ops.sum(to_mixed * refined, axis=-1, keepdims=True)
        to_own = ops.sum(to_mixed * current, axis=-1, keepdims=True) + to_total
        # Equal maxima share their gradient.
        highest = ops.cast(current == peak, "float32")
        highest = highest / ops.sum(highest, axis=-1, keepdims=True)
        to_current = self.self_weight * (peak * to_mixed + to_own * highest)
        to_current = to_current + self.where_valid(ops.where(listens, 0.0, upstream), 0.0)
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
        # Selected, not multiplied: what is not valid may be NaN.
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
        # A sum for each rate: additions that wait for each other would keep a processor waiting.
        for first in range(0, len(weighted), NEIGHBORS):
            mixed = mixed + functools.reduce(ops.add, weighted[first : first + NEIGHBORS])
        return self.where_valid(self.quotient(mixed, own + self.support, state), 0.0)
