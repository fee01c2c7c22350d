"""Bilinear resizing aligned with the positions of strided features."""

import keras
from keras import ops

from dilated_affinity.affinity.interpolation import check_grid, interpolation_matrix


@keras.saving.register_keras_serializable("dilated_affinity")
class AlignedResize(keras.layers.Layer):
    """Resizes features bilinearly onto the grid of another stride of the same network.

    The positions of features in the image depend on padding and on the image's size, see
    `interpolation.grid_offset`; for sides of the form k * stride + 1 corners are aligned. Resizing
    by size alone would shift features by up to half a stride, depending on the size.

    Bilinear interpolation is separable: it is computed as two products with small matrices, which
    is fast on every backend, including its gradient.

    Args:
        source_stride: Stride of the features, a power of two.
        target_stride: Stride of the target grid; 1 for the image's pixels. Defaults to 1.
        padding: `"same"` or `"symmetric"`, the padding of the network's strided layers.

    Call arguments:
        inputs: `[features, images]` of shapes (B, h, w, C) and (B, H, W, anything).

    Returns:
        (B, ceil(H / target_stride), ceil(W / target_stride), C).
    """

    def __init__(self, source_stride, target_stride=1, padding="same", **kwargs):
        super().__init__(**kwargs)
        check_grid(source_stride, padding)
        check_grid(target_stride, padding)
        self.source_stride = source_stride
        self.target_stride = target_stride
        self.padding = padding

    def call(self, inputs):
        features, images = inputs
        source_height, source_width = ops.shape(features)[1:3]
        height, width = ops.shape(images)[1:3]
        rows = self._interpolation(source_height, height, features.dtype)
        columns = self._interpolation(source_width, width, features.dtype)
        return interpolate(features, rows, columns)

    def _interpolation(self, source_size, image_size, dtype):
        return interpolation_matrix(
            source_size, image_size, self.source_stride, self.target_stride, self.padding, dtype
        )

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


def interpolate(features, rows, columns):
    """Resizes features by the weights of each axis.

    Args:
        features: (B, h, w, C).
        rows: (H, h), weights of the rows of features for each row of the result.
        columns: (W, w), likewise.

    Returns:
        (B, H, W, C).
    """
    batch, source_height = ops.shape(features)[:2]
    channels = features.shape[-1]
    wide = ops.matmul(columns, features)
    target_width = ops.shape(wide)[2]
    wide = ops.reshape(wide, (batch, source_height, target_width * channels))
    tall = ops.matmul(rows, wide)
    return ops.reshape(tall, (batch, ops.shape(tall)[1], target_width, channels))
