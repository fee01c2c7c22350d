"""Section 3.3: refinement by affinity propagation, Eq. 6 and 7."""

import math

import keras
from keras import ops

from dilated_affinity.affinity.geometry import NEIGHBORS, check_rates, neighbor_offsets, reach
from dilated_affinity.compilation import compiled
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
    _check_steepness(mu)
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
    for each shape.

    Args:
        probabilities: (B, H, W, C), non-negative, summing to 1 over the classes.
        affinities: (B, H, W, 8|R|) in [0, 1], in the order of `neighbor_offsets`; from
            `steep_sigmoid` or `affinities_from_targets`.
        rates: (vertical, horizontal) pairs, as `parse_rates` returns them.
        iterations: How often to apply Eq. 6, at least 0. Defaults to 10.
        self_weight: lambda of Eq. 6, at least 0. Defaults to 6.
        valid_mask: Optional boolean (B, H, W). Pixels outside it lend nothing to their
            neighbours, like pixels outside the image, and keep their own probabilities.

    Returns:
        float32 probabilities of shape (B, H, W, C).

    Raises:
        ConfigError: If `iterations` or `self_weight` is negative.
        ValueError: If shapes do not fit each other or `rates`.
    """
    rates = check_rates(rates)
    _check_settings(iterations, self_weight)
    probabilities = ops.convert_to_tensor(probabilities, "float32")
    affinities = ops.convert_to_tensor(affinities, "float32")
    _check_shapes(probabilities, affinities, rates, valid_mask)
    if valid_mask is not None:
        valid_mask = ops.cast(valid_mask, "float32")[..., None]
    return _propagate(
        probabilities,
        affinities,
        valid_mask,
        ops.convert_to_tensor(int(iterations), "int32"),
        ops.convert_to_tensor(self_weight, "float32"),
        rates,
    )


def _check_settings(iterations, self_weight):
    if isinstance(iterations, bool) or int(iterations) != iterations or iterations < 0:
        raise ConfigError(
            f"iterations must be a whole number, at least 0. Received: iterations={iterations!r}"
        )
    if not self_weight >= 0:
        raise ConfigError(f"self_weight must be at least 0. Received: self_weight={self_weight}")


def _check_steepness(mu):
    if not mu > 1:
        raise ConfigError(f"mu must be above 1. Received: mu={mu}")


def _check_shapes(probabilities, affinities, rates, valid_mask):
    shapes = [tuple(probabilities.shape), tuple(affinities.shape)]
    if len(shapes[0]) != 4 or len(shapes[1]) != 4:
        raise ValueError(
            "probabilities and affinities must be (batch, height, width, channels). "
            f"Received: shapes {shapes[0]} and {shapes[1]}"
        )
    channels = NEIGHBORS * len(rates)
    if shapes[1][-1] != channels:
        raise ValueError(
            f"affinities must have {channels} channels, 8 for each of the {len(rates)} rates. "
            f"Received: shape {shapes[1]}, rates={rates}"
        )
    if valid_mask is not None:
        shapes.append(tuple(valid_mask.shape))
        if len(shapes[2]) != 3:
            raise ValueError(
                f"valid_mask must be (batch, height, width). Received: shape {shapes[2]}"
            )
    for sizes in zip(*(shape[:3] for shape in shapes), strict=True):
        if len({size for size in sizes if size is not None}) > 1:
            raise ValueError(
                "probabilities, affinities and valid_mask must agree in batch, height and width. "
                f"Received: shapes {', '.join(map(str, shapes))}"
            )


@compiled
def _propagate(probabilities, affinities, valid, iterations, self_weight, rates):
    classes = probabilities.shape[-1]
    height, width = ops.shape(probabilities)[1:3]
    vertical, horizontal = reach(rates)
    offsets = [(vertical + dy, horizontal + dx) for dy, dx in neighbor_offsets(rates).tolist()]
    margin = [[0, 0], [vertical] * 2, [horizontal] * 2, [0, 0]]

    def neighbors(tensor):
        """The tensor seen from every pixel's neighbours, in channel order; 0 where none is."""
        padded = ops.pad(tensor, margin)
        for top, left in offsets:
            yield padded[:, top : top + height, left : left + width]

    present = ops.ones_like(probabilities[..., :1]) if valid is None else valid
    # Outside `present` probabilities stay 0 throughout, so invalid neighbours add nothing to the
    # numerator; the denominator's sum over neighbours is the same in every iteration.
    support = sum(
        affinities[..., channel : channel + 1] * exists
        for channel, exists in enumerate(neighbors(present))
    )

    def step(_, current):
        own = self_weight * ops.max(current, axis=-1, keepdims=True)
        mixed = own * current
        for channel, neighbor in enumerate(neighbors(current)):
            mixed = mixed + affinities[..., channel : channel + 1] * neighbor
        # The sum over the classes, wherever they sum to 1 before; 0 only where a pixel listens
        # neither to itself nor to anyone else.
        total = own + support
        refined = mixed / ops.where(total > 0, total, 1.0)
        return ops.where(present > 0, ops.where(total > 0, refined, current), 0.0)

    # `where`, not a product: what lies outside may be NaN.
    start = ops.pad(probabilities, [[0, 0]] * 3 + [[0, -classes % _LANES]])
    start = ops.where(present > 0, start, 0.0)
    refined = ops.fori_loop(0, iterations, step, start)[..., :classes]
    return refined if valid is None else ops.where(valid > 0, refined, probabilities)


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
        _check_settings(iterations, self_weight)
        _check_steepness(mu)
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
