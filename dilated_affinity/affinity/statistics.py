"""Section 3.2: frequencies of neighbour counts, and the loss weights and biases from them."""

import collections
import concurrent.futures
import dataclasses
import json
import os
from pathlib import Path

import keras
import numpy as np

from dilated_affinity.affinity.geometry import NEIGHBORS, Rates, check_rates, neighbor_offsets
from dilated_affinity.errors import ConfigError, DataError
from dilated_affinity.runtime.files import write_atomically

WEIGHTINGS = ("none", "signal", "neighbor", "sqrt_neighbor")
"""The rows of Table 1: baseline, signal-reweight, neighbor-reweight, sqrt-reweight."""

COUNTS = NEIGHBORS + 1
"""Categories n0 to n8."""

SUPPORT = 1e-5
"""The share of a rate's pixels or pairs below which a category is too rare to estimate its weight.

A tenth of the share of the rarest category of PASCAL VOC 2012 aug: n0 at rate 8, 1 in 10,000.
"""

_WAITING = 4  # label maps in memory for each core


@keras.saving.register_keras_serializable("dilated_affinity")
@dataclasses.dataclass(frozen=True, eq=False)
class AffinityStatistics:
    """Frequencies of n0..n8 and of positive pairs over the labels of a training set.

    Counts are whole numbers, so statistics of parts of a data set add up exactly. Statistics of the
    same rates and counts are equal.

    Attributes:
        rates: (vertical, horizontal) pairs; given as text such as `"8,(12,24),16"`, or as numbers
            and pairs.
        pixels: int64 array (|R|, 9): non-void pixels with k positive neighbours.
        pairs: int64 array (|R|, 2): pairs of different and of the same class.

    Example:

    >>> labels = np.array([[0, 0, 1, 1]])
    >>> statistics = AffinityStatistics.from_labels([labels], ((1, 1),))
    >>> statistics.positive_frequencies.round(3).tolist()
    [0.667]
    """

    rates: Rates
    pixels: np.ndarray
    pairs: np.ndarray

    def __post_init__(self):
        rates = check_rates(self.rates)
        object.__setattr__(self, "rates", rates)
        for name, columns in (("pixels", COUNTS), ("pairs", 2)):
            values = np.asarray(getattr(self, name))
            if values.shape != (len(rates), columns) or values.dtype.kind not in "iu":
                raise ConfigError(
                    f"{name} must be whole numbers of shape {(len(rates), columns)}. "
                    f"Received: {values.dtype} of shape {values.shape}"
                )
            if (values < 0).any():
                raise ConfigError(f"{name} must not be negative. Received: {values.tolist()}")
            if values.astype(object).sum(axis=1).max() > np.iinfo(np.int64).max:
                raise ConfigError(
                    f"{name} of a rate must add up to less than 2**63. Received: {values.tolist()}"
                )
            values = values.astype(np.int64)
            values.flags.writeable = False  # the hash depends on them
            object.__setattr__(self, name, values)
        if not self.pixels.any(axis=1).all():
            raise ConfigError(
                "pixels must hold at least one pixel for each rate. "
                f"Received: {self.pixels.tolist()}"
            )

    @classmethod
    def from_labels(cls, labels, rates, ignore_label=255):
        """Counts over label maps at their original resolution, on all cores.

        Computed by NumPy rather than `affinity_targets`, which XLA would compile for each size of a
        label map; also, half of the pairs mirror the other half.

        Args:
            labels: Iterable of integer arrays of shape (H, W), whose sizes may differ, or of
                functions without arguments that read one; these are called in parallel.
            rates: Text such as `"8,(12,24),16"`, or numbers and (vertical, horizontal) pairs.
            ignore_label: The void label. Defaults to 255. With a value that the labels' type cannot
                hold, no pixel is void.

        Raises:
            DataError: If there is no label map, or all pixels are void.
        """
        rates = check_rates(rates)
        pixels, pairs = _zeros(rates)

        def count(label):
            counts = _zeros(rates)
            _count(np.asarray(label() if callable(label) else label), rates, ignore_label, *counts)
            return counts

        def add(counted):
            for total, part in zip((pixels, pairs), counted.result(), strict=True):
                total += part

        # NumPy releases the interpreter lock while it processes an image.
        cores = os.cpu_count()
        running = collections.deque()
        with concurrent.futures.ThreadPoolExecutor(cores) as threads:
            for label in labels:
                running.append(threads.submit(count, label))
                if len(running) > _WAITING * cores:
                    add(running.popleft())
            while running:
                add(running.popleft())
        if not pixels.any():
            raise DataError("Affinity statistics need at least one pixel that is not void.")
        return cls(rates, pixels, pairs)

    def __eq__(self, other):
        if not isinstance(other, AffinityStatistics):
            return NotImplemented
        return self._counts() == other._counts()

    def __hash__(self):
        return hash(self._counts())

    def _counts(self):
        return self.rates, self.pixels.tobytes(), self.pairs.tobytes()

    def __add__(self, other):
        if not isinstance(other, AffinityStatistics):
            return NotImplemented
        if other.rates != self.rates:
            raise ConfigError(
                f"Statistics of different rates do not add up: {self.rates} and {other.rates}."
            )
        return AffinityStatistics(self.rates, self.pixels + other.pixels, self.pairs + other.pairs)

    @property
    def count_frequencies(self) -> np.ndarray:
        """freq(n_k, r): float64 array (|R|, 9), each row summing to 1."""
        return self.pixels / self.pixels.sum(axis=1, keepdims=True)

    @property
    def positive_frequencies(self) -> np.ndarray:
        """pi_r, the frequency of positive pairs among existing pairs: float64 array (|R|,).

        A rate without positive or negative pairs is given one, so that the logit of pi_r is finite.
        """
        pairs = np.maximum(self.pairs, 1)
        return pairs[:, 1] / pairs.sum(axis=1)

    def weights(self, weighting="sqrt_neighbor") -> np.ndarray:
        """The weights of Table 1, bounded for rare categories.

        A category with less than `SUPPORT` of a rate's pixels (pairs for `"signal"`) is taken to be
        as frequent as the rarest category above that share. Otherwise a category that hardly occurs
        in the labels, but does in training crops at other scales, would dominate the loss.

        Args:
            weighting: `"none"` (1 everywhere), `"neighbor"` (freq(n8, r) / freq(n_k, r)),
                `"sqrt_neighbor"` (its square root, the paper's method; Eq. 5), or `"signal"`
                (positives 1, negatives freq(positive, r) / freq(negative, r)).

        Returns:
            float64 array. For `"signal"`, of shape (|R|, 2): the weight of a negative and of a
            positive pair. Otherwise of shape (|R|, 9): the weight of a pixel with k positive
            neighbours; that of n8 is always 1.
        """
        if weighting not in WEIGHTINGS:
            raise ConfigError(
                f"weighting must be one of {', '.join(WEIGHTINGS)}. "
                f"Received: weighting={weighting!r}"
            )
        if weighting == "none":
            return np.ones(self.pixels.shape)
        counts = self.pairs if weighting == "signal" else self.pixels
        # A rate larger than all label maps has no pairs.
        supported = counts > SUPPORT * counts.sum(axis=1, keepdims=True)
        rarest = np.where(supported, counts, np.iinfo(np.int64).max).min(axis=1, keepdims=True)
        frequent = np.where(supported, counts, rarest)
        ratio = frequent[:, -1:] / frequent
        return np.sqrt(ratio) if weighting == "sqrt_neighbor" else ratio

    def bias(self) -> np.ndarray:
        """Bias prior of the affinity head: b_r with sigmoid(b_r) = pi_r, float64 array (8|R|,)."""
        prior = self.positive_frequencies
        return np.repeat(np.log(prior) - np.log1p(-prior), NEIGHBORS)

    def table(self) -> str:
        """Formats the shares of n0 to n8 and of positive pairs of each rate, in percent."""
        lines = [" " * 10 + "".join(f"{f'n{k}':>8}" for k in range(COUNTS)) + f"{'positive':>10}"]
        for rate, counts, positive in zip(
            self.rates, self.count_frequencies, self.positive_frequencies, strict=True
        ):
            cells = "".join(f"{100 * share:8.3f}" for share in counts)
            lines.append(f"{'({},{})'.format(*rate):<10}{cells}{100 * positive:10.3f}")
        return "\n".join(lines)

    def get_config(self) -> dict:
        """The rates and counts in JSON types, for `from_config`."""
        return {
            "rates": [list(rate) for rate in self.rates],
            "pixels": self.pixels.tolist(),
            "pairs": self.pairs.tolist(),
        }

    @classmethod
    def from_config(cls, config):
        return cls(
            config["rates"],
            np.array(config["pixels"]),
            np.array(config["pairs"]),
        )

    def save(self, path: str | os.PathLike):
        """Writes the counts as JSON, atomically."""
        text = json.dumps(self.get_config(), indent=1)
        write_atomically(path, text.encode())

    @classmethod
    def load(cls, path: str | os.PathLike):
        """Reads a file written by `save`.

        Raises:
            DataError: If the file is missing, is not JSON, or does not hold statistics.
        """
        try:
            config = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls.from_config(config)
        except OSError as error:
            raise DataError(f"{path}: cannot read affinity statistics: {error.strerror}") from None
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise DataError(f"{path}: not a file of affinity statistics: {error}") from None


def _zeros(rates):
    return np.zeros((len(rates), COUNTS), np.int64), np.zeros((len(rates), 2), np.int64)


def _count(label, rates, ignore_label, pixels, pairs):
    """Adds one label map to `pixels` and `pairs`."""
    if label.ndim != 2 or label.dtype.kind not in "iu":
        raise DataError(
            "A label map must be an integer array of shape (height, width). "
            f"Received: {label.dtype} of shape {label.shape}"
        )
    valid = label != ignore_label
    voids = label.size - np.count_nonzero(valid)
    offsets = neighbor_offsets(rates).reshape(len(rates), NEIGHBORS, 2)
    for rate, neighbors in enumerate(offsets):
        negatives = np.zeros(label.shape, np.uint8)
        # Each pair is visited once: the first four offsets mirror the last four.
        for dy, dx in neighbors[NEIGHBORS // 2 :]:
            here, there = _overlap(label.shape, dy, dx)
            different = label[here] != label[there]
            existing = different.size
            if voids:
                exists = valid[here] & valid[there]
                existing = np.count_nonzero(exists)
                different &= exists
            negatives[here] += different.view(np.uint8)
            negatives[there] += different.view(np.uint8)
            negative = 2 * np.count_nonzero(different)
            pairs[rate] += (negative, 2 * existing - negative)
        # Several times faster than np.bincount, which converts the bytes to int64 first.
        histogram = [np.count_nonzero(negatives == number) for number in range(COUNTS)]
        histogram[0] -= voids
        pixels[rate] += histogram[::-1]


def _overlap(shape, dy, dx):
    """Slices of the pixels that have a neighbour at (dy, dx), and of those neighbours; dy >= 0."""
    height, width = shape
    rows = slice(0, max(height - dy, 0)), slice(min(dy, height), height)
    left, right = max(-dx, 0), max(dx, 0)
    columns = slice(left, max(width - right, left)), slice(right, max(width - left, right))
    return (rows[0], columns[0]), (rows[1], columns[1])
