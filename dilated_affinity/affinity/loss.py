"""Section 3.2: the affinity loss, Eq. 4 and 5."""

import keras
import numpy as np
from keras import ops

from dilated_affinity.affinity.geometry import NEIGHBORS
from dilated_affinity.affinity.interpolation import check_grid, interpolation_matrix
from dilated_affinity.affinity.statistics import COUNTS
from dilated_affinity.errors import ConfigError
from dilated_affinity.runtime.distribution import mean_over_counted
from dilated_affinity.runtime.xla import compiled

AFFINITY_REDUCTIONS = ("mean", "sum")
"""Over the 8|R| channels of a pixel."""

_ROWS = 64
"""Rows of pixels whose maps of 8|R| channels are in memory at once under JAX."""


@keras.saving.register_keras_serializable("dilated_affinity")
class AffinityLoss(keras.losses.Loss):
    """Weighted focal loss of dilated affinity (Eq. 4 and 5), from logits, in float32.

    Each existing pair contributes `weight * (1 - p_t)**gamma * -log(p_t)`, where p_t is the
    predicted probability of the target and the weight is that of `AffinityStatistics.weights`. The
    sum is divided by 8|R| and by the number of non-void pixels of the batch on all replicas, which
    are pixels with at least one existing pair. A batch of only void pixels gives 0. With
    `affinity_reduction="sum"` it is not divided by 8|R|, as Eq. 5 prints it. The paper's beta
    is not part of the loss: pass `loss_weights={"semantic": 1.0, "affinity": beta}` to
    `model.compile`; a beta of the sum is 8|R| times as strong as one of the mean.

    With the default reduction, `"sum_over_batch_size"`, the loss is that scalar; per-pixel values
    (`reduction="none"`) are scaled so that their mean over all pixels is the scalar. A
    `sample_weight` of shape (B, H, W) multiplies the pixels' losses, but not the divisor.

    Logits may have the decoder's stride instead of full resolution: with `logits_stride=4` the loss
    resizes them bilinearly, a part of the pixels at a time. Loss and gradient equal those of the
    resized logits, in less time and memory. The loss is then a value for each image, and
    `sample_weight` has shape (B,).

    Args:
        statistics: `AffinityStatistics` of the training labels.
        weighting: `"sqrt_neighbor"` (the paper's method), `"neighbor"`, `"signal"`, or `"none"`,
            which is plain sigmoid cross entropy, the baseline row of Table 1, without `gamma`.
        gamma: Focusing parameter, at least 0. Defaults to 2.
        logits_stride: Stride of the logits' grid, a power of two. Defaults to 1.
        padding: `"same"` or `"symmetric"`, the padding of the network's strided layers, which
            determines the positions of the logits of a larger stride.
        affinity_reduction: `"mean"` or `"sum"` over the 8|R| channels of a pixel. Defaults to
            `"mean"`.
        reduction: See `keras.losses.Loss`.
        name: Name of the loss.

    Call arguments:
        y_true: Targets as `affinity_targets` returns them, shape (B, H, W, 8|R|).
        y_pred: Logits of the same shape, or (B, ceil(H / s), ceil(W / s), 8|R|), s the
            `logits_stride`.

    Raises:
        ConfigError: If the weighting or `affinity_reduction` is unknown, or gamma is negative.
        ValueError: If called on targets or logits without 8|R| channels, or of other sizes.

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
        logits_stride=1,
        padding="same",
        affinity_reduction="mean",
        reduction="sum_over_batch_size",
        name="affinity_loss",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        if not gamma >= 0:
            raise ConfigError(f"gamma must be at least 0. Received: gamma={gamma}")
        check_grid(logits_stride, padding)
        if affinity_reduction not in AFFINITY_REDUCTIONS:
            raise ConfigError(
                f"affinity_reduction must be one of {', '.join(AFFINITY_REDUCTIONS)}. "
                f"Received: affinity_reduction={affinity_reduction!r}"
            )
        self.statistics = statistics
        self.weighting = weighting
        self.gamma = float(gamma)
        self.logits_stride = logits_stride
        self.padding = padding
        self.affinity_reduction = affinity_reduction
        self._table = statistics.weights(weighting).astype("float32")

    def call(self, y_true, y_pred):
        channels = NEIGHBORS * len(self.statistics.rates)
        for name, tensor in (("y_true", y_true), ("y_pred", y_pred)):
            if tensor.shape[-1] != channels:
                raise ValueError(
                    f"{name} must have {channels} channels, 8 for each of the "
                    f"{len(self.statistics.rates)} rates. Received: shape {tuple(tensor.shape)}"
                )
        _check_sizes(y_true, y_pred, self.logits_stride)
        gamma = 0.0 if self.weighting == "none" else self.gamma
        table = ops.convert_to_tensor(self._table)
        if self.logits_stride > 1:
            grid = self.logits_stride, self.padding
            sums, pixels = _resized_focal_loss(y_pred, y_true, table, gamma, *grid)
        else:
            weights, pixels = _compiled_weights_and_pixels(y_true, table)
            sums = _focal_loss(y_pred, y_true, weights, gamma)
        if self.affinity_reduction == "mean":
            sums = sums / channels
        return mean_over_counted(sums, pixels)

    def get_config(self):
        return {
            **super().get_config(),
            "statistics": keras.saving.serialize_keras_object(self.statistics),
            "weighting": self.weighting,
            "gamma": self.gamma,
            "logits_stride": self.logits_stride,
            "padding": self.padding,
            "affinity_reduction": self.affinity_reduction,
        }

    @classmethod
    def from_config(cls, config):
        statistics = keras.saving.deserialize_keras_object(config["statistics"])
        return cls(**{**config, "statistics": statistics})


def _check_sizes(targets, logits, stride):
    for target, logit in zip(targets.shape[1:3], logits.shape[1:3], strict=True):
        if None not in (target, logit) and logit != -(-target // stride):
            raise ValueError(
                f"y_pred must have 1/{stride} of the height and width of y_true, rounded up. "
                f"Received: shapes {tuple(logits.shape)} and {tuple(targets.shape)}"
            )


def _weights_and_pixels(targets, table):
    """Weights of pairs (..., 8|R|), 0 where there is no pair, and the number of non-void pixels."""
    rates, columns = table.shape
    exists = ops.cast(targets <= 1, "float32")
    # Sums over the neighbours of a rate, and their broadcast, are products with a fixed matrix: XLA
    # would fuse a sum into each operation that reads it and compute it again there.
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
    pairs = ops.matmul(exists, np.ones((NEIGHBORS * rates, 1), "float32"))
    return exists * weights, ops.sum(ops.cast(pairs > 0, "float32"))


_compiled_weights_and_pixels = compiled(_weights_and_pixels)


def _focal_terms(logits, targets):
    """-log(p_t), p_t, 1 - p_t and the sign of d margin / d logit, stable for any logit."""
    sign = ops.where(targets == 1, 1.0, -1.0)
    margin = sign * logits
    small = ops.exp(-ops.abs(margin))
    cross_entropy = ops.maximum(-margin, 0.0) + ops.log1p(small)
    larger, smaller = 1.0 / (1.0 + small), small / (1.0 + small)
    p_target = ops.where(margin >= 0, larger, smaller)
    p_other = ops.where(margin >= 0, smaller, larger)
    return cross_entropy, p_target, p_other, sign


@compiled
def _focal_sums(logits, targets, weights, gamma):
    cross_entropy, _, p_other, _ = _focal_terms(logits, targets)
    losses = weights * p_other**gamma * cross_entropy
    ones = np.ones((weights.shape[-1], 1), "float32")
    return ops.squeeze(ops.matmul(losses, ones), -1)


@compiled
def _focal_gradient(upstream, logits, targets, weights, gamma):
    cross_entropy, p_target, p_other, sign = _focal_terms(logits, targets)
    return (
        upstream[..., None] * weights * _focal_slope(cross_entropy, p_target, p_other, sign, gamma)
    )


def _focal_slope(cross_entropy, p_target, p_other, sign, gamma):
    """The derivative of Eq. 4, without its weight, with respect to the logit."""
    return -(p_other**gamma) * (gamma * p_target * cross_entropy + p_other) * sign


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


@compiled
def _resized_focal_sums(logits, targets, table, gamma, stride, padding):
    """Eq. 4 at full resolution from logits of a larger stride, a part of the pixels at a time.

    Returns:
        For each image the sum over pixels and channels (B,), its gradient with respect to the
        logits (B, h, w, 8|R|), and the number of non-void pixels (B,).
    """
    height, width = ops.shape(targets)[1:3]
    small_height, small_width = ops.shape(logits)[1:3]
    rows = interpolation_matrix(small_height, height, stride, 1, padding, "float32")
    columns = interpolation_matrix(small_width, width, stride, 1, padding, "float32")
    # A loop over images would gather all of them on each of several JAX devices.
    sums_of = _sums_by_rows if keras.backend.backend() == "jax" else _sums_by_images
    return sums_of(rows, columns, logits, targets, table, gamma)


def _sums_by_images(rows, columns, logits, targets, table, gamma):
    """One image after the other: its full-resolution maps fit better into caches than a batch's."""

    def image_sums(image):
        logits, targets = image
        sums, slope, pixels = _sums_of_rows(rows, _wide(columns, logits), targets, table, gamma)
        return sums, _narrow(columns, slope), pixels

    return ops.map(image_sums, (logits, targets))


def _sums_by_rows(rows, columns, logits, targets, table, gamma):
    """Some rows of all images after the other."""
    batch, height = targets.shape[:2]
    at_once = min(_ROWS, height)
    blocks = -(-height // at_once)
    missing = [0, blocks * at_once - height]
    rows = ops.reshape(ops.pad(rows, [missing, [0, 0]]), (blocks, at_once, -1))
    # Rows without a pair, which add nothing.
    targets = ops.pad(targets, [[0, 0], missing, [0, 0], [0, 0]], constant_values=255)
    targets = ops.reshape(targets, (batch, blocks, at_once, *targets.shape[2:]))
    wide = _wide(columns, logits)

    def add_block(totals, block):
        rows, targets = block
        sums = ops.vectorized_map(
            lambda image: _sums_of_rows(rows, *image, table, gamma), (wide, targets)
        )
        return tuple(total + each for total, each in zip(totals, sums, strict=True)), None

    start = ops.zeros((batch,)), ops.zeros_like(wide), ops.zeros((batch,))
    (sums, slope, pixels), _ = ops.scan(add_block, start, (rows, ops.moveaxis(targets, 1, 0)))
    return sums, _narrow(columns, slope), pixels


def _wide(columns, logits):
    """Logits (..., h, w, 8|R|) at full width, (..., h, W * 8|R|)."""
    wide = ops.matmul(columns, logits)
    *before, width, channels = ops.shape(wide)
    return ops.reshape(wide, (*before, width * channels))


def _narrow(columns, slope):
    """The gradient with respect to logits from that with respect to `_wide` of them."""
    *before, together = ops.shape(slope)
    width = ops.shape(columns)[0]
    slope = ops.reshape(slope, (*before, width, together // width))
    return ops.matmul(ops.transpose(columns), slope)


def _sums_of_rows(rows, wide, targets, table, gamma):
    """Eq. 4 for some rows of pixels of one image, from its logits at full width."""
    height, width, channels = ops.shape(targets)
    full = ops.reshape(ops.matmul(rows, wide), (height, width, channels))
    weights, pixels = _weights_and_pixels(targets, table)
    cross_entropy, p_target, p_other, sign = _focal_terms(full, targets)
    slope = weights * _focal_slope(cross_entropy, p_target, p_other, sign, gamma)
    slope = ops.matmul(ops.transpose(rows), ops.reshape(slope, (height, width * channels)))
    return ops.sum(weights * p_other**gamma * cross_entropy), slope, pixels


def _resized_focal_loss(logits, targets, table, gamma, stride, padding):
    """Eq. 4 for resized logits, summed over each image (B,), and the number of non-void pixels."""

    @ops.custom_gradient
    def focal_loss(logits):
        # The gradient is given below; the tape need not record the computation.
        small = ops.stop_gradient(logits)
        sums, gradients, pixels = _resized_focal_sums(small, targets, table, gamma, stride, padding)

        def gradient(*arguments, upstream=None):
            # The PyTorch backend passes `upstream` by name.
            upstream = arguments[0] if upstream is None else upstream
            return upstream[0][:, None, None, None] * gradients

        # A single output, for which all backends call `gradient` in the same way.
        return ops.stack([sums, pixels]), gradient

    sums, pixels = ops.unstack(focal_loss(logits), num=2)
    return sums, ops.sum(pixels)
