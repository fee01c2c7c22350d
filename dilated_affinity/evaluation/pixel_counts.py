"""Counts over label maps: confusion matrices, histograms and boundary regions.

Label maps are int32 (B, H, W); those of `boundary_regions` may be arrays of other integers. Arrays
and eager tensors are counted by NumPy and OpenCV, since XLA would compile once for every size of
image; tensors of a graph by XLA.
"""

import math

import cv2
import numpy as np
from keras import ops

from dilated_affinity.runtime.xla import compiled, has_values

DILATION_RATIO = 0.02
"""Width of boundary regions relative to the image diagonal, of the authors of boundary IoU."""

_PIECE = 2**16
"""Number of pixels that NumPy counts at once."""


def confusion_matrix(labels, predictions, num_classes, ignore_label):
    """Counts the pixels of each label with each prediction: integers (C, C), rows are labels.

    Void pixels are left out, as are labels and predictions outside the range of classes.
    """
    if has_values(labels) and has_values(predictions):
        pairs = zip(_pieces(labels), _pieces(predictions), strict=True)
        cells = (_cells(*pair, num_classes, ignore_label, np.where) for pair in pairs)
        return _sum_of_bincounts(cells, num_classes**2).reshape(num_classes, num_classes)
    return _confusion_in_graph(labels, predictions, num_classes, ignore_label)


def _cells(labels, predictions, num_classes, ignore_label, where):
    """The index of each pixel's cell in the confusion matrix, row by row.

    Pixels that are left out have an index beyond the matrix. `where` is that of NumPy or Keras.
    """
    counted = labels != ignore_label
    for classes in (labels, predictions):
        counted = counted & ~outside(classes, num_classes)
    return where(counted, labels * num_classes + predictions, num_classes**2)


@compiled
def _confusion_in_graph(labels, predictions, num_classes, ignore_label):
    cells = _cells(labels, predictions, num_classes, ignore_label, ops.where)
    return ops.reshape(bincount(cells, num_classes**2), (num_classes, num_classes))


def outside(classes, num_classes):
    """Returns where labels or predictions are none of the classes 0 to `num_classes` - 1."""
    return (classes < 0) | (classes >= num_classes)


def bincount(values, bins):
    """Counts the values 0 to `bins` - 1, integers (bins,); any other value must be `bins`."""
    if has_values(values):
        return _sum_of_bincounts(_pieces(values), bins)
    return _segments(values, bins)


@compiled
def _segments(values, bins):
    # Unlike `ops.bincount`, a sum over segments has a size that does not depend on the values, as
    # XLA requires. Sums of integers do not depend on the order, so that the operation is allowed
    # in deterministic mode on every device; outside XLA, TensorFlow refuses it on GPUs.
    flat = ops.reshape(values, (-1,))
    return ops.segment_sum(ops.ones_like(flat), flat, num_segments=bins + 1)[:bins]


def _pieces(values):
    """The values of a tensor as one-dimensional arrays that fit into the processor's cache."""
    flat = ops.convert_to_numpy(values).ravel()
    return (flat[start : start + _PIECE] for start in range(0, flat.size, _PIECE))


def _sum_of_bincounts(pieces, bins):
    counts = np.zeros(bins + 1, int)
    for piece in pieces:
        counts += np.bincount(piece, minlength=bins + 1)
    return counts[:bins]


def boundary_counts(labels, predictions, num_classes, ignore_label, dilation_ratio):
    """Counts the pixels of the classes' boundary regions.

    Returns:
        Integers (3, C): pixels in the regions of both, of the labels, and of the predictions.
    """
    distance = boundary_distance(ops.shape(labels)[1:3], dilation_ratio)
    void = labels == ignore_label
    for classes in (labels, predictions):
        void = void | outside(classes, num_classes)
    regions = [
        boundary_regions(classes, void, distance, num_classes) for classes in (labels, predictions)
    ]
    agreed = ops.where(regions[0] == regions[1], regions[0], num_classes)
    return ops.stack([bincount(each, num_classes) for each in (agreed, *regions)])


def boundary_distance(size, dilation_ratio):
    """Returns the width of boundary regions for a size of image, as a tensor if the size is one."""
    height, width = size
    if isinstance(height, int) and isinstance(width, int):
        return max(round(dilation_ratio * math.hypot(height, width)), 1)
    height, width = ops.cast(height, "float32"), ops.cast(width, "float32")
    diagonal = ops.sqrt(height**2 + width**2)
    return ops.maximum(ops.cast(ops.round(dilation_ratio * diagonal), "int32"), 1)


def boundary_regions(classes, void, distance, num_classes):
    """Returns the class of the pixels in boundary regions, and `num_classes` for all others.

    Args:
        classes: Labels or predictions.
        void: bool (B, H, W), the pixels to leave out.
        distance: The width of the regions in pixels, see `boundary_distance`.
        num_classes: C.

    Returns:
        Integers (B, H, W), on the host where `classes` has values.
    """
    if has_values(classes):
        classes, void = ops.convert_to_numpy(classes), ops.convert_to_numpy(void)
        near = _near_boundary_on_host(classes, void, distance)
        return _select(near, classes, np.min_scalar_type(num_classes).type(num_classes))
    return ops.where(_near_boundary_in_graph(classes, void, distance), classes, num_classes)


def _near_boundary_on_host(classes, void, distance):
    """Returns whether another class is within `distance` steps of a pixel; False for void."""
    # The smallest types of OpenCV that hold all labels of a data set, and any others.
    in_a_byte = 0 <= classes.min() and classes.max() < 256
    classes = classes.astype(np.uint8 if in_a_byte else np.float64)
    # In place of void these change no maximum and minimum of a window around another pixel.
    lowest, highest = classes.min(), classes.max()
    window = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
    near = np.empty(void.shape, bool)
    for image, left_out, found in zip(classes, void, near, strict=True):
        largest = cv2.dilate(_select(left_out, lowest, image), window)
        smallest = cv2.erode(_select(left_out, highest, image), window)
        found[:] = ~left_out & (largest != smallest)
    return near


def _select(condition, values, others):
    """As `np.where` of whole numbers, without a branch for each pixel, which takes longer."""
    # Unsigned differences may wrap around; adding `others` wraps them back.
    return condition.view(np.uint8) * (values - others) + others


def _near_boundary_in_graph(classes, void, distance):
    """As `_near_boundary_on_host`; the distance may be a tensor."""
    lowest = -(10**6)
    margin = [[0, 0], [distance, distance], [distance, distance]]
    known = isinstance(distance, int)
    minimum = min if known else ops.minimum

    def largest_nearby(values):
        """The maximum over the square window of radius `distance`."""

        def narrow(_, radius):
            return radius < distance

        def widen(values, radius):
            # The maximum of three windows that touch or overlap is that of a window three times as
            # wide, so that the number of steps grows with the logarithm of the distance.
            step = minimum(2 * radius + 1, distance - radius)
            for axis in (1, 2):
                forward, backward = ops.roll(values, step, axis), ops.roll(values, -step, axis)
                values = ops.maximum(values, ops.maximum(forward, backward))
            return values, radius + step

        # Values that roll over the edge stay in the margin: the steps add up to its width.
        wide = ops.pad(ops.where(void, lowest, values), margin, constant_values=lowest)
        if known:
            # XLA does not fuse a loop with an unknown number of steps into other operations.
            radius = 0
            while narrow(wide, radius):
                wide, radius = widen(wide, radius)
        else:
            wide, _ = ops.while_loop(narrow, widen, (wide, ops.zeros_like(distance)))
        height, width = ops.shape(values)[1:3]
        return wide[:, distance : distance + height, distance : distance + width]

    highest, smallest = largest_nearby(classes), -largest_nearby(-classes)
    return ~void & ((highest != classes) | (smallest != classes))
