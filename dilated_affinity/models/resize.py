"""Bilinear resizing that keeps features where the convolutions put them."""

import keras
from keras import ops

PADDINGS = ("same", "symmetric")


@keras.saving.register_keras_serializable("dilated_affinity")
class AlignedResize(keras.layers.Layer):
    """Resizes features bilinearly onto the grid of another stride of the same network.

    After strided convolutions feature i stands at input pixel `stride * i + offset`. The offset is
    0 for explicit symmetric padding. TensorFlow's `"same"` padding shifts the grid by one pixel
    of the level wherever a side is even, so the offset depends on the image's size; it is 0 for
    sides of the form k * stride + 1, where this resize is the one with aligned corners. Resizing
    by size alone would shift features by up to half a stride, and differently at other sizes than
    in training.

    Bilinear interpolation is linear in rows and in columns: it is computed as two products with
    small matrices, which runs and differentiates fast on every backend.

    Args:
        source_stride: Stride of the features, a power of two.
        target_stride: Stride of the wanted grid; 1 for the image's pixels. Defaults to 1.
        padding: `"same"` or `"symmetric"`, the padding of the network's strided layers.

    Call arguments:
        inputs: `[features, images]` of shapes (B, h, w, C) and (B, H, W, anything).

    Returns:
        (B, ceil(H / target_stride), ceil(W / target_stride), C).
    """

    def __init__(self, source_stride, target_stride=1, padding="same", **kwargs):
        super().__init__(**kwargs)
        if padding not in PADDINGS:
            raise ValueError(f"padding must be one of {PADDINGS}. Received: padding={padding!r}")
        self.source_stride = source_stride
        self.target_stride = target_stride
        self.padding = padding

    def call(self, inputs):
        features, images = inputs
        batch, source_height, source_width = ops.shape(features)[:3]
        height, width = ops.shape(images)[1:3]
        rows = self._interpolation(source_height, height, features.dtype)
        columns = self._interpolation(source_width, width, features.dtype)
        channels = features.shape[-1]
        wide = ops.matmul(columns, features)
        target_width = ops.shape(wide)[2]
        wide = ops.reshape(wide, (batch, source_height, target_width * channels))
        tall = ops.matmul(rows, wide)
        return ops.reshape(tall, (batch, ops.shape(tall)[1], target_width, channels))

    def _interpolation(self, source_size, image_size, dtype):
        """Matrix (target size, source size) of the weights of bilinear interpolation."""
        target_size = -(-image_size // self.target_stride)
        offset = self._offset(image_size, self.target_stride) - self._offset(
            image_size, self.source_stride
        )
        pixels = ops.arange(target_size) * self.target_stride + offset
        positions = ops.cast(pixels, "float32") / self.source_stride
        last = ops.cast(source_size - 1, "float32")
        positions = ops.clip(positions, 0.0, last)
        distances = ops.abs(positions[:, None] - ops.arange(source_size, dtype="float32"))
        return ops.cast(ops.maximum(1.0 - distances, 0.0), dtype)

    def _offset(self, size, stride):
        """Input pixel on which the first feature of `stride` stands."""
        offset, level = 0, 1
        while self.padding == "same" and level < stride:
            # An even side is padded only behind: its first window is centred on pixel 1.
            offset += level * ((size + 1) % 2)
            size = (size + 1) // 2
            level *= 2
        return offset

    def compute_output_shape(self, input_shape):
        features, images = input_shape
        sides = [side and -(-side // self.target_stride) for side in images[1:3]]
        return (features[0], *sides, features[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "source_stride": self.source_stride,
            "target_stride": self.target_stride,
            "padding": self.padding,
        }
