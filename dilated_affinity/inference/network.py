"""A network as a function of images, and its outputs for one image, padded for refinement."""

import dataclasses
import functools
from typing import Any

import keras
import numpy as np
from keras import ops

from dilated_affinity.inference.multi_view import MultiScale, SlidingWindow
from dilated_affinity.inference.padded_network import PaddedNetwork, can_be_padded
from dilated_affinity.inference.padding import PaddedShapes, crop, pad_on_device, pad_to
from dilated_affinity.inference.views import Views
from dilated_affinity.models.deeplab import affinity_rates
from dilated_affinity.runtime.xla import trace_once


def logits_fn(model: keras.Model, views: Views | None = None):
    """Wraps a model into a function of uint8 images of any size, without a trace for each size.

    The network sees an image as it is: no padding reaches its convolutions or its image-level
    pooling. Under JAX a `PaddedNetwork` sees to that; a model with layers that this does not know
    is compiled for each size.

    Args:
        model: As `DeepLabV3Plus` builds it.
        views: Views of the image to average over. Defaults to None: the image as it is.

    Returns:
        Function from uint8 (1, H, W, 3) to the model's dict of logits.
    """
    views = views or Views()
    if keras.backend.backend() == "jax" and can_be_padded(model):
        predict = PaddedNetwork(model)
    else:
        predict = trace_once(
            model, lambda images: model(ops.cast(images, "float32"), training=False)
        )
    rates = affinity_rates(model)
    if views.window:
        predict = SlidingWindow(predict, views.window, rates)
    if views.flip or views.scales != (1.0,):
        predict = MultiScale(predict, views.scales, views.flip, rates)
    return predict


@dataclasses.dataclass(frozen=True)
class ImageOutputs:
    """The outputs of a network for one image, and their padding for code compiled by shape.

    Attributes:
        image: uint8 (H, W, 3).
        probabilities: float32 tensor (1, H, W, C), before refinement. Under JAX it may be an array.
        affinity: float32 tensor (1, H, W, 8|R|) of logits, likewise; None for a model without
            affinity.
        shape: Height h and width w to pad to.
        given: float32 tensor (1, h, w, 8|R|), affinities in [0, 1] to propagate with instead of the
            predicted ones; None to propagate with `affinity`.
        padded: Tensors (1, h, w, ...) of `probabilities` and `affinity` from a network that has
            padded them; None to pad them when they are asked for.
    """

    image: np.ndarray
    probabilities: Any
    affinity: Any
    shape: tuple[int, int]
    given: Any = None
    padded: tuple | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return tuple(self.image.shape[:2])

    @functools.cached_property
    def padded_probabilities(self):
        """`probabilities` (1, h, w, C), padded on the device; the same tensor where it fits."""
        return self.padded[0] if self.padded else pad_on_device(self.probabilities, self.shape)

    @functools.cached_property
    def padded_affinity(self):
        """`affinity` (1, h, w, 8|R|), likewise."""
        return self.padded[1] if self.padded else pad_on_device(self.affinity, self.shape)

    def pad(self, values, value=0) -> np.ndarray:
        """Pads an array of the image, such as its label (H, W), likewise: (1, h, w)."""
        return pad_to(values, self.shape, value)


class Network:
    """Predicts one image at a time, before refinement.

    Args:
        predict: As `logits_fn` returns it.

    Call arguments:
        image: uint8 (H, W, 3) RGB.

    Returns:
        `ImageOutputs`.
    """

    def __init__(self, predict):
        self._predict = predict
        self._padded_shapes = PaddedShapes()

    def __call__(self, image) -> ImageOutputs:
        if isinstance(self._predict, PaddedNetwork):
            return self._padded_outputs(image)
        logits = self._predict(image[np.newaxis])
        probabilities = ops.softmax(logits["semantic"])
        shape = self._padded_shapes.round_up(image.shape[:2])
        return ImageOutputs(image, probabilities, logits.get("affinity"), shape)

    def _padded_outputs(self, image):
        logits, shape = self._predict.padded(image)
        size = image.shape[:2]
        inside = pad_to(np.ones((*size, 1), np.float32), shape)
        padded = ops.softmax(logits["semantic"]) * inside, logits.get("affinity")
        own = (None if values is None else crop(values, size) for values in padded)
        return ImageOutputs(image, *own, shape, padded=padded)
