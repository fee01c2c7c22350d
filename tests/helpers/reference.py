"""The paper's equations as loops in float64, with which tests compare.

Nothing here uses the package; all loops over pixels, neighbours and classes are explicit.
"""

import math

import numpy as np

VOID = 255
NO_PAIR = 255


def offsets(rates):
    """Eq. 3 for each rate, in row-major order without the centre."""
    listed = []
    for r1, r2 in rates:
        for s in (-r1, 0, r1):
            for t in (-r2, 0, r2):
                if s != 0 or t != 0:
                    listed.append((s, t))
    return listed


def inside(y, x, shape):
    return 0 <= y < shape[0] and 0 <= x < shape[1]


def affinity_targets(labels, rates, void=VOID):
    """Eq. 1 for one label map (H, W): 1, 0, or 255 where the pair does not exist."""
    labels = np.asarray(labels)
    listed = offsets(rates)
    targets = np.full((*labels.shape, len(listed)), NO_PAIR, np.uint8)
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            for channel, (s, t) in enumerate(listed):
                if not inside(y + s, x + t, labels.shape):
                    continue
                one, other = int(labels[y, x]), int(labels[y + s, x + t])
                if one != void and other != void:
                    targets[y, x, channel] = 1 if one == other else 0
    return targets


def batch_targets(labels, rates, void=VOID):
    return np.stack([affinity_targets(each, rates, void) for each in labels])


def neighbor_counts(targets):
    """8 minus the number of negative pairs, for one map (H, W, 8|R|)."""
    height, width, channels = targets.shape
    counts = np.zeros((height, width, channels // 8), np.uint8)
    for y in range(height):
        for x in range(width):
            for rate in range(channels // 8):
                negative = 0
                for channel in range(8 * rate, 8 * rate + 8):
                    negative += int(targets[y, x, channel] == 0)
                counts[y, x, rate] = 8 - negative
    return counts


def count_statistics(label_maps, rates, void=VOID):
    """Pixels of n0..n8 (|R|, 9) and negative and positive pairs (|R|, 2) of label maps."""
    pixels = np.zeros((len(rates), 9), np.int64)
    pairs = np.zeros((len(rates), 2), np.int64)
    for labels in label_maps:
        targets = affinity_targets(labels, rates, void)
        counts = neighbor_counts(targets)
        for y in range(labels.shape[0]):
            for x in range(labels.shape[1]):
                if labels[y, x] == void:
                    continue
                for rate in range(len(rates)):
                    pixels[rate, counts[y, x, rate]] += 1
                    for channel in range(8 * rate, 8 * rate + 8):
                        if targets[y, x, channel] != NO_PAIR:
                            pairs[rate, targets[y, x, channel]] += 1
    return pixels, pairs


def pair_weight(pixels, pairs, weighting, rate, count, target):
    """The weight of Table 1 of a pair; shares below 1e-5 are replaced by the smallest one above."""
    if weighting == "none":
        return 1.0

    def supported(counts):
        kept = [int(number) for number in counts if int(number) > 1e-5 * sum(map(int, counts))]
        return [int(number) if int(number) in kept else min(kept, default=1) for number in counts]

    if weighting == "signal":
        negative, positive = supported(pairs[rate])
        return 1.0 if target == 1 else positive / negative
    frequent = supported(pixels[rate])
    ratio = frequent[8] / frequent[count]
    return math.sqrt(ratio) if weighting == "sqrt_neighbor" else ratio


def affinity_loss(labels, logits, rates, pixels, pairs, weighting, gamma):
    """Eq. 4 and 5 of a batch (B, H, W), averaged over 8|R| channels and non-void pixels."""
    total, not_void = 0.0, 0
    for index in range(len(labels)):
        targets = affinity_targets(labels[index], rates)
        counts = neighbor_counts(targets)
        for y in range(labels.shape[1]):
            for x in range(labels.shape[2]):
                if labels[index, y, x] == VOID:
                    continue
                not_void += 1
                for channel in range(8 * len(rates)):
                    target = targets[y, x, channel]
                    if target == NO_PAIR:
                        continue
                    p = 1 / (1 + math.exp(-float(logits[index, y, x, channel])))
                    p_t = p if target == 1 else 1 - p
                    rate = channel // 8
                    weight = pair_weight(pixels, pairs, weighting, rate, counts[y, x, rate], target)
                    focus = 0.0 if weighting == "none" else gamma
                    total += weight * (1 - p_t) ** focus * -math.log(p_t)
    return total / (8 * len(rates) * not_void) if not_void else 0.0


def semantic_loss(labels, logits, void=VOID):
    """Softmax cross entropy, mean over the non-void pixels of a batch."""
    total, not_void = 0.0, 0
    for position in np.ndindex(labels.shape):
        if labels[position] == void:
            continue
        scores = [float(score) for score in logits[position]]
        largest = max(scores)
        exponentials = [math.exp(score - largest) for score in scores]
        total -= math.log(exponentials[int(labels[position])] / sum(exponentials))
        not_void += 1
    return total / not_void if not_void else 0.0


def steep_sigmoid(x, mu=7.0):
    """Eq. 7."""
    return mu**x / (1 + mu**x)


def propagate(probabilities, affinities, rates, iterations, self_weight=6.0):
    """Eq. 6 for one image: p (H, W, C), a (H, W, 8|R|). A pixel without weights is unchanged."""
    p = np.asarray(probabilities, np.float64)
    height, width, _ = p.shape
    listed = offsets(rates)
    for _ in range(iterations):
        refined = np.zeros_like(p)
        for y in range(height):
            for x in range(width):
                mixed = self_weight * p[y, x] * p[y, x].max()
                for channel, (s, t) in enumerate(listed):
                    if inside(y + s, x + t, (height, width)):
                        mixed = mixed + float(affinities[y, x, channel]) * p[y + s, x + t]
                total = mixed.sum()
                refined[y, x] = mixed / total if total > 0 else p[y, x]
        p = refined
    return p


def confusion_matrix(labels, predictions, num_classes, void=VOID):
    matrix = np.zeros((num_classes, num_classes), np.int64)
    for label, prediction in zip(labels.ravel(), predictions.ravel(), strict=True):
        if label != void:
            matrix[int(label), int(prediction)] += 1
    return matrix


def class_iou(matrix):
    """IoU of each class; None for a class that does not occur in the labels."""
    found = []
    for k in range(len(matrix)):
        intersection = int(matrix[k, k])
        union = int(matrix[k, :].sum() + matrix[:, k].sum()) - intersection
        found.append(intersection / union if matrix[k, :].any() else None)
    return found


def mean(values):
    """Mean of the values that are not None."""
    kept = [value for value in values if value is not None]
    return sum(kept) / len(kept) if kept else 0.0


def boundary_region(classes, void, k, distance):
    """Pixels of class k with a non-void pixel of another class within `distance` steps."""
    height, width = classes.shape
    region = np.zeros((height, width), bool)
    for y in range(height):
        for x in range(width):
            if void[y, x] or classes[y, x] != k:
                continue
            for v in range(max(y - distance, 0), min(y + distance + 1, height)):
                for u in range(max(x - distance, 0), min(x + distance + 1, width)):
                    if not void[v, u] and classes[v, u] != k:
                        region[y, x] = True
    return region


def boundary_iou(labels, predictions, num_classes, distance, region=boundary_region, void=VOID):
    """Mean boundary IoU of a batch of label maps."""
    found = []
    for k in range(num_classes):
        intersection = union = truths = 0
        for label, prediction in zip(labels, predictions, strict=True):
            left_out = label == void
            truth = region(label, left_out, k, distance)
            guess = region(prediction, left_out, k, distance)
            intersection += int((truth & guess).sum())
            union += int((truth | guess).sum())
            truths += int(truth.sum())
        found.append(intersection / union if truths else None)
    return mean(found)


def affinity_pairs(labels, logits, rates):
    """Correct and existing pairs by rate and category n_k, (2, |R|, 9)."""
    found = np.zeros((2, len(rates), 9), np.int64)
    for index in range(len(labels)):
        targets = affinity_targets(labels[index], rates)
        counts = neighbor_counts(targets)
        for y, x, channel in np.ndindex(targets.shape):
            if targets[y, x, channel] == NO_PAIR:
                continue
            rate = channel // 8
            guess = 1 if logits[index, y, x, channel] > 0 else 0
            found[0, rate, counts[y, x, rate]] += int(guess == targets[y, x, channel])
            found[1, rate, counts[y, x, rate]] += 1
    return found


def finite_differences(function, point, step=1e-5):
    """Gradient of a scalar function by central differences in float64."""
    point = np.array(point, np.float64)
    gradient = np.zeros_like(point)
    for position in np.ndindex(point.shape):
        kept = point[position]
        point[position] = kept + step
        above = function(point)
        point[position] = kept - step
        below = function(point)
        point[position] = kept
        gradient[position] = (above - below) / (2 * step)
    return gradient


def random_labels(seed, shape, num_classes=4, void_share=0.15):
    """Label maps of blocks, (..., H, W) uint8, with void pixels."""
    rng = np.random.default_rng(seed)
    *lead, height, width = shape
    coarse = rng.integers(0, num_classes, (*lead, -(-height // 3), -(-width // 4)))
    labels = coarse.repeat(3, axis=-2).repeat(4, axis=-1)[..., :height, :width].astype(np.uint8)
    labels[rng.random(labels.shape) < void_share] = VOID
    return labels


def random_probabilities(seed, shape):
    """Class probabilities (..., C) that sum to 1, some of them near 1."""
    scores = np.random.default_rng(seed).normal(0, 2, shape)
    exponentials = np.exp(scores)
    return (exponentials / exponentials.sum(axis=-1, keepdims=True)).astype(np.float32)


def symmetric_logits(logits, offsets, valid):
    """Logits averaged over the two directions of each pair, pixel by pixel."""
    batch, height, width, _ = logits.shape
    result = np.array(logits, float)
    index = {}
    for channel, offset in enumerate(map(tuple, offsets)):
        index[channel // 8, offset] = channel
    for b, y, x in np.ndindex(batch, height, width):
        for (rate, (dy, dx)), channel in index.items():
            row, column = y + dy, x + dx
            if 0 <= row < height and 0 <= column < width and valid[b, row, column]:
                other = logits[b, row, column, index[rate, (-dy, -dx)]]
                result[b, y, x, channel] = (float(logits[b, y, x, channel]) + float(other)) / 2
    return result
