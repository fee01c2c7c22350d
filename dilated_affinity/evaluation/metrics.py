"""Keras metrics: mean IoU, pixel accuracy, boundary IoU and affinity accuracy.

Every metric counts in 64 bits: a float32 count stops growing at 2^24, about 64 crops of 513x513,
and an int32 one turns negative at 2^31, after some 500 steps of 16 such crops.
"""

import keras
import numpy as np
from keras import ops

from dilated_affinity.affinity.geometry import NEIGHBORS, check_rates
from dilated_affinity.affinity.interpolation import check_grid, grid_offset
from dilated_affinity.affinity.statistics import COUNTS
from dilated_affinity.errors import ConfigError
from dilated_affinity.evaluation.pair_counts import pair_counts
from dilated_affinity.evaluation.pixel_counts import (
    DILATION_RATIO,
    boundary_counts,
    confusion_matrix,
)

_WORD = 2**30
"""The unit of the upper of two words."""


def _in_words():
    """Whether each count is stored in two words: under JAX, whose integers have 32 bits."""
    return keras.backend.backend() == "jax"


class _Counts(keras.metrics.Metric):
    """A metric that sums integers in variables."""

    def add_counts(self, name, shape):
        shape, dtype = ((2, *shape), "int32") if _in_words() else (shape, "int64")
        return self.add_weight(shape=shape, initializer="zeros", dtype=dtype, name=name)

    def add_to(self, variable, counts):
        """Adds counts, each below 2^30."""
        counts = ops.cast(counts, variable.dtype)
        if _in_words():
            lower = variable[0] + counts
            variable.assign(ops.stack([lower % _WORD, variable[1] + lower // _WORD]))
        else:
            variable.assign_add(counts)

    def approximate(self, variable):
        """The counts as a float32 tensor."""
        counts = ops.cast(variable, "float32")
        return counts[1] * _WORD + counts[0] if _in_words() else counts

    def exact(self, variable) -> np.ndarray:
        """The counts as an int64 array."""
        counts = np.asarray(ops.convert_to_numpy(variable)).astype(np.int64)
        return counts[1] * _WORD + counts[0] if _in_words() else counts


@keras.saving.register_keras_serializable("dilated_affinity")
class MeanIoU(_Counts):
    """Mean intersection over union from one int64 confusion matrix over all pixels.

    The mean is over the classes that occur in the labels, whatever is predicted, so that all means
    over a split are over the same classes. Void pixels are left out, as are labels and predictions
    outside the range of classes. 0 before the first pixel.

    Args:
        num_classes: C, at least 2.
        ignore_label: The void label. Defaults to 255.
        name: Name of the metric. Defaults to `"mean_iou"`.

    Call arguments:
        y_true: Labels, shape (B, H, W).
        y_pred: Predicted classes of the same shape, integers; or scores (logits or probabilities)
            of shape (B, H, W, C), of which the largest counts.

    Example:

    >>> metric = MeanIoU(num_classes=3)
    >>> metric.update_state([[[0, 0, 1, 255]]], [[[0, 1, 1, 2]]])
    >>> float(metric.result())
    0.5
    >>> metric.class_iou().tolist()
    [0.5, 0.5, nan]
    """

    def __init__(self, num_classes, ignore_label=255, name="mean_iou", dtype=None):
        super().__init__(name=name, dtype=dtype)
        if num_classes < 2:
            raise ConfigError(f"num_classes must be at least 2. Received: {num_classes}")
        self.num_classes = int(num_classes)
        self.ignore_label = int(ignore_label)
        self.confusion = self.add_counts("confusion", (self.num_classes, self.num_classes))

    def update_state(self, y_true, y_pred, sample_weight=None):
        _refuse_sample_weight(self, sample_weight)
        labels, predictions = _label_maps(y_true, y_pred, self.num_classes)
        counts = confusion_matrix(labels, predictions, self.num_classes, self.ignore_label)
        self.add_to(self.confusion, counts)

    def result(self):
        matrix = self.approximate(self.confusion)
        return _mean_iou(ops.diagonal(matrix), ops.sum(matrix, axis=1), ops.sum(matrix, axis=0))

    def class_iou(self) -> np.ndarray:
        """IoU of each class, float64 (C,); NaN for a class that the labels lack."""
        return iou_of_confusion(self.confusion_matrix())

    def pixel_accuracy(self) -> float:
        """Share of the non-void pixels that are predicted correctly; NaN before the first pixel."""
        return accuracy_of_confusion(self.confusion_matrix())

    def confusion_matrix(self) -> np.ndarray:
        """int64 (C, C): rows are labels, columns predictions."""
        return self.exact(self.confusion)

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "ignore_label": self.ignore_label,
        }


@keras.saving.register_keras_serializable("dilated_affinity")
class PixelAccuracy(_Counts):
    """Share of the non-void pixels whose largest score is that of their class.

    Cheaper than `MeanIoU`, for display during training. 0 before the first pixel.

    Args:
        ignore_label: The void label. Defaults to 255.
        name: Name of the metric. Defaults to `"accuracy"`.

    Call arguments:
        y_true: Labels, shape (B, H, W).
        y_pred: Scores, shape (B, H, W, C), or predicted classes (B, H, W).
    """

    def __init__(self, ignore_label=255, name="accuracy", dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.ignore_label = int(ignore_label)
        self.counts = self.add_counts("counts", (2,))

    def update_state(self, y_true, y_pred, sample_weight=None):
        _refuse_sample_weight(self, sample_weight)
        labels, predictions = _label_maps(y_true, y_pred)
        not_void = labels != self.ignore_label
        right = not_void & (labels == predictions)
        self.add_to(
            self.counts,
            ops.stack([ops.sum(ops.cast(each, "int32")) for each in (right, not_void)]),
        )

    def result(self):
        counts = self.approximate(self.counts)
        return counts[0] / ops.maximum(counts[1], 1.0)

    def get_config(self):
        return {**super().get_config(), "ignore_label": self.ignore_label}


@keras.saving.register_keras_serializable("dilated_affinity")
class BoundaryIoU(_Counts):
    """Mean boundary IoU (Cheng et al., CVPR 2021): IoU of the classes' boundary regions.

    The boundary region of a class consists of its pixels within distance d of a pixel of another
    class, where d is `dilation_ratio` times the image diagonal (at least 1 pixel) and distance
    counts steps to any of eight neighbours, as the authors' erosion does. Void pixels, and those
    outside the range of classes, are left out and form no boundary; neither does the image border
    (in the authors' code, for single objects, it does). The mean is over the classes with a
    boundary region in the labels, whatever is predicted.

    Args:
        num_classes: C, at least 2.
        ignore_label: The void label. Defaults to 255.
        dilation_ratio: d relative to the image diagonal. Defaults to 0.02, the authors' value.
        name: Name of the metric. Defaults to `"boundary_iou"`.

    Call arguments: as `MeanIoU`.
    """

    def __init__(
        self,
        num_classes,
        ignore_label=255,
        dilation_ratio=DILATION_RATIO,
        name="boundary_iou",
        dtype=None,
    ):
        super().__init__(name=name, dtype=dtype)
        if num_classes < 2:
            raise ConfigError(f"num_classes must be at least 2. Received: {num_classes}")
        if not 0 < dilation_ratio < 1:
            raise ConfigError(f"dilation_ratio must be between 0 and 1. Received: {dilation_ratio}")
        self.num_classes = int(num_classes)
        self.ignore_label = int(ignore_label)
        self.dilation_ratio = float(dilation_ratio)
        # Pixels of the boundary regions in both, in the labels and in the predictions.
        self.regions = self.add_counts("regions", (3, self.num_classes))

    def update_state(self, y_true, y_pred, sample_weight=None):
        _refuse_sample_weight(self, sample_weight)
        labels, predictions = _label_maps(y_true, y_pred, self.num_classes)
        counts = boundary_counts(
            labels, predictions, self.num_classes, self.ignore_label, self.dilation_ratio
        )
        self.add_to(self.regions, counts)

    def result(self):
        return _mean_iou(*ops.unstack(self.approximate(self.regions), num=3))

    def class_iou(self) -> np.ndarray:
        """Boundary IoU of each class, float64 (C,); NaN without a boundary region in the labels."""
        return _class_iou(*self.exact(self.regions))

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "ignore_label": self.ignore_label,
            "dilation_ratio": self.dilation_ratio,
        }


@keras.saving.register_keras_serializable("dilated_affinity")
class AffinityAccuracy(_Counts):
    """Share of the existing pairs whose affinity is predicted correctly, "same" above 0.5.

    Counted separately for every rate and every category n0 to n8 of the pixel (Fig. 4).

    Args:
        rates: Text such as `"8,(12,24),16"`, or numbers and (vertical, horizontal) pairs.
        logits_stride: Stride of the logits' grid, as for `AffinityLoss`: above 1, only the pixels
            of that grid are counted. Defaults to 1.
        padding: As for `AffinityLoss`.
        name: Name of the metric. Defaults to `"accuracy"`.

    Call arguments:
        y_true: Targets as `affinity_targets` returns them, shape (B, H, W, 8|R|).
        y_pred: Logits of the same shape, or at `logits_stride`.
    """

    def __init__(self, rates, logits_stride=1, padding="same", name="accuracy", dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.rates = check_rates(rates)
        check_grid(logits_stride, padding)
        self.logits_stride = logits_stride
        self.padding = padding
        self.pairs = self.add_counts("pairs", (2, len(self.rates), COUNTS))

    def update_state(self, y_true, y_pred, sample_weight=None):
        _refuse_sample_weight(self, sample_weight)
        targets, logits = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
        channels = NEIGHBORS * len(self.rates)
        if targets.shape[-1] != channels or logits.shape[-1] != channels:
            raise ValueError(
                f"y_true and y_pred must have {channels} channels, 8 for each rate. "
                f"Received: shapes {tuple(targets.shape)} and {tuple(logits.shape)}"
            )
        if self.logits_stride > 1:
            height, width = ops.shape(targets)[1:3]
            top = grid_offset(height, self.logits_stride, self.padding)
            left = grid_offset(width, self.logits_stride, self.padding)
            # The last feature may belong to a pixel beyond the border, which has no target.
            targets = targets[:, top :: self.logits_stride, left :: self.logits_stride]
            height, width = ops.shape(targets)[1:3]
            logits = logits[:, :height, :width]
        self.add_to(self.pairs, pair_counts(targets, logits))

    def result(self):
        right, existing = ops.unstack(ops.sum(self.approximate(self.pairs), axis=(1, 2)), axis=0)
        return right / ops.maximum(existing, 1.0)

    def by_rate(self) -> np.ndarray:
        """Accuracy by rate, float64 (|R|,); NaN without a pair."""
        return self._ratio(axis=1)

    def by_count(self) -> np.ndarray:
        """Accuracy by category n0 to n8, over all rates, float64 (9,); NaN without a pair."""
        return self._ratio(axis=0)

    def by_rate_and_count(self) -> np.ndarray:
        """Accuracy by rate and category, float64 (|R|, 9); NaN without a pair."""
        return self._ratio(axis=())

    def _ratio(self, axis):
        right, existing = self.exact(self.pairs)
        return _ratio(right.sum(axis=axis), existing.sum(axis=axis))

    def get_config(self):
        return {
            **super().get_config(),
            "rates": [list(rate) for rate in self.rates],
            "logits_stride": self.logits_stride,
            "padding": self.padding,
        }


def iou_of_confusion(matrix) -> np.ndarray:
    """Computes the IoU of each class of an int64 (C, C) matrix whose rows are labels.

    Returns:
        float64 (C,); NaN for a class that the labels lack. (With 0 for such a class where it is
        predicted, the mean would rise when it is no longer predicted.)
    """
    return _class_iou(np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0))


def accuracy_of_confusion(matrix) -> float:
    """Computes the share of pixels on the diagonal of a confusion matrix; NaN if it is all 0."""
    return float(_ratio(np.trace(matrix), matrix.sum()))


def mean_over_classes(class_iou) -> np.ndarray:
    """Averages IoU over the classes that occur in the labels.

    Args:
        class_iou: IoU of each class, float (..., C); NaN for classes that the labels lack.

    Returns:
        float64 (...); NaN where no class occurs.

    Example:

    >>> mean_over_classes([[0.5, 0.7, np.nan], [0.5, 0.8, np.nan]]).tolist()
    [0.6, 0.65]
    """
    class_iou = np.ascontiguousarray(class_iou, float)
    seen = ~np.isnan(class_iou)
    return _ratio(np.where(seen, class_iou, 0).sum(axis=-1), np.count_nonzero(seen, axis=-1))


def _class_iou(intersection, labels, predictions):
    """IoU from numbers of pixels; NaN where the labels have none."""
    return np.where(labels > 0, _ratio(intersection, labels + predictions - intersection), np.nan)


def _mean_iou(intersection, labels, predictions):
    """The mean of `_class_iou` as a float32 tensor; 0 where no class occurs."""
    iou = intersection / ops.maximum(labels + predictions - intersection, 1.0)
    present = ops.cast(labels > 0, "float32")
    return ops.sum(iou * present) / ops.maximum(ops.sum(present), 1.0)


def _ratio(part, whole):
    """`part / whole`, NaN where that is 0."""
    part, whole = np.broadcast_arrays(part, whole)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _label_maps(y_true, y_pred, num_classes=None):
    """Labels and predicted classes, int32 (B, H, W)."""
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
        predictions = ops.argmax(predictions, axis=-1)
    return ops.cast(labels, "int32"), ops.cast(predictions, "int32")


def _refuse_sample_weight(metric, sample_weight):
    if sample_weight is not None:
        raise ValueError(f"{type(metric).__name__} counts whole pixels: no sample_weight.")
