"""Dense CRF (Krähenbühl and Koltun, NIPS 2011) on a network's probabilities, a row of Table 5."""

import collections
import concurrent.futures.process
import dataclasses
import itertools
import multiprocessing
import os

import numpy as np

from dilated_affinity.errors import ConfigError, DilatedAffinityError

_FEW = 8
"""Images that one process refines in about the time that it takes to start others."""


@dataclasses.dataclass(frozen=True)
class DenseCRF:
    """Refines the class probabilities of an image by a fully connected CRF.

    The defaults are those of kazuto1011/deeplab-pytorch for PASCAL VOC. Calling it needs the
    package's extra `crf`.

    Attributes:
        iterations: Mean field iterations. Defaults to 10.
        gaussian_weight: Weight of the smoothness kernel. Defaults to 3.
        gaussian_xy: Standard deviation of the smoothness kernel in pixels. Defaults to 1.
        bilateral_weight: Weight of the appearance (bilateral) kernel. Defaults to 4.
        bilateral_xy: Standard deviation of the appearance kernel in pixels. Defaults to 67.
        bilateral_rgb: Standard deviation of the appearance kernel in grey levels. Defaults to 3.

    Raises:
        ConfigError: For a setting out of its range.

    Example:

    >>> image = np.zeros((4, 6, 3), np.uint8)
    >>> probabilities = np.full((4, 6, 2), 0.5, np.float32)
    >>> DenseCRF(iterations=2)(image, probabilities).shape  # doctest: +SKIP
    (4, 6, 2)
    """

    iterations: int = 10
    gaussian_weight: float = 3.0
    gaussian_xy: float = 1.0
    bilateral_weight: float = 4.0
    bilateral_xy: float = 67.0
    bilateral_rgb: float = 3.0

    def __post_init__(self):
        widths = (self.gaussian_xy, self.bilateral_xy, self.bilateral_rgb)
        weights = (self.gaussian_weight, self.bilateral_weight)
        if self.iterations < 0 or not min(widths) > 0 or not min(weights) >= 0:
            raise ConfigError(
                "A dense CRF needs iterations and weights of at least 0, and deviations above 0. "
                f"Received: {self}"
            )

    def check_installed(self):
        """Raises `ConfigError` where the extra `crf` is not installed."""
        _pydensecrf()

    def __call__(self, image, probabilities) -> np.ndarray:
        """Refines one image.

        Args:
            image: uint8 (H, W, 3) RGB.
            probabilities: float (H, W, C); values below 1e-5 count as 1e-5.

        Returns:
            float32 (H, W, C), adding up to 1 over the classes.

        Raises:
            ConfigError: If the image does not match the probabilities, or the extra `crf` is not
                installed.
        """
        densecrf, helpers = _pydensecrf()
        height, width, num_classes = probabilities.shape
        if image.shape != (height, width, 3) or image.dtype != np.uint8:
            raise ConfigError(
                "The image must be uint8 of the probabilities' height and width, with 3 channels. "
                f"Received: {image.dtype} of shape {image.shape}, probabilities of shape "
                f"{probabilities.shape}"
            )
        energies = helpers.unary_from_softmax(np.moveaxis(probabilities, -1, 0))
        crf = densecrf.DenseCRF2D(width, height, num_classes)
        crf.setUnaryEnergy(np.ascontiguousarray(energies))
        crf.addPairwiseGaussian(sxy=self.gaussian_xy, compat=self.gaussian_weight)
        crf.addPairwiseBilateral(
            sxy=self.bilateral_xy,
            srgb=self.bilateral_rgb,
            # pydensecrf refuses arrays that it must not write to.
            rgbim=np.require(image, requirements=["C", "W"]),
            compat=self.bilateral_weight,
        )
        refined = np.array(crf.inference(self.iterations), np.float32)
        return np.moveaxis(refined.reshape(num_classes, height, width), 0, -1)

    def map(self, pairs, workers=None):
        """Refines many images in several processes, while `pairs` is still being computed.

        The processes import the calling script, whose work must be guarded by
        `if __name__ == "__main__":`.

        Args:
            pairs: Iterable of pairs of image and probabilities, as for a call.
            workers: Number of processes; 1 for this process alone. Defaults to None: one for each
                core, or this process alone where there are so few pairs that starting others would
                take longer.

        Yields:
            What a call returns for each pair, in order. Only few pairs are in memory.

        Raises:
            ConfigError: If `workers` is below 1.
            DilatedAffinityError: If a process ends, for want of the guard or of memory.
        """
        pairs = iter(pairs)
        if workers is None:
            first = list(itertools.islice(pairs, _FEW + 1))
            workers = (os.cpu_count() or 1) if len(first) > _FEW else 1
            pairs = itertools.chain(first, pairs)
        if workers < 1:
            raise ConfigError(f"workers must be at least 1. Received: workers={workers}")
        if workers == 1:
            yield from itertools.starmap(self, pairs)
            return
        try:
            yield from self._in_processes(pairs, workers)
        except concurrent.futures.process.BrokenProcessPool:
            raise DilatedAffinityError(
                "a process of the dense CRF ended. Either memory ran out, or the calling script, "
                "which these processes import, has no guard: it must start its work below "
                f'`if __name__ == "__main__":`. Received: workers={workers}'
            ) from None

    def _in_processes(self, pairs, workers):
        # pydensecrf keeps the interpreter lock, so threads would not help; and TensorFlow's
        # threads do not survive a fork.
        context = multiprocessing.get_context("spawn")
        waiting = collections.deque()
        with concurrent.futures.ProcessPoolExecutor(workers, context) as pool:
            for image, probabilities in pairs:
                waiting.append(pool.submit(self, image, probabilities))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()


def _pydensecrf():
    try:
        from pydensecrf import densecrf, utils
    except ImportError:
        raise ConfigError(
            "The dense CRF needs pydensecrf2, which is not installed: "
            "pip install 'dilated_affinity[crf]'. Received: no module pydensecrf"
        ) from None
    return densecrf, utils
