"""How predictions are refined (section 3.3): the settings, and the one loop that applies them."""

import dataclasses

import keras
import numpy as np

from dilated_affinity.affinity.affinities import (
    STEEPNESS,
    THRESHOLD,
    check_steepness,
    steep_sigmoid,
    symmetric_logits,
)
from dilated_affinity.affinity.early_stopping import (
    EarlyStop,
    EarlyStoppingPropagation,
    propagate_until_stable,
)
from dilated_affinity.affinity.geometry import check_rates
from dilated_affinity.affinity.interpolation import grid_offset
from dilated_affinity.affinity.propagation import (
    ITERATIONS,
    SELF_WEIGHT,
    AffinityPropagation,
    check_settings,
    propagate,
)
from dilated_affinity.config import REFINEMENTS, Config
from dilated_affinity.errors import ConfigError
from dilated_affinity.inference.padding import pad_to
from dilated_affinity.models.deeplab import affinity_rates
from dilated_affinity.models.resize import AlignedResize

_CONFIG_NAMES = {
    "iterations": "propagation_iterations",
    "self_weight": "self_weight",
    "mu": "mu",
    "threshold": "affinity_threshold",
    "symmetric": "symmetric_affinity",
}
"""Settings of a run for the fields of `Refinement` that calibration may change."""


@dataclasses.dataclass(frozen=True)
class Refinement:
    """Settings of the refinement by propagation, Eq. 6 and 7. The defaults are the paper's.

    Attributes:
        iterations: Iterations of Eq. 6, at least 0.
        self_weight: lambda of Eq. 6, at least 0.
        mu: Steepness of Eq. 7, above 1.
        threshold: tau, the affinity logit at which Eq. 7 gives 0.5, see `steep_sigmoid`.
        symmetric: Whether to average the logits of both directions of a pair, see
            `symmetric_logits`.
        variant: `"exact"` for Eq. 6 at every pixel. `"decoder_stride"` for Eq. 6 at the pixels
            on which the decoder's features stand, and bilinear interpolation between them; where
            the rates are multiples of that stride these pixels have no other neighbours, so that
            there the result is the exact one. `"early_stop"` to end when labels have converged.
        stop: When `"early_stop"` ends.

    Raises:
        ConfigError: For a value out of its range.

    Example:

    >>> Refinement(iterations=3, mu=50.0).replace(threshold=1.0).threshold
    1.0
    """

    iterations: int = ITERATIONS
    self_weight: float = SELF_WEIGHT
    mu: float = STEEPNESS
    threshold: float = THRESHOLD
    symmetric: bool = False
    variant: str = "exact"
    stop: EarlyStop = EarlyStop()

    def __post_init__(self):
        check_settings(self.iterations, self.self_weight)
        check_steepness(self.mu, self.threshold)
        if self.variant not in REFINEMENTS:
            raise ConfigError(
                f"refinement must be one of {', '.join(REFINEMENTS)}, a Refinement, or an "
                f"EarlyStop. Received: refinement={self.variant!r}"
            )

    @classmethod
    def from_config(cls, config: Config):
        """The refinement that the settings of a run name; 0 iterations if they name another."""
        values = {field: getattr(config, name) for field, name in _CONFIG_NAMES.items()}
        return cls(
            **{**values, "iterations": config.iterations_of_refinement},
            variant=config.refinement,
            stop=EarlyStop(config.stop_patience, config.stop_tolerance),
        )

    def replace(self, **changes):
        """A copy with some settings changed."""
        return dataclasses.replace(self, **changes)

    def to_config(self) -> dict:
        """The settings of a run that say the same, for what calibration may change."""
        return {name: getattr(self, field) for field, name in _CONFIG_NAMES.items()}

    def layer(self, rates) -> AffinityPropagation:
        """The layer that refines full-resolution probabilities so."""
        settings = {field: getattr(self, field) for field in _CONFIG_NAMES}
        if self.variant == "early_stop":
            return EarlyStoppingPropagation(rates, **settings, **dataclasses.asdict(self.stop))
        return AffinityPropagation(rates, **settings)

    def affinities(self, logits, rates, valid_mask=None):
        """Affinities to propagate with, float32 (B, H, W, 8|R|), from logits of that shape."""
        if self.symmetric:
            logits = symmetric_logits(logits, rates, valid_mask)
        return steep_sigmoid(logits, self.mu, self.threshold)


def as_refinement(refinement=None, **settings) -> Refinement:
    """A `Refinement` from what public functions accept.

    Args:
        refinement: A `Refinement`; the name of a variant or an `EarlyStop`, with the paper's
            settings; or None for all of the paper's.
        **settings: Fields of `Refinement` to replace; those that are None stay.

    Raises:
        ConfigError: For anything else, or a value out of its range.

    Example:

    >>> as_refinement("decoder_stride", iterations=3).variant
    'decoder_stride'
    """
    unknown = settings.keys() - {field.name for field in dataclasses.fields(Refinement)}
    if unknown:
        raise ConfigError(
            "settings of the refinement are "
            f"{', '.join(field.name for field in dataclasses.fields(Refinement))}. "
            f"Received: {', '.join(sorted(unknown))}"
        )
    if refinement is None:
        refinement = Refinement()
    elif isinstance(refinement, EarlyStop):
        refinement = Refinement(variant="early_stop", stop=refinement)
    elif not isinstance(refinement, Refinement):
        refinement = Refinement(variant=refinement)
    return refinement.replace(
        **{name: value for name, value in settings.items() if value is not None}
    )


def divided_rates(rates, stride: int):
    """The rates as distances on a grid of that stride.

    Raises:
        ConfigError: If they are no multiples of the stride.

    Example:

    >>> divided_rates(((8, 8), (12, 24)), 4)
    ((2, 2), (3, 6))
    """
    rates = check_rates(rates)
    if any(side % stride for rate in rates for side in rate):
        raise ConfigError(
            f"refinement at the decoder's stride needs rates that are multiples of {stride}. "
            f"Received: rates={rates}"
        )
    return tuple((vertical // stride, horizontal // stride) for vertical, horizontal in rates)


def decoder_resize(model: keras.Model) -> AlignedResize:
    """The layer that brings a model's class logits from the decoder's stride to full resolution.

    Raises:
        ConfigError: If the model has none, or refines what comes out of it.
    """
    layers = {layer.name: layer for layer in model.layers}
    refines = any(isinstance(layer, AffinityPropagation) for layer in model.layers)
    if refines or not isinstance(layers.get("semantic"), AlignedResize):
        raise ConfigError(
            "refinement at the decoder's stride needs a model of DeepLabV3Plus without propagation "
            f"inside. Received: the model {model.name!r}"
        )
    return layers["semantic"]


def decoder_grid(resize: AlignedResize, size):
    """Slices that take from a map (B, h, w, ...) the pixels on which the decoder's features stand.

    Args:
        resize: As `decoder_resize` finds it.
        size: Height and width of the image, which may be smaller than the map.
    """
    offsets = [grid_offset(side, resize.source_stride, resize.padding) for side in size]
    return np.s_[:, offsets[0] :: resize.source_stride, offsets[1] :: resize.source_stride]


class Refiner:
    """Refines predictions of a model's images, which may be padded at the bottom and right.

    Args:
        model: As `DeepLabV3Plus` builds it; one without affinity can be "refined" by 0 iterations
            only.
        refinement: See `as_refinement`.

    Raises:
        ConfigError: If the rates or the model do not allow the variant.
    """

    def __init__(self, model, refinement=None):
        self._refinement = as_refinement(refinement)
        self._rates = affinity_rates(model)
        self._resize = None
        if self._refinement.variant == "decoder_stride" and self._rates is not None:
            self._resize = decoder_resize(model)
            self._rates = divided_rates(self._rates, self._resize.source_stride)

    def __call__(self, probabilities, logits, size, iterations=None):
        """Refines by the predicted affinity.

        Args:
            probabilities: (1, h, w, C), the image at the top left.
            logits: Affinity logits (1, h, w, 8|R|), likewise; None for a model without affinity.
            size: Height and width of the image.
            iterations: Ascending numbers of iterations; those of the refinement when None.

        Returns:
            Generator of the refined probabilities (1, H, W, C) after each number of iterations.
        """
        return self._refined(probabilities, logits, self._predicted, size, iterations)

    def with_affinities(self, probabilities, affinities, size, iterations=None):
        """Refines by given affinities in [0, 1], such as `affinities_from_targets` returns.

        Args and Returns: As for a call, with `affinities` in the place of `logits`.
        """
        return self._refined(
            probabilities, affinities, lambda affinities, _: affinities, size, iterations
        )

    def _predicted(self, logits, inside):
        return self._refinement.affinities(logits, self._rates, inside)

    def _refined(self, probabilities, values, to_affinities, size, iterations):
        iterations = (self._refinement.iterations,) if iterations is None else iterations
        height, width = size
        unrefined = probabilities[:, :height, :width]
        if self._rates is None or not any(iterations):
            yield from (unrefined for _ in iterations)
            return
        if self._resize is not None:
            grid = decoder_grid(self._resize, size)
            probabilities, values = probabilities[grid], values[grid]
            size = [len(range(side)[cut]) for side, cut in zip(size, grid[1:], strict=True)]
        inside = pad_to(np.ones(size, bool), probabilities.shape[1:3])
        affinities = to_affinities(values, inside)
        stopped = self._refinement.variant == "early_stop"
        refine = self._stopped if stopped else self._continued
        for count, refined in refine(probabilities, affinities, iterations, inside):
            shown = refined[:, : size[0], : size[1]]
            if self._resize is None:
                yield shown
            else:
                yield self._resize([shown, unrefined]) if count else unrefined

    def _continued(self, refined, affinities, iterations, inside):
        done = 0
        for count in iterations:
            if count > done:
                settings = count - done, self._refinement.self_weight, inside
                refined = propagate(refined, affinities, self._rates, *settings)
                done = count
            yield count, refined

    def _stopped(self, probabilities, affinities, iterations, inside):
        for count in iterations:
            refined = probabilities
            # Each from the start: continued, it would not know for how long labels had rested.
            if count:
                settings = count, self._refinement.self_weight, inside, self._refinement.stop
                refined = propagate_until_stable(probabilities, affinities, self._rates, *settings)
            yield count, refined
