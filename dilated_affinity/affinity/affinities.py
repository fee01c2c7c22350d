"""Section 3.3: affinities between 0 and 1 to propagate with, from logits (Eq. 7) or targets."""

import math

import numpy as np
from keras import ops

from dilated_affinity.affinity.geometry import NEIGHBORS, check_rates, neighbor_offsets
from dilated_affinity.errors import ConfigError
from dilated_affinity.runtime.xla import compiled

STEEPNESS = 7.0
THRESHOLD = 0.0


def steep_sigmoid(logits, mu=STEEPNESS, threshold=THRESHOLD):
    """The steeper sigmoid of Eq. 7, with a threshold: g(x) = sigmoid((x - tau) ln mu).

    With tau = 0 this is Eq. 7, mu^x / (1 + mu^x). Focal loss and the weights of Eq. 5 train a head
    that ranks pairs well, but whose logits are too high by about a constant: it calls most pairs
    near a boundary "same". The threshold tau removes that constant; `calibrate` fits it.

    Args:
        logits: Affinity logits, any shape, floating point.
        mu: Steepness, above 1; e gives the plain sigmoid. Defaults to 7.
        threshold: tau, the logit that becomes an affinity of 0.5. Defaults to 0, as in the paper.

    Returns:
        Affinities in [0, 1], float32, of the same shape.

    Raises:
        ConfigError: If `mu` is not above 1, or `threshold` is not finite.
    """
    check_steepness(mu, threshold)
    return ops.sigmoid((ops.cast(logits, "float32") - threshold) * math.log(mu))


def symmetric_logits(logits, rates, valid_mask=None):
    """Averages affinity logits over the two directions of every pair of pixels.

    Eq. 1 defines one affinity for a pair, a12 = a21, but the head predicts it twice, once at each
    pixel. Where a neighbour is outside the image or `valid_mask`, a pixel keeps its own logit.

    Args:
        logits: Floating point (B, H, W, 8|R|), in the order of `neighbor_offsets`.
        rates: Text such as `"8,(12,24),16"`, or numbers and (vertical, horizontal) pairs.
        valid_mask: Optional boolean (B, H, W), see `propagate`.

    Returns:
        float32 (B, H, W, 8|R|).

    Raises:
        ConfigError: If `rates` or shapes are wrong.

    Example:

    >>> import numpy as np
    >>> logits = np.zeros((1, 1, 2, 8), "float32")
    >>> logits[0, 0, 0, 4] = 3.0  # from the left pixel to the right one
    >>> np.asarray(symmetric_logits(logits, ((1, 1),)))[0, 0, :, 3:5].tolist()
    [[0.0, 1.5], [1.5, 0.0]]
    """
    rates = check_rates(rates)
    logits = ops.convert_to_tensor(logits)
    channels = NEIGHBORS * len(rates)
    if len(logits.shape) != 4 or logits.shape[-1] != channels:
        raise ConfigError(
            f"logits must be (batch, height, width, {channels}), 8 channels for each rate. "
            f"Received: shape {tuple(logits.shape)}, rates={rates}"
        )
    if valid_mask is not None:
        valid_mask = ops.cast(valid_mask, "float32")
    _, height, width, _ = ops.shape(logits)
    # Arguments, since XLA would compute all indices while it compiles if it knew these.
    rows = ops.reshape(ops.arange(height), (-1, 1, 1))
    columns = ops.reshape(ops.arange(width), (-1, 1))
    return _symmetric_logits(ops.cast(logits, "float32"), valid_mask, rows, columns, rates)


@compiled
def _symmetric_logits(logits, valid, rows, columns, rates):
    # One gather instead of a slice for each channel, which XLA would not fuse into one pass.
    batch, height, width, channels = ops.shape(logits)
    dy, dx = neighbor_offsets(rates).T.astype("int32")
    exists = (rows + dy >= 0) & (rows + dy < height) & (columns + dx >= 0) & (columns + dx < width)
    pixel = rows * width + columns
    neighbor = ops.where(exists, pixel + dy * width + dx, pixel)
    own_channel = np.arange(channels, dtype="int32")
    # The neighbours of a rate are in row-major order: neighbour 7 - c is opposite to neighbour c.
    opposite = own_channel + NEIGHBORS - 1 - 2 * (own_channel % NEIGHBORS)
    index = neighbor * channels + ops.where(exists, opposite, own_channel)
    other = ops.take(ops.reshape(logits, (batch, -1)), index, axis=1)
    if valid is not None:
        other_valid = ops.take(ops.reshape(valid, (batch, -1)), neighbor, axis=1)
        other = ops.where(other_valid > 0, other, logits)
    return 0.5 * (logits + other)


def affinities_from_targets(targets):
    """Converts targets to ground-truth affinities for `propagate` (Tables 3 and 4).

    Args:
        targets: uint8 tensor (..., 8|R|), as `affinity_targets` returns it.

    Returns:
        float32 tensor of the same shape: 1 where the target is 1, else 0.
    """
    return ops.cast(ops.equal(targets, 1), "float32")


def check_steepness(mu, threshold=THRESHOLD):
    """Raises `ConfigError` if mu or the threshold is out of range."""
    if not mu > 1:
        raise ConfigError(f"mu must be above 1. Received: mu={mu}")
    if not math.isfinite(threshold):
        raise ConfigError(f"threshold must be finite. Received: threshold={threshold}")
