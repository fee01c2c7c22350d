"""Predictions averaged over views of an image: windows, scales and the mirror image.

Both classes wrap a network, a function from images to logits, into another one, so that they can be
stacked. The logits that they return are those of the averaged probabilities.
"""

import numpy as np
from keras import ops

from dilated_affinity.affinity.geometry import NEIGHBORS, neighbor_offsets
from dilated_affinity.errors import ConfigError
from dilated_affinity.inference.views import check_scales

_SMALLEST = float(np.finfo(np.float32).tiny)
_LARGEST = 1.0 - 2.0**-24
"""The range of probabilities whose logits are finite in float32."""

_NO_PAIR = 1e-6
"""Weight of the affinity to a pixel outside the window, so that any other window outweighs it."""


class SlidingWindow:
    """Predicts an image that is too large for memory in overlapping windows.

    Windows overlap the next by at least a third of their side. They are inside the image, so that
    nothing is padded; a window is no larger than the image. Where windows overlap, their
    probabilities are averaged. The affinity of a pair of pixels is averaged over the windows that
    contain both, because no affinity to a neighbour outside a crop is trained.

    Args:
        network: Function from uint8 images (1, H, W, 3) to a dict of logits (1, H, W, channels):
            `"semantic"` and, unless `rates` is None, `"affinity"`.
        window: Side of the windows in pixels.
        rates: (vertical, horizontal) pairs of the affinity; None without.

    Call arguments:
        images: uint8 (1, H, W, 3).

    Returns:
        Dict of float32 logits as the network returns them, at the size of the whole image.

    Raises:
        ConfigError: If the window is not a positive whole number.

    Example:

    >>> def network(images):
    ...     return {"semantic": ops.one_hot(images[..., 0] // 128, 2) * 8.0}
    >>> SlidingWindow(network, 5, None)(np.zeros((1, 9, 12, 3), "uint8"))["semantic"].shape
    TensorShape([1, 9, 12, 2])
    """

    def __init__(self, network, window: int, rates):
        if isinstance(window, bool) or not isinstance(window, int) or window < 1:
            raise ConfigError(
                f"window must be a positive whole number. Received: window={window!r}"
            )
        self._network = network
        self._window = window
        self._rates = rates

    def __call__(self, images):
        size = tuple(images.shape[1:3])
        window = tuple(min(side, self._window) for side in size)
        if window == size:
            return self._network(images)
        weights = {"semantic": np.ones((*window, 1), np.float32)}
        if self._rates is not None:
            inside = pairs_inside(window, self._rates)
            weights["affinity"] = np.where(inside, np.float32(1.0), np.float32(_NO_PAIR))
        means = {head: _WeightedMean(size) for head in weights}
        for top in window_starts(size[0], window[0]):
            for left in window_starts(size[1], window[1]):
                place = np.s_[top : top + window[0], left : left + window[1]]
                logits = self._network(images[(slice(None), *place)])
                for head, weight in weights.items():
                    probabilities = _probabilities(head, logits[head])[0]
                    means[head].add(ops.convert_to_numpy(probabilities), weight, place)
        return {head: _logits(head, mean.result()[np.newaxis]) for head, mean in means.items()}


def window_starts(size: int, window: int) -> list[int]:
    """Returns the starts of windows along a side, evenly spaced from its start to its end.

    >>> window_starts(2048, 769)
    [0, 426, 852, 1279]
    """
    if size <= window:
        return [0]
    # An overlap of a third: a step of 513 pixels for windows of 769, as in mmsegmentation.
    intervals = -(-(size - window) // (window - window // 3))
    return [index * (size - window) // intervals for index in range(intervals + 1)]


def pairs_inside(size, rates) -> np.ndarray:
    """Returns whether each neighbour of a pixel is inside the image: bool (H, W, 8|R|).

    >>> pairs_inside((1, 3), ((1, 1),))[0, :, 4]  # the neighbour to the right
    array([ True,  True, False])
    """
    rows, columns = (
        np.arange(side)[:, None] + offsets
        for side, offsets in zip(size, neighbor_offsets(rates).T, strict=True)
    )
    inside_rows = (rows >= 0) & (rows < size[0])
    inside_columns = (columns >= 0) & (columns < size[1])
    return inside_rows[:, None] & inside_columns[None]


class _WeightedMean:
    """Weighted mean of maps (h, w, channels) that each cover a part of an image."""

    def __init__(self, size):
        self._size = size
        self._total = self._weight = None

    def add(self, values, weight, place):
        if self._total is None:
            self._total = np.zeros((*self._size, values.shape[-1]), np.float32)
            self._weight = np.zeros((*self._size, weight.shape[-1]), np.float32)
        self._total[place] += values * weight
        self._weight[place] += weight

    def result(self):
        return self._total / self._weight


class MultiScale:
    """Averages predictions over scales of an image and, optionally, its mirror image.

    The image is resized to each scale as in training (bilinear, pixel centres aligned); the class
    logits are resized back, and the probabilities averaged. The affinity is that of scale 1 alone,
    which is added for it if it is not among the scales: at another scale, the rates would be other
    distances in the image. The affinity of the mirror image is averaged with that of the image,
    after each neighbour has been exchanged with its mirrored one.

    Args:
        network: As for `SlidingWindow`.
        scales: Positive numbers, each once; 1 is the original size.
        flip: Whether to average with the mirror image (left to right) at every scale.
        rates: (vertical, horizontal) pairs of the affinity; None without.

    Call arguments:
        images: uint8 (1, H, W, 3).

    Returns:
        Dict of float32 logits as the network returns them, at the size of the images.

    Raises:
        ConfigError: If there are no scales, or they are out of range or not distinct.

    Example:

    >>> def network(images):
    ...     return {"semantic": ops.one_hot(images[..., 0] // 128, 2) * 8.0}
    >>> multi_scale = MultiScale(network, scales=(0.5, 1.0), flip=True, rates=None)
    >>> multi_scale(np.zeros((1, 9, 12, 3), "uint8"))["semantic"].shape
    TensorShape([1, 9, 12, 2])
    """

    def __init__(self, network, scales, flip: bool, rates):
        self._network = network
        self._mirrored = (False, True) if flip else (False,)
        self._scales = check_scales(scales)
        self._neighbors = None if rates is None else mirrored_neighbors(rates)

    def __call__(self, images):
        size = tuple(images.shape[1:3])
        sums = {}
        for scale in self._scales_to_run():
            for mirrored in self._mirrored:
                for head, probabilities in self._view(images, size, scale, mirrored).items():
                    sums[head] = sums[head] + probabilities if head in sums else probabilities
        views = {"semantic": len(self._scales), "affinity": 1}
        return {
            head: _logits(head, total / (views[head] * len(self._mirrored)))
            for head, total in sums.items()
        }

    def _scales_to_run(self):
        if self._neighbors is None or 1.0 in self._scales:
            return self._scales
        return (*self._scales, 1.0)

    def _view(self, images, size, scale, mirrored):
        """Returns the probabilities of one view, at the image's size and orientation."""
        if scale != 1.0:
            images = _resize(images, [max(1, round(side * scale)) for side in size])
            images = ops.cast(ops.round(images), "uint8")
        logits = self._network(ops.flip(images, axis=2) if mirrored else images)
        heads = {}
        if scale in self._scales:
            heads["semantic"] = logits["semantic"]
        if scale == 1.0 and self._neighbors is not None:
            heads["affinity"] = logits["affinity"]
        if mirrored:
            heads = {head: ops.flip(values, axis=2) for head, values in heads.items()}
            if "affinity" in heads:
                heads["affinity"] = ops.take(heads["affinity"], self._neighbors, axis=-1)
        if scale != 1.0:
            heads["semantic"] = _resize(heads["semantic"], size)
        return {head: _probabilities(head, values) for head, values in heads.items()}


def mirrored_neighbors(rates) -> np.ndarray:
    """Returns for each channel that of the same neighbour in the mirror image, int (8|R|,).

    >>> mirrored_neighbors(((1, 2),)).tolist()
    [2, 1, 0, 4, 3, 7, 6, 5]
    """
    offsets = neighbor_offsets(rates).tolist()
    rate_and_offset = [(index // NEIGHBORS, dy, dx) for index, (dy, dx) in enumerate(offsets)]
    return np.array([rate_and_offset.index((rate, dy, -dx)) for rate, dy, dx in rate_and_offset])


def _resize(images, size):
    return ops.image.resize(
        ops.cast(images, "float32"), size, "bilinear", data_format="channels_last"
    )


def _probabilities(head, logits):
    logits = ops.cast(logits, "float32")
    return ops.softmax(logits) if head == "semantic" else ops.sigmoid(logits)


def _logits(head, probabilities):
    """Returns finite logits of probabilities: their softmax or sigmoid gives them again."""
    if head == "semantic":
        return ops.log(ops.maximum(probabilities, _SMALLEST))
    inside = ops.clip(probabilities, _SMALLEST, _LARGEST)
    return ops.log(inside) - ops.log1p(-inside)
