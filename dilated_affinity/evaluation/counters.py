"""Counters of the predictions of a split, on the host.

They count what `MeanIoU` and `BoundaryIoU` count, without Keras: nothing is compiled or moved to a
device, and what depends on the label alone is computed once for all predictions of an image.
"""

import functools

import numpy as np

from dilated_affinity.evaluation.metrics import accuracy_of_confusion, iou_of_confusion
from dilated_affinity.evaluation.pixel_counts import (
    DILATION_RATIO,
    boundary_distance,
    boundary_regions,
    outside,
)


class LabelMap:
    """The label of an image, with which counters compare predictions.

    Predictions are integers (1, H, W), from 0 to C - 1.

    Args:
        classes: Integers (1, H, W).
        num_classes: C.
        ignore_label: The void label. Defaults to 255.
    """

    def __init__(self, classes, num_classes, ignore_label=255):
        self._classes = np.asarray(classes)
        self._num_classes = num_classes
        self._void = (self._classes == ignore_label) | outside(self._classes, num_classes)

    def confusion_matrix(self, predicted) -> np.ndarray:
        """Counts the pixels of each label with each prediction: integers (C, C), rows are labels.

        Void pixels are left out, as are labels outside the range of classes.
        """
        return _histogram(self._rows, predicted, self._num_classes)

    def boundary_confusion_matrix(self, predicted) -> np.ndarray:
        """Counts likewise with class C for pixels in no boundary region, (C + 1, C + 1)."""
        return _histogram(self._boundary_rows, self._regions(predicted), self._num_classes + 1)

    @functools.cached_property
    def _rows(self):
        return _rows(np.where(self._void, self._num_classes, self._classes), self._num_classes)

    @functools.cached_property
    def _boundary_rows(self):
        return _rows(self._regions(self._classes), self._num_classes + 1)

    def _regions(self, classes):
        distance = boundary_distance(self._void.shape[1:], DILATION_RATIO)
        return boundary_regions(classes, self._void, distance, self._num_classes)


class ClassCounter:
    """Counts the pixels of each label with each prediction, as `MeanIoU` does.

    Args:
        num_classes: C.
    """

    def __init__(self, num_classes):
        self._confusion = np.zeros((num_classes, num_classes), np.int64)

    def update_state(self, label: LabelMap, predicted):
        """Adds an image, whose predicted classes are integers (1, H, W)."""
        self._confusion += label.confusion_matrix(predicted)

    def class_iou(self) -> np.ndarray:
        """IoU of each class, float64 (C,); NaN for a class that the labels lack."""
        return iou_of_confusion(self._confusion)

    def pixel_accuracy(self) -> float:
        """Share of the non-void pixels that are predicted correctly; NaN before the first pixel."""
        return accuracy_of_confusion(self._confusion)

    def confusion_matrix(self) -> np.ndarray:
        """int64 (C, C): rows are labels, columns predictions."""
        return self._confusion.copy()


class BoundaryCounter:
    """Counts the pixels of the classes' boundary regions, as `BoundaryIoU` does.

    Args:
        num_classes: C.
    """

    def __init__(self, num_classes):
        self._confusion = np.zeros((num_classes + 1, num_classes + 1), np.int64)

    def update_state(self, label: LabelMap, predicted):
        """Adds an image, whose predicted classes are integers (1, H, W)."""
        self._confusion += label.boundary_confusion_matrix(predicted)

    def class_iou(self) -> np.ndarray:
        """Boundary IoU of each class, float64 (C,); NaN without a boundary region in the labels."""
        return iou_of_confusion(self._confusion)[:-1]


def _rows(labels, num_columns):
    """The index of the first cell of each label's row in a matrix that is stored row by row."""
    return labels.astype(np.int32) * num_columns


def _histogram(rows, columns, size):
    """Counts the cells of a matrix (size, size); a row beyond it is left out."""
    if columns.min() < 0 or columns.max() >= size:
        raise ValueError(
            f"Predictions must be classes from 0 to {size - 1}. "
            f"Received: from {columns.min()} to {columns.max()}"
        )
    counts = np.bincount((rows + columns).ravel(), minlength=(size + 1) * size)
    return counts[: size * size].reshape(size, size)
