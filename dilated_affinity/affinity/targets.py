"""Section 3.1: affinity targets and neighbour counts, derived from the labels alone.

These run inside `tf.data`, so they are TensorFlow functions whatever Keras' backend is, compiled
by XLA: stacked as plain ops, 32 channels cost more than decoding and augmenting the image.
"""

import numpy as np
import tensorflow as tf

from dilated_affinity.affinity.geometry import NEIGHBORS, check_rates, neighbor_offsets, reach

NOT_A_PAIR = 255
"""Target of a pair that does not exist: a pixel of it is void or outside the image."""


def affinity_targets(labels, rates, ignore_label=255):
    """Dilated affinity of every pixel with its neighbours (Eq. 1 to 3).

    Compiled once for each shape of `labels`; give it crops of one size in a training pipeline.

    Args:
        labels: Integer tensor or array of shape (..., H, W): class of each pixel.
        rates: (vertical, horizontal) pairs, as `parse_rates` returns them.
        ignore_label: The void label. Defaults to 255. One that the labels' type cannot hold makes
            none of them void.

    Returns:
        uint8 tensor of shape (..., H, W, 8|R|) in the order of `neighbor_offsets`: 1 where pixel
        and neighbour have the same class, 0 where they differ, 255 where the pair does not exist
        (either is void, or the neighbour lies outside the image).

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
    words = _packed_targets(labels, check_rates(rates), int(ignore_label))
    # Outside the compiled function, where it costs nothing: XLA would take the words apart.
    targets = tf.bitcast(words, tf.uint8)
    return tf.reshape(targets, [*_sizes(labels), NEIGHBORS * targets.shape[-2]])


def _sizes(labels):
    """The sizes of the axes, as numbers where they are known."""
    dynamic = tf.shape(labels)
    return [
        dynamic[axis] if size is None else size for axis, size in enumerate(labels.shape.as_list())
    ]


@tf.function(jit_compile=True, autograph=False)
def _packed_targets(labels, rates, ignore_label):
    """The targets of a rate as the bytes of one uint64, lowest first: (N, H, W, |R|).

    A word per rate instead of eight bytes: writing single bytes to 32 channels keeps XLA from
    using vector instructions, and takes six times as long.
    """
    shape = tf.shape(labels)
    height, width = shape[-2], shape[-1]
    center = tf.reshape(labels, tf.stack([-1, height, width]))
    vertical, horizontal = reach(rates)
    if labels.dtype.min <= ignore_label <= labels.dtype.max:
        valid = center != tf.constant(ignore_label, labels.dtype)
    else:
        valid = tf.ones_like(center, tf.bool)
    # NOT_A_PAIR has all bits set, so that "or" with it gives it.
    none = tf.where(valid, np.uint8(0), np.uint8(NOT_A_PAIR))
    paddings = [[0, 0], [vertical] * 2, [horizontal] * 2]
    padded = tf.pad(center, paddings)
    padded_none = tf.pad(none, paddings, constant_values=np.uint8(NOT_A_PAIR))
    parts = []
    for dy, dx in neighbor_offsets(rates):
        top, left = vertical + dy, horizontal + dx
        window = (slice(None), slice(top, top + height), slice(left, left + width))
        same = tf.cast(center == padded[window], tf.uint8)
        parts.append(_or(same, _or(none, padded_none[window])))
    for wider in (tf.uint16, tf.uint32, tf.uint64):
        parts = [
            _or(tf.cast(low, wider), tf.bitwise.left_shift(tf.cast(high, wider), 4 * wider.size))
            for low, high in zip(parts[::2], parts[1::2], strict=True)
        ]
    return tf.stack(parts, axis=-1)


def _or(one, other):
    return tf.bitwise.bitwise_or(one, other)


def neighbor_counts(targets):
    """Number k of the paper's categories n_k: how many neighbours share a pixel's class.

    A pair that does not exist is no evidence of a boundary, so the count is 8 minus the number of
    negative pairs.

    Args:
        targets: uint8 tensor of shape (..., H, W, 8|R|), as `affinity_targets` returns it.

    Returns:
        uint8 tensor of shape (..., H, W, |R|) with values 0 to 8. Void pixels, which have no
        pairs, read 8; whoever counts pixels leaves them out.

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
