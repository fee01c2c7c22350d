"""Section 3.3: refinement by affinity propagation, Eq. 6 and 7."""

import functools
import math

import keras
from keras import ops

from dilated_affinity.affinity.geometry import NEIGHBORS, check_rates, neighbor_offsets, reach
from dilated_affinity.compilation import compiled, has_values
from dilated_affinity.errors import ConfigError

ITERATIONS = 10
SELF_WEIGHT = 6.0
STEEPNESS = 7.0

_LANES = 8
"""The class axis is padded to a multiple of this: vector instructions take whole groups."""


def steep_sigmoid(logits, mu=STEEPNESS):
    """The steeper sigmoid of Eq. 7: g(x) = mu^x / (1 + mu^x) = sigmoid(x ln mu).

    Args:
        logits: Affinity logits, any shape, floating point.
        mu: Steepness, above 1; e gives the plain sigmoid. Defaults to 7.

    Returns:
        Affinities in [0, 1], float32, of the same shape.

    Raises:
        ConfigError: If `mu` is not above 1.
    """
    check_steepness(mu)
    return ops.sigmoid(ops.cast(logits, "float32") * math.log(mu))


def affinities_from_targets(targets):
    """Ground-truth affinities for `propagate` (Tables 3 and 4): 1 for same, else 0, float32.

    Args:
        targets: uint8 tensor (..., 8|R|), as `affinity_targets` returns it; 255 counts as 0.
    """
    return ops.cast(ops.equal(targets, 1), "float32")


def propagate(
    probabilities,
    affinities,
    rates,
    iterations=ITERATIONS,
    self_weight=SELF_WEIGHT,
    valid_mask=None,
):
    """Refines class probabilities by their neighbours' and the affinities to them (Eq. 6).

    One iteration replaces every p_i by N(lambda p_i max(p_i) + sum over s in S_i of a_s p_s),
    where N divides by the sum over the classes. Under TensorFlow this is compiled by XLA, once
    for each shape. Gradients flow to probabilities and affinities; they take the memory of the
    probabilities once more for every iteration.

    Args:
        probabilities: Floating point (B, H, W, C), non-negative, summing to 1 over the classes.
        affinities: Floating point (B, H, W, 8|R|) in [0, 1], in the order of `neighbor_offsets`;
            from `steep_sigmoid` or `affinities_from_targets`.
        rates: (vertical, horizontal) pairs, as `parse_rates` returns them.
        iterations: How often to apply Eq. 6, at least 0. Defaults to 10.
        self_weight: lambda of Eq. 6, at least 0. Defaults to 6.
        valid_mask: Optional boolean (B, H, W). Pixels outside it lend nothing to their
            neighbours, like pixels outside the image, and keep their own probabilities.

    Returns:
        float32 probabilities of shape (B, H, W, C).

    Raises:
        ConfigError: If `iterations` or `self_weight` is negative, shapes do not fit each other or
            `rates`, a dtype is not the one above, or values that are valid are not finite. The
            last is found only where tensors have values, not while a graph is traced.
    """
    probabilities, affinities, valid, rates, self_weight = checked_arguments(
        probabilities, affinities, rates, iterations, self_weight, valid_mask
    )
    return _refine(probabilities, affinities, valid, int(iterations), self_weight, rates)


def checked_arguments(probabilities, affinities, rates, iterations, self_weight, valid_mask):
    """Arguments of `propagate` as it computes with them, or its `ConfigError`.

    Returns:
        Probabilities, affinities, the mask as (B, H, W, 1) or None, rates, and self_weight; all but
        the rates in float32.
    """
    rates = check_rates(rates)
    check_settings(iterations, self_weight)
    if valid_mask is not None:
        valid_mask = ops.convert_to_tensor(valid_mask)
    _check_dtypes(probabilities, affinities, valid_mask)
    probabilities = ops.convert_to_tensor(probabilities, "float32")
    affinities = ops.convert_to_tensor(affinities, "float32")
    _check_shapes(probabilities, affinities, rates, valid_mask)
    if valid_mask is not None:
        valid_mask = ops.cast(valid_mask, "float32")[..., None]
    _check_finite(probabilities, affinities, valid_mask)
    self_weight = ops.convert_to_tensor(self_weight, "float32")
    return probabilities, affinities, valid_mask, rates, self_weight


def check_settings(iterations, self_weight):
    """Raises `ConfigError` unless both are in their range."""
    if isinstance(iterations, bool) or int(iterations) != iterations or iterations < 0:
        raise ConfigError(
            f"iterations must be a whole number, at least 0. Received: iterations={iterations!r}"
        )
    if not self_weight >= 0:
        raise ConfigError(f"self_weight must be at least 0. Received: self_weight={self_weight}")


def check_steepness(mu):
    """Raises `ConfigError` unless mu is in its range."""
    if not mu > 1:
        raise ConfigError(f"mu must be above 1. Received: mu={mu}")


def _check_dtypes(probabilities, affinities, valid_mask):
    given = {"probabilities": probabilities, "affinities": affinities}
    for name, values in given.items():
        dtype = getattr(values, "dtype", "float32")
        if not keras.backend.is_float_dtype(dtype):
            hint = "; make them of targets by affinities_from_targets" * (name == "affinities")
            raise ConfigError(
                f"{name} must be floating point{hint}. "
                f"Received: dtype {keras.backend.standardize_dtype(dtype)}"
            )
    dtype = "bool" if valid_mask is None else valid_mask.dtype
    if keras.backend.standardize_dtype(dtype) != "bool":
        raise ConfigError(
            f"valid_mask must be boolean. Received: dtype {keras.backend.standardize_dtype(dtype)}"
        )


def _check_finite(probabilities, affinities, valid):
    """Raises `ConfigError` for values that are not finite, where tensors have values.

    XLA leaves assertions out of what it compiles, so that there is none in a graph.
    """
    if not all(map(has_values, (probabilities, affinities, valid))):
        return
    wrong = int(_count_not_finite(probabilities, affinities, valid))
    if wrong:
        raise ConfigError(
            "probabilities and affinities must be finite. "
            f"Received: NaN or infinity at {wrong} pixels"
        )


@compiled
def _count_not_finite(probabilities, affinities, valid):
    # A sum over the channels is not finite where one of them is not.
    totals = ops.sum(probabilities, axis=-1) + ops.sum(affinities, axis=-1)
    wrong = ops.logical_not(ops.isfinite(totals))
    if valid is not None:
        wrong = ops.logical_and(wrong, valid[..., 0] > 0)
    return ops.sum(ops.cast(wrong, "int32"))


def _check_shapes(probabilities, affinities, rates, valid_mask):
    shapes = [tuple(probabilities.shape), tuple(affinities.shape)]
    if len(shapes[0]) != 4 or len(shapes[1]) != 4:
        raise ConfigError(
            "probabilities and affinities must be (batch, height, width, channels). "
            f"Received: shapes {shapes[0]} and {shapes[1]}"
        )
    channels = NEIGHBORS * len(rates)
    if shapes[1][-1] != channels:
        raise ConfigError(
            f"affinities must have {channels} channels, 8 for each of the {len(rates)} rates. "
            f"Received: shape {shapes[1]}, rates={rates}"
        )
    if valid_mask is not None:
        shapes.append(tuple(valid_mask.shape))
        if len(shapes[2]) != 3:
            raise ConfigError(
                f"valid_mask must be (batch, height, width). Received: shape {shapes[2]}"
            )
    for sizes in zip(*(shape[:3] for shape in shapes), strict=True):
        if len({size for size in sizes if size is not None}) > 1:
            raise ConfigError(
                "probabilities, affinities and valid_mask must agree in batch, height and width. "
                f"Received: shapes {', '.join(map(str, shapes))}"
            )


def _refine(probabilities, affinities, valid, iterations, self_weight, rates):
    """`_propagate` with the gradient of `_propagate_gradient`: a while loop has none under XLA."""

    @ops.custom_gradient
    def refine(probabilities, affinities):
        refined = _propagate(
            # Their derivatives are given below; a tape need not look inside.
            ops.stop_gradient(probabilities),
            ops.stop_gradient(affinities),
            valid,
            ops.convert_to_tensor(iterations, "int32"),
            self_weight,
            rates,
        )[..., : probabilities.shape[-1]]

        def gradient(*arguments, upstream=None):
            # The PyTorch backend passes `upstream` by name.
            upstream = arguments[0] if upstream is None else upstream
            to_probabilities, to_affinities = _propagate_gradient(
                upstream, probabilities, affinities, valid, self_weight, rates, iterations
            )
            return to_probabilities[..., : probabilities.shape[-1]], to_affinities

        return refined, gradient

    return refine(probabilities, affinities)


# The compiled functions leave the class axis padded. Cut inside, the result would be one more
# buffer beside that in which they iterate.


@compiled
def _propagate(probabilities, affinities, valid, iterations, self_weight, rates):
    grid = Grid(probabilities, affinities, valid, self_weight, rates)
    start = grid.start(probabilities)
    refined = ops.fori_loop(0, iterations, lambda _, current: grid.step(current), start)
    return grid.end(refined, probabilities)


@compiled
def _propagate_gradient(upstream, probabilities, affinities, valid, self_weight, rates, iterations):
    """Gradients by probabilities and affinities; keeps the probabilities of every iteration."""
    grid = Grid(probabilities, affinities, valid, self_weight, rates)

    def forward(current, _):
        return grid.step(current), current

    def backward(carried, current):
        to_probabilities, to_affinities, refined = carried
        before, more = grid.step_gradient(to_probabilities, current, refined)
        return (before, to_affinities + more, current), None

    to_probabilities, to_affinities = grid.start(upstream), ops.zeros_like(affinities)
    if iterations:
        refined, states = ops.scan(forward, grid.start(probabilities), length=iterations)
        carried = to_probabilities, to_affinities, refined
        (to_probabilities, to_affinities, _), _ = ops.scan(backward, carried, states, reverse=True)
    # What is not valid came out as it went in.
    return grid.end(to_probabilities, upstream), to_affinities


class Grid:
    """Eq. 6 on one set of affinities: what does not change from one iteration to the next."""

    def __init__(self, probabilities, affinities, valid, self_weight, rates):
        self.classes = probabilities.shape[-1]
        self.height, self.width = ops.shape(probabilities)[1:3]
        self.vertical, self.horizontal = reach(rates)
        self.offsets = neighbor_offsets(rates).tolist()
        self.affinities = affinities
        self.self_weight = self_weight
        self.valid = valid
        # Where not valid, probabilities stay 0 throughout, so that these neighbours add nothing to
        # the numerator; the denominator's sum over neighbours is the same in every iteration.
        self.support = sum(
            affinities[..., channel : channel + 1] * exists
            for channel, exists in enumerate(self.existing_neighbors())
        )

    def start(self, values):
        """With the class axis padded, and 0 where not valid."""
        # Selected, not multiplied: what is not valid may be NaN.
        return self._where_valid(self._padded(values), 0.0)

    def end(self, values, elsewhere):
        """The values, with the class axis padded still, but `elsewhere` where not valid."""
        return values if self.valid is None else self._where_valid(values, self._padded(elsewhere))

    def _padded(self, values):
        return ops.pad(values, [[0, 0]] * 3 + [[0, -self.classes % _LANES]])

    def _where_valid(self, values, elsewhere):
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
        margin = [[0, 0], [self.vertical] * 2, [self.horizontal] * 2, [0, 0]]
        padded = ops.pad(tensor, margin)
        for dy, dx in self.offsets:
            top, left = self.vertical + sign * dy, self.horizontal + sign * dx
            yield padded[:, top : top + self.height, left : left + self.width]

    def step(self, current):
        own = self.self_weight * ops.max(current, axis=-1, keepdims=True)
        mixed = own * current
        weighted = [
            self.affinities[..., channel : channel + 1] * neighbor
            for channel, neighbor in enumerate(self.neighbors(current))
        ]
        # A sum for each rate: additions that wait for each other would keep a processor waiting.
        for first in range(0, len(weighted), NEIGHBORS):
            mixed = mixed + functools.reduce(ops.add, weighted[first : first + NEIGHBORS])
        # The sum over the classes, wherever they sum to 1 before; 0 only where a pixel listens
        # neither to itself nor to anyone else.
        total = own + self.support
        refined = mixed / ops.where(total > 0, total, 1.0)
        return self._where_valid(ops.where(total > 0, refined, current), 0.0)

    def step_gradient(self, upstream, current, refined):
        """Gradients of `step` by `current` and by the affinities."""
        peak = ops.max(current, axis=-1, keepdims=True)
        total = self.self_weight * peak + self.support
        listens = total > 0
        to_mixed = ops.where(listens, upstream / ops.where(listens, total, 1.0), 0.0)
        to_mixed = self._where_valid(to_mixed, 0.0)
        to_total = -ops.sum(to_mixed * refined, axis=-1, keepdims=True)
        to_own = ops.sum(to_mixed * current, axis=-1, keepdims=True) + to_total
        # Equal maxima share their gradient.
        highest = ops.cast(current == peak, "float32")
        highest = highest / ops.sum(highest, axis=-1, keepdims=True)
        to_current = self.self_weight * (peak * to_mixed + to_own * highest)
        to_current = to_current + self._where_valid(ops.where(listens, 0.0, upstream), 0.0)
        of_others = zip(
            self.neighbors(to_mixed, sign=-1), self.neighbors(self.affinities, sign=-1), strict=True
        )
        for channel, (mixed, affinities) in enumerate(of_others):
            to_current = to_current + affinities[..., channel : channel + 1] * mixed
        seen = zip(self.neighbors(current), self.existing_neighbors(), strict=True)
        to_affinities = [
            ops.sum(to_mixed * neighbor, axis=-1, keepdims=True) + to_total * exists
            for neighbor, exists in seen
        ]
        return to_current, ops.concatenate(to_affinities, axis=-1)


@keras.saving.register_keras_serializable("dilated_affinity")
class AffinityPropagation(keras.layers.Layer):
    """`propagate` as a layer over probabilities and affinity logits, always in float32.

    Args:
        rates: (vertical, horizontal) pairs, as `parse_rates` returns them.
        iterations: How often to apply Eq. 6. Defaults to 10.
        self_weight: lambda of Eq. 6. Defaults to 6.
        mu: Steepness of Eq. 7. Defaults to 7.

    Call arguments:
        inputs: `[probabilities, affinity_logits]` of shapes (B, H, W, C) and (B, H, W, 8|R|).
        valid_mask: Optional boolean (B, H, W), see `propagate`.

    Returns:
        float32 probabilities of shape (B, H, W, C).

    Example:

    >>> import numpy as np
    >>> layer = AffinityPropagation(((1, 1),), iterations=3)
    >>> layer([np.full((1, 5, 7, 2), 0.5), np.zeros((1, 5, 7, 8))]).shape
    TensorShape([1, 5, 7, 2])
    """

    def __init__(
        self,
        rates,
        iterations=ITERATIONS,
        self_weight=SELF_WEIGHT,
        mu=STEEPNESS,
        dtype="float32",
        **kwargs,
    ):
        super().__init__(dtype=dtype, **kwargs)
        check_settings(iterations, self_weight)
        check_steepness(mu)
        self.rates = check_rates(rates)
        self.iterations = iterations
        self.self_weight = self_weight
        self.mu = mu

    def call(self, inputs, valid_mask=None):
        probabilities, logits = inputs
        return propagate(
            probabilities,
            steep_sigmoid(logits, self.mu),
            self.rates,
            self.iterations,
            self.self_weight,
            valid_mask,
        )

    def compute_output_shape(self, input_shape):
        return input_shape[0]

    def get_config(self):
        return {
            **super().get_config(),
            "rates": [list(rate) for rate in self.rates],
            "iterations": self.iterations,
            "self_weight": self.self_weight,
            "mu": self.mu,
        }
