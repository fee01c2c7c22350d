"""Counting the pixels of label maps: confusion matrices, histograms, and what is near a boundary.

Label maps are int32 (B, H, W). Those with values are counted by NumPy, those of a graph by XLA.
"""

import math

import numpy as np
from keras import ops

from dilated_affinity.runtime.xla import compiled, has_values

_PIECE = 2**16
"""Pixels that NumPy counts at once."""


def confusion_matrix(labels, predictions, num_classes, ignore_label):
    """How many pixels of each label have each prediction: int32 (C, C), rows are labels.

    Pixels of the void label are left out, as are labels and predictions that are no class.
    """
    if has_values(labels) and has_values(predictions):
        # XLA would compile anew for every size of an image.
        pairs = zip(_pieces(labels), _pieces(predictions), strict=True)
        cells = (_cells(*pair, num_classes, ignore_label, np.where) for pair in pairs)
        return _sum_of_bincounts(cells, num_classes**2).reshape(num_classes, num_classes)
    return _confusion_in_graph(labels, predictions, num_classes, ignore_label)


def _cells(labels, predictions, num_classes, ignore_label, where):
    """The cell of the confusion matrix, row by row, into which each pixel falls.

    What is left out falls into one of its own behind the matrix. `where` is that of NumPy or Keras.
    """
    counted = labels != ignore_label
    for classes in (labels, predictions):
        counted = counted & (classes >= 0) & (classes < num_classes)
    return where(counted, labels * num_classes + predictions, num_classes**2)


@compiled
def _confusion_in_graph(labels, predictions, num_classes, ignore_label):
    cells = _cells(labels, predictions, num_classes, ignore_label, ops.where)
    return ops.reshape(bincount(cells, num_classes**2), (num_classes, num_classes))


def bincount(values, bins):
    """How often each of 0 to `bins` - 1 occurs, int32; other values are all `bins`."""
    if has_values(values):
        return _sum_of_bincounts(_pieces(values), bins)
    return _segments(values, bins)


@compiled
def _segments(values, bins):
    # Unlike that of `ops.bincount` the size of a sum over segments is no matter of the values, as
    # XLA needs it. Whole numbers add up to the same in any order, so that deterministic operations
    # allow it on every device; outside XLA TensorFlow's GPUs would refuse.
    flat = ops.reshape(values, (-1,))
    return ops.segment_sum(ops.ones_like(flat), flat, num_segments=bins + 1)[:bins]


def _pieces(values):
    """A tensor's values as one-dimensional arrays that fit into a processor's cache."""
    flat = ops.convert_to_numpy(values).ravel()
    return (flat[start : start + _PIECE] for start in range(0, flat.size, _PIECE))


def _sum_of_bincounts(pieces, bins):
    counts = np.zeros(bins + 1, np.int32)
    for piece in pieces:
        counts += np.bincount(piece, minlength=bins + 1).astype(np.int32)
    return counts[:bins]


def boundary_distance(size, dilation_ratio):
    """Width of boundary regions in images of a size: a number, or a tensor if the size is one."""
    height, width = size
    if isinstance(height, int) and isinstance(width, int):
        return max(round(dilation_ratio * math.hypot(height, width)), 1)
    height, width = ops.cast(height, "float32"), ops.cast(width, "float32")
    diagonal = ops.sqrt(height**2 + width**2)
    return ops.maximum(ops.cast(ops.round(dilation_ratio * diagonal), "int32"), 1)


def near_boundary(classes, void, distance):
    """Whether another class lies within `distance` steps of a pixel; False for void pixels."""
    lowest = -(10**6)
    margin = [[0, 0], [distance, distance], [distance, distance]]
    known = isinstance(distance, int)
    minimum = min if known else ops.minimum

    def largest_nearby(values):
        """Maximum over the square window of radius `distance`."""

        def narrow(_, radius):
            return radius < distance

        def widen(values, radius):
            # The maximum of three windows that touch or overlap is that of one window three
            # times as wide: the number of steps grows with the logarithm of the distance.
            step = minimum(2 * radius + 1, distance - radius)
            for axis in (1, 2):
                forward, backward = ops.roll(values, step, axis), ops.roll(values, -step, axis)
                values = ops.maximum(values, ops.maximum(forward, backward))
            return values, radius + step

        # What rolls around the edge never gets across the margin: the steps add up to its width.
        wide = ops.pad(ops.where(void, lowest, values), margin, constant_values=lowest)
        if known:
            # Under XLA a loop whose steps are not known would not be merged into its readers.
            radius = 0
            while narrow(wide, radius):
                wide, radius = widen(wide, radius)
        else:
            wide, _ = ops.while_loop(narrow, widen, (wide, ops.zeros_like(distance)))
        height, width = ops.shape(values)[1:3]
        return wide[:, distance : distance + height, distance : distance + width]

    highest, smallest = largest_nearby(classes), -largest_nearby(-classes)
    return ~void & ((highest != classes) | (smallest != classes))
