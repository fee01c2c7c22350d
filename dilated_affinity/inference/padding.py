"""Padding images of many sizes to few, for code that is compiled for each shape."""

import numpy as np
from keras import ops


class PaddedShapes:
    """Sizes to pad to, so that code compiled for each shape is compiled for few.

    The first size is used as it is: most data sets have one. A later size takes the smallest
    earlier one that holds it and has at most twice its pixels; failing that, its sides are
    rounded up to multiples of `step`. After three, any that holds it will do; failing that, one is
    made that holds all before it, too, its sides multiples of twice that. So photographs within
    512x512 need at most four.

    Args:
        step: What sides are rounded up to, in pixels. Defaults to 256.

    Example:

    >>> padded_shapes = PaddedShapes()
    >>> [padded_shapes.round_up(size) for size in ((375, 500), (333, 500), (500, 375), (60, 80))]
    [(375, 500), (375, 500), (512, 512), (256, 256)]
    """

    _OF_THEIR_OWN = 3

    def __init__(self, step=256):
        self._step = step
        self._known = []

    def fit(self, size) -> tuple[int, int]:
        """The (height, width) to pad an image of the given (height, width) to."""
        height, width = size
        choosy = len(self._known) < self._OF_THEIR_OWN
        holding = [
            (h, w)
            for h, w in self._known
            if h >= height and w >= width and (not choosy or h * w <= 2 * height * width)
        ]
        if holding:
            return min(holding, key=lambda canvas: canvas[0] * canvas[1])
        if not self._known:
            canvas = (height, width)
        elif choosy:
            canvas = _rounded_up(size, self._step)
        else:
            largest = map(max, zip(size, *self._known, strict=True))
            canvas = _rounded_up(largest, 2 * self._step)
        self._known.append(canvas)
        return canvas


def _rounded_up(sides, step):
    return tuple(-(-side // step) * step for side in sides)


def pad_to(array, canvas, value=0) -> np.ndarray:
    """Pads (H, W, ...) at the bottom and right to the canvas, as a batch of one (1, h, w, ...)."""
    array = np.asarray(array)
    rows, columns = (whole - side for whole, side in zip(canvas, array.shape[:2], strict=True))
    widths = [(0, rows), (0, columns)] + [(0, 0)] * (array.ndim - 2)
    return np.pad(array, widths, constant_values=value)[np.newaxis]


def on_canvas(values, canvas):
    """Pads a tensor (B, H, W, C) at the bottom and right to the canvas with 0, where it lies.

    That is, without a copy in the processor's memory; and without any where it has that size.
    """
    rows, columns = (whole - side for whole, side in zip(canvas, values.shape[1:3], strict=True))
    if not rows and not columns:
        return values
    return ops.pad(values, [[0, 0], [0, rows], [0, columns], [0, 0]])
