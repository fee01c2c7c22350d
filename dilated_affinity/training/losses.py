"""The semantic loss."""

import contextlib
import sys
from collections.abc import Mapping, Set
from numbers import Real

import keras
import numpy as np
from keras import ops

from dilated_affinity.errors import ConfigError
from dilated_affinity.runtime.distribution import mean_over_counted


@keras.saving.register_keras_serializable("dilated_affinity")
class SemanticLoss(keras.losses.Loss):
    """Softmax cross entropy from logits, in float32, averaged over the non-void pixels.

    With the default reduction, `"sum_over_batch_size"`, the loss is the sum over non-void pixels
    of the batch, on all replicas, divided by their number, and 0 if all pixels are void.
    Per-pixel values (`reduction="none"`) are scaled so that their mean over all pixels is that
    scalar. A `sample_weight` of shape (B, H, W) multiplies the pixels' losses and leaves the
    divisor.

    With `class_weights` it is the weighted mean, as in PyTorch's `CrossEntropyLoss`: a pixel's loss
    is multiplied by the weight of its class, and the sum is divided by the sum of the weights of
    the non-void pixels. Therefore only the ratios of the weights matter; equal weights give the
    plain mean.

    Args:
        ignore_label: The void label. Defaults to 255.
        class_weights: A number of at least 0 for each class in order, one of them above 0; None
            for the plain mean. Defaults to None.
        reduction: See `keras.losses.Loss`.
        name: Name of the loss.

    Call arguments:
        y_true: Labels, shape (B, H, W): classes 0 to C-1 and `ignore_label`.
        y_pred: Logits, shape (B, H, W, C).

    Raises:
        ConfigError: For invalid class weights.
        ValueError: When called on logits whose number of classes is not that of the weights.

    Example:

    >>> import numpy as np
    >>> labels = np.array([[[0, 255]]])
    >>> logits = np.array([[[[0.0, 0.0], [9.0, 1.0]]]])
    >>> round(float(SemanticLoss()(labels, logits)), 4)
    0.6931
    """

    def __init__(
        self,
        ignore_label=255,
        class_weights=None,
        reduction="sum_over_batch_size",
        name="semantic_loss",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.ignore_label = int(ignore_label)
        self.class_weights = None if class_weights is None else check_class_weights(class_weights)

    def call(self, y_true, y_pred):
        labels = ops.cast(y_true, "int32")
        not_void = labels != self.ignore_label
        losses = ops.sparse_categorical_crossentropy(
            ops.where(not_void, labels, 0), y_pred, from_logits=True
        )
        counted = ops.cast(not_void, losses.dtype)
        if self.class_weights is not None:
            if y_pred.shape[-1] != len(self.class_weights):
                raise ValueError(
                    f"y_pred must have {len(self.class_weights)} classes, as class_weights. "
                    f"Received: shape {tuple(y_pred.shape)}"
                )
            # Only ratios matter, and those of any weights are finite in float32.
            table = np.array(self.class_weights) / max(self.class_weights)
            table = table.astype("float32")
            counted = counted * ops.take(table, ops.where(not_void, labels, 0))
        return mean_over_counted(losses * counted, ops.sum(counted))

    def get_config(self):
        return {
            **super().get_config(),
            "ignore_label": self.ignore_label,
            "class_weights": None if self.class_weights is None else list(self.class_weights),
        }


def check_class_weights(class_weights, num_classes: int | None = None) -> tuple[float, ...]:
    """Returns class weights as a tuple of floats.

    Args:
        class_weights: A sequence of numbers of at least 0, one of them above 0, in the order of the
            classes; no dict as of Keras' `class_weight`.
        num_classes: Number of classes; None for any.

    Raises:
        ConfigError: If they are invalid.
    """
    weights = ()
    if not isinstance(class_weights, str | bytes | Mapping | Set):
        with contextlib.suppress(TypeError):  # of what has no elements
            weights = tuple(class_weights)
    if not all(map(_is_weight, weights)) or not any(weights):
        raise ConfigError(
            "class_weights must be a sequence of finite numbers of at least 0, one of them above "
            f"0. Received: {str(class_weights)[:200]}"
        )
    weights = tuple(map(float, weights))
    if num_classes is not None and len(weights) != num_classes:
        raise ConfigError(
            f"class_weights must be {num_classes} numbers, one for each class. "
            f"Received: {len(weights)} numbers"
        )
    return weights


def _is_weight(value):
    is_number = isinstance(value, Real) and not isinstance(value, bool | np.bool_)
    return is_number and 0 <= value <= sys.float_info.max
