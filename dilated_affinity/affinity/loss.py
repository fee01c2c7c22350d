"""Section 3.2: the affinity loss, Eq. 4 and 5."""

import keras
import numpy as np
from keras import ops

from dilated_affinity.affinity.geometry import NEIGHBORS
from dilated_affinity.affinity.statistics import COUNTS
from dilated_affinity.compilation import compiled
from dilated_affinity.errors import ConfigError


@keras.saving.register_keras_serializable("dilated_affinity")
class AffinityLoss(keras.losses.Loss):
    """Weighted focal loss of dilated affinity (Eq. 4 and 5), from logits, in float32.

    Each existing pair contributes `weight * (1 - p_t)**gamma * -log(p_t)`, with p_t the predicted
    probability of what the target says and the weight that of `AffinityStatistics.weights`. The
    sum is divided by 8|R| and by the number of non-void pixels, seen here as pixels with at least
    one existing pair. A batch of only void gives 0. The paper's beta is not part of the loss:
    pass it as `loss_weights={"affinity": beta}` to `model.compile`.

    With the default reduction, `"sum_over_batch_size"`, the loss is that scalar; per-pixel values
    (`reduction="none"`) are scaled so that their mean over all pixels is the scalar. A
    `sample_weight` of shape (B, H, W) multiplies the pixels' losses and leaves the divisor.

    Args:
        statistics: `AffinityStatistics` of the training labels.
        weighting: `"sqrt_neighbor"` (the paper's method), `"neighbor"`, `"signal"`, or `"none"`,
            which is plain sigmoid cross entropy, the baseline row of Table 1: it ignores `gamma`.
        gamma: Focusing parameter, at least 0. Defaults to 2.
        reduction: See `keras.losses.Loss`.
        name: Name of the loss.

    Call arguments:
        y_true: Targets as `affinity_targets` returns them, shape (B, H, W, 8|R|).
        y_pred: Logits of the same shape.

    Raises:
        ConfigError: For an unknown weighting or a negative gamma.
        ValueError: When called on targets or logits without 8|R| channels.

    Example:

    >>> from dilated_affinity import AffinityStatistics
    >>> statistics = AffinityStatistics.from_labels([np.array([[0, 0, 1, 1]])], ((1, 1),))
    >>> loss = AffinityLoss(statistics)
    >>> targets = np.full((1, 1, 4, 8), 255, "uint8")
    >>> float(loss(targets, np.zeros((1, 1, 4, 8))))
    0.0
    """

    def __init__(
        self,
        statistics,
        weighting="sqrt_neighbor",
        gamma=2.0,
        reduction="sum_over_batch_size",
        name="affinity_loss",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        if not gamma >= 0:
            raise ConfigError(f"gamma must be at least 0. Received: gamma={gamma}")
        self.statistics = statistics
        self.weighting = weighting
        self.gamma = float(gamma)
        self._table = statistics.weights(weighting).astype("float32")

    def call(self, y_true, y_pred):
        channels = NEIGHBORS * len(self.statistics.rates)
        for name, tensor in (("y_true", y_true), ("y_pred", y_pred)):
            if tensor.shape[-1] != channels:
                raise ValueError(
                    f"{name} must have {channels} channels, 8 for each of the "
                    f"{len(self.statistics.rates)} rates. Received: shape {tuple(tensor.shape)}"
                )
        gamma = 0.0 if self.weighting == "none" else self.gamma
        weights = _pair_weights(y_true, ops.convert_to_tensor(self._table))
        return _focal_loss(y_pred, y_true, weights, gamma)

    def get_config(self):
        return {
            **super().get_config(),
            "statistics": keras.saving.serialize_keras_object(self.statistics),
            "weighting": self.weighting,
            "gamma": self.gamma,
        }

    @classmethod
    def from_config(cls, config):
        statistics = keras.saving.deserialize_keras_object(config["statistics"])
        return cls(**{**config, "statistics": statistics})


@compiled
def _pair_weights(targets, table):
    """Weights of pairs (B, H, W, 8|R|), scaled so that the mean of the pixels' sums is the loss."""
    rates, columns = table.shape
    channels = NEIGHBORS * rates
    exists = ops.cast(targets <= 1, "float32")
    # Sums over the neighbours of a rate, and the way back, are products with a fixed matrix: XLA
    # would fuse a sum into its readers and repeat it for each of them.
    grouping = np.repeat(np.eye(rates, dtype="float32"), NEIGHBORS, axis=0)
    if columns == 2:
        table = ops.repeat(table, NEIGHBORS, axis=0)
        weights = ops.where(targets == 1, table[:, 1], table[:, 0])
    else:
        negatives = ops.matmul(ops.cast(targets == 0, "float32"), grouping)
        weights = ops.zeros_like(negatives)
        for count in range(COUNTS):
            weights = ops.where(negatives == NEIGHBORS - count, table[:, count], weights)
        weights = ops.matmul(weights, grouping.T)
    not_void = ops.matmul(exists, np.ones((channels, 1), "float32")) > 0
    share = ops.mean(ops.cast(not_void, "float32"))
    return exists * weights / (channels * ops.where(share > 0, share, 1.0))


def _focal_terms(logits, targets):
    """-log(p_t), p_t, 1 - p_t and the sign of d agreement / d logit, stable for any logit."""
    sign = ops.where(targets == 1, 1.0, -1.0)
    agreement = sign * logits
    small = ops.exp(-ops.abs(agreement))
    cross_entropy = ops.maximum(-agreement, 0.0) + ops.log1p(small)
    larger, smaller = 1.0 / (1.0 + small), small / (1.0 + small)
    right = ops.where(agreement >= 0, larger, smaller)
    wrong = ops.where(agreement >= 0, smaller, larger)
    return cross_entropy, right, wrong, sign


@compiled
def _focal_sums(logits, targets, weights, gamma):
    cross_entropy, _, wrong, _ = _focal_terms(logits, targets)
    losses = weights * wrong**gamma * cross_entropy
    ones = np.ones((weights.shape[-1], 1), "float32")
    return ops.squeeze(ops.matmul(losses, ones), -1)


@compiled
def _focal_gradient(upstream, logits, targets, weights, gamma):
    cross_entropy, right, wrong, sign = _focal_terms(logits, targets)
    slope = -(wrong**gamma) * (gamma * right * cross_entropy + wrong)
    return upstream[..., None] * weights * slope * sign


def _focal_loss(logits, targets, weights, gamma):
    """Eq. 4 summed over channels, (B, H, W), with its gradient in closed form.

    The closed form reads logits and targets once more instead of keeping five full-resolution
    maps of 8|R| channels from the forward pass.
    """

    @ops.custom_gradient
    def focal_loss(logits):
        def gradient(*arguments, upstream=None):
            # The PyTorch backend passes `upstream` by name.
            upstream = arguments[0] if upstream is None else upstream
            return _focal_gradient(upstream, logits, targets, weights, gamma)

        return _focal_sums(logits, targets, weights, gamma), gradient

    return focal_loss(logits)
