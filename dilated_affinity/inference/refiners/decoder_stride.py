"""Propagation at the decoder's stride, and bilinear interpolation to the size of the image."""

import keras
import numpy as np
from keras import layers, ops

from dilated_affinity.affinity.geometry import check_rates
from dilated_affinity.affinity.interpolation import grid_offset
from dilated_affinity.affinity.propagation import AffinityPropagation
from dilated_affinity.errors import ConfigError
from dilated_affinity.inference.refiners.propagation import Propagation
from dilated_affinity.models.resize import AlignedResize


class DecoderStridePropagation(Propagation):
    """Propagates at the pixels where the decoder has features.

    Where the rates are multiples of the decoder's stride, these pixels have no other neighbours, so
    that the result there equals that of propagation at every pixel.
    """

    def __init__(self, model, refinement):
        super().__init__(model, refinement)
        if self.rates is not None:
            self._resize = decoder_resize(model)
            self.rates = divided_rates(self.rates, self._resize.source_stride)

    def on_grid(self, values, size):
        return values[decoder_grid(self._resize, size)]

    def at_image_size(self, state, outputs):
        grid = decoder_grid(self._resize, outputs.size)[1:]
        height, width = (
            len(range(side)[cut]) for side, cut in zip(outputs.size, grid, strict=True)
        )
        return self._resize([state[:, :height, :width], outputs.probabilities])

    def in_graph(self, images):
        if self.rates is None:
            return super().in_graph(images)
        # Only the result is as large as the image.
        model = self.model
        heads = {f"{name}_at_stride": model.get_layer(name).input[0] for name in model.output}
        whole = keras.Model(model.input, {**model.output, **heads}, name=model.name)
        logits = whole(ops.cast(images, "float32"))
        probabilities = layers.Softmax(dtype="float32")(logits["semantic_at_stride"])
        refined = self.layer()([probabilities, logits["affinity_at_stride"]])
        resize = self._resize
        enlarge = AlignedResize(resize.source_stride, 1, resize.padding, dtype="float32")
        return logits, enlarge([refined, images])


def divided_rates(rates, stride: int):
    """Returns the rates as distances on a grid of a stride.

    Args:
        rates: (vertical, horizontal) pairs in pixels, or text such as `"8,(12,24)"`.
        stride: Distance of the grid's points in pixels.

    Raises:
        ConfigError: If the rates are not multiples of the stride.

    Example:

    >>> divided_rates(((8, 8), (12, 24)), 4)
    ((2, 2), (3, 6))
    """
    rates = check_rates(rates)
    if any(side % stride for rate in rates for side in rate):
        raise ConfigError(
            f"propagation at the decoder's stride needs rates that are multiples of {stride}. "
            f"Received: rates={rates}"
        )
    return tuple((vertical // stride, horizontal // stride) for vertical, horizontal in rates)


def decoder_resize(model: keras.Model) -> AlignedResize:
    """Finds the layer that resizes a model's class logits from the decoder's stride.

    Raises:
        ConfigError: If the model has none, or already refines its output.
    """
    layers = {layer.name: layer for layer in model.layers}
    refines = any(isinstance(layer, AffinityPropagation) for layer in model.layers)
    if refines or not isinstance(layers.get("semantic"), AlignedResize):
        raise ConfigError(
            "propagation at the decoder's stride needs a model of DeepLabV3Plus without "
            f"propagation inside. Received: the model {model.name!r}"
        )
    return layers["semantic"]


def decoder_grid(resize: AlignedResize, size):
    """Returns the slices of a map (B, h, w, ...) that select the pixels with decoder features.

    Args:
        resize: As `decoder_resize` finds it.
        size: Height and width of the image, which may be smaller than the map.
    """
    offsets = [grid_offset(side, resize.source_stride, resize.padding) for side in size]
    return np.s_[:, offsets[0] :: resize.source_stride, offsets[1] :: resize.source_stride]
