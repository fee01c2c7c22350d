"""Section 3.1: affinity targets and neighbour counts, computed from the labels.

These run inside `tf.data`, so they are TensorFlow functions under every Keras backend. They are
compiled by XLA: as plain ops, 32 channels cost more than decoding and augmenting the image.
"""

import numpy as np
import tensorflow as tf

from dilated_affinity.affinity.geometry import NEIGHBORS, check_rates, neighbor_offsets, reach

NOT_A_PAIR = 255
"""Target of a pair that does not exist: one of its pixels is void or outside the image."""


def affinity_targets(labels, rates, ignore_label=255):
    """Computes the dilated affinity of every pixel with its neighbours (Eq. 1 to 3).

    It is compiled once for each shape of `labels`; a training pipeline should use crops of one
    size.

    Args:
        labels: Integer tensor or array of shape (..., H, W): class of each pixel.
        rates: Text such as `"8,(12,24),16"`, or numbers and (vertical, horizontal) pairs.
        ignore_label: The void label. Defaults to 255. With a value that the labels' type cannot
            hold, no pixel is void.

    Returns:
        uint8 tensor of shape (..., H, W, 8|R|) in the order of `neighbor_offsets`: 1 where pixel
        and neighbour have the same class, 0 where they differ, 255 where the pair does not exist
        (either is void, or the neighbour is outside the image).

    Raises:
        ValueError: If `labels` has fewer than two axes or is not of an integer type.

    Example:

    >>> affinity_targets([[0, 0, 1]], ((1, 1),))[0, 1].numpy().tolist()
    [255, 255, 255, 1, 0, 255, 255, 255]
    """
    labels = tf.convert_to_tensor(labels)
    if not labels.dtype.is_integer or labels.shape.rank is None or labels.shape.rank < 2:
        raise ValueError(
            "labels must be an integer tensor of shape (..., height, width). "
            f"Received: labels of dtype {labels.dtype.name} and shape {labels.shape}"
        )
    words = _words(*_bits(labels, check_rates(rates), int(ignore_label)))
    # Outside the compiled functions, where it is free: XLA would convert word by word.
    targets = tf.bitcast(words, tf.uint8)
    return tf.reshape(targets, [*_sizes(labels), NEIGHBORS * targets.shape[-2]])


def _sizes(labels):
    """The sizes of the axes, as ints where they are known."""
    dynamic = tf.shape(labels)
    return [
        dynamic[axis] if size is None else size for axis, size in enumerate(labels.shape.as_list())
    ]


# Compiled as two functions. A single one takes three times as long: XLA fuses it into a loop over
# words of 8 bytes, in which comparisons of single bytes use an eighth of each vector.


@tf.function(jit_compile=True, autograph=False)
def _bits(labels, rates, ignore_label):
    """Returns two uint8 (N, H, W) masks of each rate, with bit c for neighbour c: same, no pair."""
    shape = tf.shape(labels)
    height, width = shape[-2], shape[-1]
    center = tf.reshape(labels, tf.stack([-1, height, width]))
    vertical, horizontal = reach(rates)
    if labels.dtype.min <= ignore_label <= labels.dtype.max:
        void = center == tf.constant(ignore_label, labels.dtype)
    else:
        void = tf.zeros_like(center, tf.bool)
    paddings = [[0, 0], [vertical] * 2, [horizontal] * 2]
    padded = tf.pad(center, paddings)
    padded_void = tf.pad(void, paddings, constant_values=True)
    same = [tf.zeros_like(center, tf.uint8) for _ in rates]
    no_pair = list(same)
    for channel, (dy, dx) in enumerate(neighbor_offsets(rates)):
        top, left = vertical + dy, horizontal + dx
        window = (slice(None), slice(top, top + height), slice(left, left + width))
        rate, bit = channel // NEIGHBORS, np.uint8(1 << channel % NEIGHBORS)
        same[rate] |= tf.where(center == padded[window], bit, np.uint8(0))
        no_pair[rate] |= tf.where(void | padded_void[window], bit, np.uint8(0))
    return same, no_pair


@tf.function(jit_compile=True, autograph=False)
def _words(same, no_pair):
    """The targets of a rate as the bytes of one uint64, lowest first: (N, H, W, |R|)."""
    same, no_pair = (_bytes_of_bits(tf.stack(bits, axis=-1)) for bits in (same, no_pair))
    # 256 * x - x sets a byte to 255 where `no_pair` is 1.
    return same | (tf.bitwise.left_shift(no_pair, np.uint64(8)) - no_pair)


def _bytes_of_bits(bits):
    """Expands the bits of uint8 to the bytes of uint64, each 0 or 1."""
    words = tf.cast(bits, tf.uint64) * np.uint64(0x01010101)
    words |= tf.bitwise.left_shift(words, np.uint64(32))
    # Byte k keeps only bit k, which the addition carries to the byte's highest bit.
    words &= np.uint64(0x8040201008040201)
    words = tf.bitwise.right_shift(words + np.uint64(0x7F7F7F7F7F7F7F7F), np.uint64(7))
    return words & np.uint64(0x0101010101010101)


def neighbor_counts(targets):
    """Counts the neighbours that share a pixel's class: k of the paper's categories n_k.

    A pair that does not exist is no evidence of a boundary, so the count is 8 minus the number of
    negative pairs.

    Args:
        targets: uint8 tensor of shape (..., H, W, 8|R|), as `affinity_targets` returns it.

    Returns:
        uint8 tensor of shape (..., H, W, |R|) with values 0 to 8. Void pixels, which have no
        pairs, have 8; exclude them when counting pixels.

    Raises:
        ValueError: If the last axis is not a multiple of 8.
    """
    targets = tf.convert_to_tensor(targets)
    channels = targets.shape[-1]
    if not channels or channels % NEIGHBORS:
        raise ValueError(
            f"targets must have {NEIGHBORS} channels per rate. Received: shape {targets.shape}"
        )
    shape = tf.concat([tf.shape(targets)[:-1], [channels // NEIGHBORS, NEIGHBORS]], axis=0)
    negative = tf.cast(tf.reshape(targets, shape) == 0, tf.uint8)
    return np.uint8(NEIGHBORS) - tf.reduce_sum(negative, axis=-1)
