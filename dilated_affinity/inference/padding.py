"""Padding of images of many sizes to few shapes, for code that is compiled for each shape."""

import keras
import numpy as np
from keras import ops


class PaddedShapes:
    """The shapes that images are padded to, so that code compiled by shape is compiled for few.

    The first size is used as it is: most data sets have one. A later size takes the smallest
    earlier shape that holds it and has at most twice its pixels; without one, its sides are rounded
    up to multiples of `step`. After three shapes, any that holds the image is taken; without one, a
    shape is added that holds all earlier ones as well, its sides multiples of twice `step`.
    Photographs within 512x512 need at most four shapes.

    Args:
        step: Multiple to which sides are rounded up, in pixels. Defaults to 256.

    Example:

    >>> padded_shapes = PaddedShapes()
    >>> [padded_shapes.round_up(size) for size in ((375, 500), (333, 500), (500, 375), (60, 80))]
    [(375, 500), (375, 500), (512, 512), (256, 256)]
    """

    _STRICT_SHAPES = 3

    def __init__(self, step=256):
        self._step = step
        self._known = []

    def round_up(self, size) -> tuple[int, int]:
        """The (height, width) to pad an image of the given (height, width) to."""
        height, width = size
        strict = len(self._known) < self._STRICT_SHAPES
        holding = [
            (h, w)
            for h, w in self._known
            if h >= height and w >= width and (not strict or h * w <= 2 * height * width)
        ]
        if holding:
            return min(holding, key=lambda shape: shape[0] * shape[1])
        if not self._known:
            shape = (height, width)
        elif strict:
            shape = _rounded_up(size, self._step)
        else:
            largest = map(max, zip(size, *self._known, strict=True))
            shape = _rounded_up(largest, 2 * self._step)
        self._known.append(shape)
        return shape


def _rounded_up(sides, step):
    return tuple(-(-side // step) * step for side in sides)


def pad_to(array, shape, value=0) -> np.ndarray:
    """Pads an array at the bottom and right.

    Args:
        array: (H, W, ...).
        shape: Height h and width w of the result.
        value: Value of the padding. Defaults to 0.

    Returns:
        A batch of one, (1, h, w, ...).
    """
    array = np.asarray(array)
    rows, columns = (whole - side for whole, side in zip(shape, array.shape[:2], strict=True))
    widths = [(0, rows), (0, columns)] + [(0, 0)] * (array.ndim - 2)
    return np.pad(array, widths, constant_values=value)[np.newaxis]


def pad_on_device(values, shape):
    """Pads a tensor at the bottom and right by 0, without a copy in the host's memory.

    Args:
        values: Tensor (B, H, W, C).
        shape: Height h and width w of the result.

    Returns:
        Tensor (B, h, w, C); `values` itself if it has that shape.
    """
    rows, columns = (whole - side for whole, side in zip(shape, values.shape[1:3], strict=True))
    if not rows and not columns:
        return values
    return ops.pad(values, [[0, 0], [0, rows], [0, columns], [0, 0]])


def crop(values, size):
    """Cuts the padding off again.

    Args:
        values: Tensor (B, h, w, ...).
        size: Height H and width W to keep.

    Returns:
        (B, H, W, ...): a tensor; under JAX an array in the host's memory, since a slice on the
        device would be compiled for each size. `values` itself if it has that size.
    """
    if tuple(values.shape[1:3]) == tuple(size):
        return values
    if keras.backend.backend() == "jax":
        values = np.asarray(values)
    return values[:, : size[0], : size[1]]
