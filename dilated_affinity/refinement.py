"""The variants of the refinement (section 3.3) that a user may choose, on images of any size."""

import keras
import numpy as np

from dilated_affinity.affinity.early_stopping import EarlyStop, propagate_until_stable
from dilated_affinity.affinity.geometry import check_rates
from dilated_affinity.affinity.propagation import SELF_WEIGHT, AffinityPropagation, propagate
from dilated_affinity.canvases import pad_to
from dilated_affinity.config import REFINEMENTS, Config
from dilated_affinity.errors import ConfigError
from dilated_affinity.interpolation import grid_offset
from dilated_affinity.models.resize import AlignedResize


def check_refinement(refinement) -> str | EarlyStop:
    """A variant of the refinement: `"exact"`, `"decoder_stride"`, or an `EarlyStop`.

    Args:
        refinement: `"exact"` for Eq. 6 at every pixel. `"decoder_stride"` for Eq. 6 at those pixels
            on which the decoder's features stand, and bilinear interpolation between them; where
            the rates are multiples of that stride these pixels have no other neighbours, so that
            there the result is the exact one. `"early_stop"`, or an `EarlyStop` with settings,
            to end where labels have come to rest.

    Raises:
        ConfigError: For anything else.
    """
    if refinement not in REFINEMENTS and not isinstance(refinement, EarlyStop):
        raise ConfigError(
            f"refinement must be one of {', '.join(REFINEMENTS)}, or an EarlyStop. "
            f"Received: refinement={refinement!r}"
        )
    return EarlyStop() if refinement == "early_stop" else refinement


def refinement_of(config: Config) -> str | EarlyStop:
    """The variant that the settings of a run name."""
    if config.refinement == "early_stop":
        return EarlyStop(config.stop_patience, config.stop_tolerance)
    return config.refinement


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


class Refiner:
    """Refines predictions that lie on a canvas, by the variant chosen.

    Args:
        model: As `DeepLabV3Plus` builds it; asked for its decoder's stride where that matters.
        rates: (vertical, horizontal) pairs, as `parse_rates` returns them; None for a model
            without affinity, which can be "refined" by 0 iterations only.
        self_weight: lambda of Eq. 6.
        refinement: See `check_refinement`.

    Call arguments:
        probabilities: (1, h, w, C), on a canvas of at least the image's size, image top left.
        affinities: (1, h, w, 8|R|), likewise; None for a model without affinity.
        size: Height and width of the image.
        iterations: Ascending numbers of iterations.

    Returns:
        Generator of the refined probabilities (1, H, W, C) after each number of iterations.

    Raises:
        ConfigError: If the rates or the model do not allow the variant.
    """

    def __init__(self, model, rates, self_weight=SELF_WEIGHT, refinement="exact"):
        self._refinement = check_refinement(refinement)
        self._rates = rates
        self._self_weight = self_weight
        self._resize = None
        if self._refinement == "decoder_stride" and rates is not None:
            self._resize = decoder_resize(model)
            self._rates = divided_rates(rates, self._resize.source_stride)

    def __call__(self, probabilities, affinities, size, iterations):
        height, width = size
        unrefined = probabilities[:, :height, :width]
        if self._resize is not None:
            lattice = self._lattice(size)
            probabilities, affinities = probabilities[lattice], affinities[lattice]
            size = [len(range(side)[cut]) for side, cut in zip(size, lattice[1:], strict=True)]
        inside = pad_to(np.ones(size, bool), probabilities.shape[1:3])
        refine = self._stopped if isinstance(self._refinement, EarlyStop) else self._continued
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
                refined = propagate(
                    refined, affinities, self._rates, count - done, self._self_weight, inside
                )
                done = count
            yield count, refined

    def _stopped(self, probabilities, affinities, iterations, inside):
        for count in iterations:
            refined = probabilities
            # Each from the start: continued, it would not know for how long labels had rested.
            if count:
                refined = propagate_until_stable(
                    probabilities,
                    affinities,
                    self._rates,
                    count,
                    self._self_weight,
                    inside,
                    self._refinement,
                )
            yield count, refined

    def _lattice(self, size):
        """Slices that take from a canvas the pixels on which an image's features stand."""
        stride, padding = self._resize.source_stride, self._resize.padding
        offsets = [grid_offset(side, stride, padding) for side in size]
        return np.s_[:, offsets[0] :: stride, offsets[1] :: stride]
