"""Counts over label maps: confusion matrices, histograms and boundary regions.

Label maps are int32 (B, H, W). Those with values are counted by NumPy, those of a graph by XLA.
"""

import math

import keras
import numpy as np
from keras import ops

from dilated_affinity.runtime.xla import compiled, has_values

_PIECE = 2**16
"""Number of pixels that NumPy counts at once."""


def label_maps(y_true, y_pred, num_classes=None):
    """Converts labels, and predicted classes or scores, to label maps.

    Returns:
        Two int32 (B, H, W): tensors, or under JAX arrays unless it traces, since every operation on
        its tensors would be compiled for each size of image.

    Raises:
        ValueError: For other shapes.
    """
    if keras.backend.backend() == "jax" and has_values(y_true) and has_values(y_pred):
        labels, predictions = np.asarray(y_true), np.asarray(y_pred)
    else:
        labels, predictions = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
    if len(labels.shape) != 3 or len(predictions.shape) not in (3, 4):
        raise ValueError(
            "y_true must be (batch, height, width), y_pred the same or with a class axis. "
            f"Received: shapes {tuple(labels.shape)} and {tuple(predictions.shape)}"
        )
    if len(predictions.shape) == 4:
        if num_classes is not None and predictions.shape[-1] != num_classes:
            raise ValueError(
                f"y_pred must have {num_classes} classes. "
                f"Received: shape {tuple(predictions.shape)}"
            )
        predictions = _library(predictions).argmax(predictions, axis=-1)
    if isinstance(labels, np.ndarray):
        return labels.astype(np.int32), predictions.astype(np.int32)
    return ops.cast(labels, "int32"), ops.cast(predictions, "int32")


def _library(values):
    """NumPy for arrays, Keras' operations of the same names for tensors."""
    return np if isinstance(values, np.ndarray) else ops


def confusion_matrix(labels, predictions, num_classes, ignore_label):
    """Counts the pixels of each label with each prediction: int32 (C, C), rows are labels.

    Void pixels are left out, as are labels and predictions outside the range of classes.
    """
    if has_values(labels) and has_values(predictions):
        # XLA would compile once for every size of image.
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
        counted = counted & (classes >= 0) & (classes < num_classes)
    return where(counted, labels * num_classes + predictions, num_classes**2)


@compiled
def _confusion_in_graph(labels, predictions, num_classes, ignore_label):
    cells = _cells(labels, predictions, num_classes, ignore_label, ops.where)
    return ops.reshape(bincount(cells, num_classes**2), (num_classes, num_classes))


def bincount(values, bins):
    """Counts the values 0 to `bins` - 1, int32 (bins,); any other value must be `bins`."""
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
    counts = np.zeros(bins + 1, np.int32)
    for piece in pieces:
        counts += np.bincount(piece, minlength=bins + 1).astype(np.int32)
    return counts[:bins]


def boundary_counts(labels, predictions, num_classes, ignore_label, dilation_ratio):
    """Counts the pixels of each class's boundary regions, int32 (3, C).

    Those in the regions of both maps, of the labels, and of the predictions, see `BoundaryIoU`.
    """
    library = _library(labels)
    distance = boundary_distance(library.shape(labels)[1:3], dilation_ratio)
    void = labels == ignore_label
    # Class C of C + 1: the pixels that belong to no boundary region.
    regions = [
        library.where(near_boundary(classes, void, distance), classes, num_classes)
        for classes in (labels, predictions)
    ]
    agreed = library.where(regions[0] == regions[1], regions[0], num_classes)
    return ops.stack([bincount(each, num_classes) for each in (agreed, *regions)])


def boundary_distance(size, dilation_ratio):
    """Returns the width of boundary regions for a size of image, as a tensor if the size is one."""
    height, width = size
    if isinstance(height, int) and isinstance(width, int):
        return max(round(dilation_ratio * math.hypot(height, width)), 1)
    height, width = ops.cast(height, "float32"), ops.cast(width, "float32")
    diagonal = ops.sqrt(height**2 + width**2)
    return ops.maximum(ops.cast(ops.round(dilation_ratio * diagonal), "int32"), 1)


def near_boundary(classes, void, distance):
    """Returns whether another class is within `distance` steps of a pixel; False for void."""
    lowest = -(10**6)
    margin = [[0, 0], [distance, distance], [distance, distance]]
    known = isinstance(distance, int)
    minimum = min if known else ops.minimum
    library = _library(classes)

    def largest_nearby(values):
        """The maximum over the square window of radius `distance`."""

        def narrow(_, radius):
            return radius < distance

        def widen(values, radius):
            # The maximum of three windows that touch or overlap is that of a window three times as
            # wide, so that the number of steps grows with the logarithm of the distance.
            step = minimum(2 * radius + 1, distance - radius)
            for axis in (1, 2):
                forward = library.roll(values, step, axis)
                backward = library.roll(values, -step, axis)
                values = library.maximum(values, library.maximum(forward, backward))
            return values, radius + step

        # Values that roll over the edge stay in the margin: the steps add up to its width.
        wide = library.pad(library.where(void, lowest, values), margin, constant_values=lowest)
        if known:
            # XLA does not fuse a loop with an unknown number of steps into other operations.
            radius = 0
            while narrow(wide, radius):
                wide, radius = widen(wide, radius)
        else:
            wide, _ = ops.while_loop(narrow, widen, (wide, ops.zeros_like(distance)))
        height, width = library.shape(values)[1:3]
        return wide[:, distance : distance + height, distance : distance + width]

    highest, smallest = largest_nearby(classes), -largest_nearby(-classes)
    return ~void & ((highest != classes) | (smallest != classes))
