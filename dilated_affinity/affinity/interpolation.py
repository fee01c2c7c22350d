"""Positions of a strided network's features in the image; bilinear weights between such grids."""

from keras import ops

from dilated_affinity.errors import ConfigError

PADDINGS = ("same", "symmetric")


def grid_offset(image_size, stride, padding="same"):
    """The pixel on which the first feature of a stride is centred, along one axis.

    After strided convolutions feature i is centred on input pixel `stride * i + offset`. The offset
    is 0 for explicit symmetric padding. TensorFlow's `"same"` padding shifts the grid by one pixel
    of the level wherever a side is even, so the offset depends on the image's size; it is 0 for
    sides of the form k * stride + 1.

    Args:
        image_size: Side of the image in pixels, int or integer scalar tensor.
        stride: Stride of the features, a power of two.
        padding: `"same"` or `"symmetric"`, the padding of the network's strided layers.

    Returns:
        The offset in pixels, an int or a scalar tensor as `image_size` is.
    """
    offset, level = 0, 1
    while padding == "same" and level < stride:
        # An even side is padded at its end only: the first window is centred on pixel 1.
        offset += level * ((image_size + 1) % 2)
        image_size = (image_size + 1) // 2
        level *= 2
    return offset


def check_grid(stride, padding):
    """Raises `ConfigError` unless `grid_offset` supports this stride and padding."""
    if padding not in PADDINGS:
        raise ConfigError(
            f"padding must be one of {', '.join(PADDINGS)}. Received: padding={padding!r}"
        )
    if type(stride) is not int or stride < 1 or stride & (stride - 1):
        raise ConfigError(f"A stride must be a power of two. Received: {stride!r}")


def interpolation_matrix(source_size, image_size, source_stride, target_stride, padding, dtype):
    """Weights of bilinear interpolation from the grid of one stride to that of another.

    Args:
        source_size: Number of features along the axis.
        image_size: Side of the image in pixels.
        source_stride: Stride of the features, a power of two.
        target_stride: Stride of the target grid; 1 for the image's pixels.
        padding: `"same"` or `"symmetric"`, the padding of the network's strided layers.
        dtype: Floating-point type of the weights.

    Returns:
        (ceil(image_size / target_stride), source_size); positions outside the outermost features
        use the nearest one.
    """
    # Rounded up. Not as -(-a // b), since ONNX's integer division truncates.
    target_size = (image_size + target_stride - 1) // target_stride
    grids = ops.arange(target_size), ops.arange(source_size, dtype="float32")
    strides = source_stride, target_stride
    return interpolation_weights(*grids, source_size, image_size, *strides, padding, dtype)


def interpolation_weights(
    targets, sources, source_size, image_size, source_stride, target_stride, padding, dtype
):
    """Weights as of `interpolation_matrix` of some features for some positions.

    Args:
        targets: Indices of the positions on the target grid, int (t,).
        sources: Indices of the features, float32 (s,).
        source_size: Number of features along the axis, int or integer scalar tensor.
        image_size: Side of the image in pixels, likewise.
        source_stride: As for `interpolation_matrix`.
        target_stride: As for `interpolation_matrix`.
        padding: As for `interpolation_matrix`.
        dtype: As for `interpolation_matrix`.

    Returns:
        (t, s); 0 for features that do not exist, whose index is below 0 or beyond the last.
    """
    offset = grid_offset(image_size, target_stride, padding) - grid_offset(
        image_size, source_stride, padding
    )
    pixels = targets * target_stride + offset
    positions = ops.cast(pixels, "float32") / source_stride
    positions = ops.clip(positions, 0.0, ops.cast(source_size - 1, "float32"))
    distances = ops.abs(positions[:, None] - sources)
    return ops.cast(ops.maximum(1.0 - distances, 0.0), dtype)
