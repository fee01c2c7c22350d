"""A network on padded images that sees them as they are, so that JAX compiles it for few sizes.

Convolutions pad by zeros. Where every feature that belongs to no pixel of the image is set to zero
before each layer that reads neighbours, the others are those of the image alone. "Same" padding
places the features of a stride from the end of a side, the last on the last pixel; symmetric
padding places them from its start. So an image in the bottom right or the top left corner of a
larger one has its features at the positions of the larger one's, whatever its size.
"""

import contextvars
import dataclasses
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from dilated_affinity.affinity.interpolation import interpolation_weights
from dilated_affinity.inference.padding import PaddedShapes, crop
from dilated_affinity.models.backbone import CONVOLUTIONS
from dilated_affinity.models.deeplab import AffinityHead, BroadcastLike
from dilated_affinity.models.resize import AlignedResize, interpolate
from dilated_affinity.models.resnet import CaffePreprocessing
from dilated_affinity.runtime.xla import compiled_with_weights

_POINTWISE = (
    layers.InputLayer,
    layers.Rescaling,
    CaffePreprocessing,
    layers.BatchNormalization,
    layers.ReLU,
    layers.Activation,
    layers.Add,
    layers.Concatenate,
    layers.Dropout,
    layers.Identity,
    BroadcastLike,
)
"""Layers that read no neighbours."""

_SPATIAL = (*CONVOLUTIONS, AffinityHead, layers.ZeroPadding2D)
_POOLS = (layers.GlobalAveragePooling2D, layers.MaxPooling2D)


def can_be_padded(model: keras.Model) -> bool:
    """Returns whether `PaddedNetwork` knows every layer of a model.

    It knows those of `DeepLabV3Plus` and its backbones; not propagation inside the model.
    """
    inside = list(_layers_of(model))
    paddings = {layer.padding for layer in inside if isinstance(layer, AlignedResize)}
    if len(paddings) != 1 or not isinstance(model.output, dict):
        return False
    (padding,) = paddings
    at_pixels = [
        layer.name
        for layer in model.layers
        if isinstance(layer, AlignedResize) and layer.target_stride == 1
    ]
    known = (*_POINTWISE, *_SPATIAL, *_POOLS, AlignedResize)
    return set(at_pixels) == set(model.output) and all(
        # Not subclasses, which may compute something else.
        type(layer) in known and _keeps_to_grid(layer, padding)
        for layer in inside
    )


def _layers_of(model):
    for layer in model.layers:
        if isinstance(layer, keras.Function):
            yield from _layers_of(layer)
        else:
            yield layer


def _keeps_to_grid(layer, padding):
    """Whether a layer places its features where `interpolation.grid_offset` expects them."""
    if not isinstance(layer, (*_SPATIAL, *_POOLS)):
        return True
    if isinstance(layer, layers.ZeroPadding2D):
        (top, bottom), (left, right) = layer.padding
        return padding == "symmetric" and top == bottom == left == right
    if isinstance(layer, layers.GlobalAveragePooling2D):
        return layer.keepdims
    kernel = layer.pool_size if isinstance(layer, layers.MaxPooling2D) else layer.kernel_size
    if any(side % 2 == 0 for side in kernel):
        return False
    if isinstance(layer, layers.MaxPooling2D):
        # After a `ZeroPadding2D`; its own padding would be the lowest number.
        return padding == "symmetric" and layer.padding == "valid"
    if set(layer.strides) == {1}:
        return layer.padding == "same" or set(kernel) == {1}
    if padding == "same":
        return layer.padding == "same" and min(kernel) > 1
    return layer.padding == "valid" or max(kernel) == 1


class PaddedNetwork:
    """Computes the logits of images of any sizes under JAX, compiled for few of them.

    Args:
        model: One that `can_be_padded`.

    Call arguments:
        images: uint8 (1, H, W, 3).

    Returns:
        The model's dict of logits (1, H, W, channels), arrays in the host's memory.
    """

    def __init__(self, model: keras.Model):
        self._padding = model.get_layer("semantic").padding
        # From a model that is not compiled; otherwise Keras compiles the clone as well.
        plain = keras.Model(model.input, model.output, name=model.name)
        self._masked = keras.models.clone_model(plain, clone_function=_Masked, recursive=True)
        self._compiled = compiled_with_weights(model, self._logits)
        self._padded_shapes = PaddedShapes()

    def __call__(self, images):
        size = tuple(images.shape[1:3])
        logits, _ = self.padded(np.asarray(images)[0])
        return {head: crop(values, size) for head, values in logits.items()}

    def padded(self, image):
        """Computes the logits of an image, padded.

        Args:
            image: uint8 (H, W, 3).

        Returns:
            The dict of logits (1, h, w, channels), 0 outside the image, which is at the top left;
            and (h, w).
        """
        height, width = image.shape[:2]
        shape = self._padded_shapes.round_up((height, width))
        whole = np.zeros((1, *shape, 3), np.uint8)
        if self._padding == "same":
            whole[:, shape[0] - height :, shape[1] - width :] = image
        else:
            whole[:, :height, :width] = image
        return self._compiled(whole, np.array((height, width), np.int32)), shape

    def _logits(self, images, size):
        shape = images.shape[1:3]
        sides = tuple(_Side(shape[axis], size[axis], self._padding) for axis in (0, 1))
        token = _padded_sides.set(sides)
        try:
            return self._masked(ops.cast(images, "float32"), training=False)
        finally:
            _padded_sides.reset(token)


_padded_sides = contextvars.ContextVar("padded_sides")
"""While a `PaddedNetwork` is traced, the `_Side` of height and width."""


@dataclasses.dataclass(frozen=True)
class _Side:
    """One side of an image within a larger one.

    Attributes:
        whole: The larger one's pixels.
        own: The image's pixels, an integer scalar tensor.
        padding: As of `AlignedResize`.
    """

    whole: int
    own: Any
    padding: str

    def own_features(self, stride):
        """The number of the image's features of a stride."""
        return (self.own + stride - 1) // stride

    def indices(self, stride):
        """Index of every feature of a stride, int32; 0 for the first one of the image."""
        features = -(-self.whole // stride)
        first = features - self.own_features(stride) if self.padding == "same" else 0
        return ops.arange(features, dtype="int32") - first

    def exists(self, stride):
        """Whether each feature of a stride is one of the image: bool."""
        indices = self.indices(stride)
        return (indices >= 0) & (indices < self.own_features(stride))


class _Masked(layers.Layer):
    """A layer of a network as it computes the features of the image alone in a larger one."""

    def __init__(self, layer):
        super().__init__(name=layer.name, autocast=False)
        self._layer = layer
        self.built = True

    def call(self, inputs, **arguments):
        layer = self._layer
        if isinstance(layer, AlignedResize):
            return _resized(layer, inputs[0])
        if isinstance(layer, layers.GlobalAveragePooling2D):
            return _mean(inputs)
        if isinstance(layer, _SPATIAL) and _pads(layer):
            inputs = _only_own(inputs)
        return layer(inputs, **arguments)

    def compute_output_spec(self, inputs, **arguments):
        return self._layer.compute_output_spec(inputs, **arguments)


def _pads(layer):
    """Whether a layer pads, itself or as a layer for the next one, and so reads neighbours."""
    if isinstance(layer, layers.ZeroPadding2D):
        return True
    return layer.padding == "same" and set(layer.kernel_size) != {1}


def _stride_of(features):
    """The stride of features of the larger image.

    Two strides with the same number of features have one feature, which both find to exist.
    """
    sides, stride = _padded_sides.get(), 1
    while tuple(-(-side.whole // stride) for side in sides) != tuple(features.shape[1:3]):
        stride *= 2
        if stride > max(side.whole for side in sides):
            raise ValueError(f"No stride has features of shape {tuple(features.shape)}.")
    return stride


def _only_own(features):
    """Features (B, h, w, C) of the image; 0 at all other positions."""
    stride = _stride_of(features)
    rows, columns = (side.exists(stride) for side in _padded_sides.get())
    return ops.where(rows[:, None, None] & columns[:, None], features, 0)


def _mean(features):
    """Mean over the image's features, (B, 1, 1, C)."""
    stride = _stride_of(features)
    rows, columns = (side.own_features(stride) for side in _padded_sides.get())
    total = ops.sum(ops.cast(_only_own(features), "float32"), axis=(1, 2), keepdims=True)
    return ops.cast(total / ops.cast(rows * columns, "float32"), features.dtype)


def _resized(layer, features):
    """What an `AlignedResize` returns: of stride 1 at the top left, otherwise at its positions."""
    features = ops.cast(_only_own(features), layer.compute_dtype)
    source, target = layer.source_stride, layer.target_stride
    weights = [
        interpolation_weights(
            side.indices(target) if target > 1 else ops.arange(side.whole, dtype="int32"),
            ops.cast(side.indices(source), "float32"),
            side.own_features(source),
            side.own,
            source,
            target,
            layer.padding,
            features.dtype,
        )
        for side in _padded_sides.get()
    ]
    if target == 1:
        weights = [
            ops.where(ops.arange(side.whole)[:, None] < side.own, each, 0)
            for side, each in zip(_padded_sides.get(), weights, strict=True)
        ]
    return interpolate(features, *weights)
