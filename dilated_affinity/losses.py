"""The semantic loss."""

import keras
from keras import ops

from dilated_affinity.distribution import mean_over_counted


@keras.saving.register_keras_serializable("dilated_affinity")
class SemanticLoss(keras.losses.Loss):
    """Softmax cross entropy from logits, in float32, averaged over the non-void pixels.

    With the default reduction, `"sum_over_batch_size"`, the loss is the sum over non-void pixels
    of the batch, on all replicas, divided by their number, and 0 for a batch of only void.
    Per-pixel values (`reduction="none"`) are scaled so that their mean over all pixels is that
    scalar. A `sample_weight` of shape (B, H, W) multiplies the pixels' losses and leaves the
    divisor.

    Args:
        ignore_label: The void label. Defaults to 255.
        reduction: See `keras.losses.Loss`.
        name: Name of the loss.

    Call arguments:
        y_true: Labels, shape (B, H, W): classes 0 to C-1 and `ignore_label`.
        y_pred: Logits, shape (B, H, W, C).

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
        reduction="sum_over_batch_size",
        name="semantic_loss",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.ignore_label = int(ignore_label)

    def call(self, y_true, y_pred):
        labels = ops.cast(y_true, "int32")
        not_void = labels != self.ignore_label
        losses = ops.sparse_categorical_crossentropy(
            ops.where(not_void, labels, 0), y_pred, from_logits=True
        )
        not_void = ops.cast(not_void, losses.dtype)
        return mean_over_counted(losses * not_void, ops.sum(not_void))

    def get_config(self):
        return {**super().get_config(), "ignore_label": self.ignore_label}
