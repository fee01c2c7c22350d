"""Counts of pairs of pixels whose affinity is predicted correctly.

Arrays and eager tensors are counted by NumPy, tensors of a graph by XLA, as by `pixel_counts`.
"""

import numpy as np
from keras import ops

from dilated_affinity.affinity.geometry import NEIGHBORS
from dilated_affinity.affinity.statistics import COUNTS
from dilated_affinity.runtime.xla import compiled, has_values

_PIECE = 2**14
"""Number of pixels that NumPy counts at once: their targets fit into the processor's cache."""


def pair_counts(targets, logits):
    """Counts correct and existing pairs by rate and category n0 to n8 of the pixel.

    Args:
        targets: Integers (B, H, W, 8|R|), as `affinity_targets` returns them.
        logits: Floating point of the same shape; "same" is predicted above 0.

    Returns:
        Integers (2, |R|, 9).
    """
    if has_values(targets) and has_values(logits):
        return _on_host(np.asarray(targets), np.asarray(logits > 0))
    return _in_graph(targets, logits)


def _on_host(targets, same):
    rates = targets.shape[-1] // NEIGHBORS
    targets, same = (each.reshape(-1, rates * NEIGHBORS) for each in (targets, same))
    # Pixels by rate and numbers of their negative, right and existing pairs.
    shape = (rates, COUNTS, COUNTS, COUNTS)
    pixels = np.zeros(shape, int)
    for start in range(0, len(targets), _PIECE):
        piece = slice(start, start + _PIECE)
        exists, positive, predicted = (
            np.packbits(flags).reshape(-1, rates)  # a byte for the 8 pairs of a pixel
            for flags in (targets[piece] <= 1, targets[piece] == 1, same[piece])
        )
        numbers = (exists & ~positive, exists & ~(positive ^ predicted), exists)
        index = np.arange(rates, dtype=np.int32)
        for number in map(np.bitwise_count, numbers):
            index = index * COUNTS + number
        pixels += np.bincount(index.ravel(), minlength=pixels.size).reshape(shape)
    pixels = pixels[:, ::-1]  # n8 has no negative pair
    return np.stack([pixels.sum(axis=other) @ np.arange(COUNTS) for other in (3, 2)])


@compiled
def _in_graph(targets, logits):
    channels = targets.shape[-1]
    grouping = np.repeat(np.eye(channels // NEIGHBORS, dtype="float32"), NEIGHBORS, axis=0)

    def per_rate(flags):
        return ops.reshape(
            ops.matmul(ops.cast(flags, "float32"), grouping), (-1, channels // NEIGHBORS)
        )

    exists = targets <= 1
    existing = per_rate(exists)
    right = per_rate(exists & ((logits > 0) == (targets == 1)))
    negatives = per_rate(targets == 0)
    counts = [
        [
            ops.sum(ops.cast(ops.where(negatives == NEIGHBORS - count, pairs, 0), "int32"), axis=0)
            for count in range(COUNTS)
        ]
        for pairs in (right, existing)
    ]
    return ops.transpose(ops.stack([ops.stack(each) for each in counts]), (0, 2, 1))
