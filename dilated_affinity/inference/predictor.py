"""Prediction of images of any sizes, one after the other."""

import collections
import dataclasses

import numpy as np
from keras import ops

from dilated_affinity.inference.model import check_images
from dilated_affinity.inference.network import Network, logits_fn
from dilated_affinity.inference.padding import crop
from dilated_affinity.inference.refinement import as_refinement
from dilated_affinity.inference.refiners import make_refiner
from dilated_affinity.inference.views import Views
from dilated_affinity.models.deeplab import affinity_rates


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Labels of one image, and the predictions behind them.

    Attributes:
        labels: uint8 (H, W), after refinement.
        unrefined: uint8 (H, W), before it.
        affinity: float32 (H, W, 8|R|), probability that a neighbour shares the class; None for a
            model without affinity head.
        probabilities: float32 (H, W, C), of the classes, after refinement; None from a custom
            predictor that has none.
    """

    labels: np.ndarray
    unrefined: np.ndarray
    affinity: np.ndarray | None
    probabilities: np.ndarray | None = None


class Predictor:
    """Predicts images of any sizes; propagation is compiled for few of them.

    Args:
        model: As `DeepLabV3Plus` builds it.
        iterations: Iterations of the refinement. Defaults to None: those of `refinement`.
        refinement: As for `inference_model`; `"crf"` or a `DenseCRF` as well.
        views: `Views` of the image to average over before refinement. Defaults to None: the image
            as it is.
        **settings: As for `inference_model`.

    Attributes:
        rates: (vertical, horizontal) pairs of the affinity; None for a model without.

    Raises:
        ConfigError: For an argument out of its range, or a refinement that the model does not
            allow.
    """

    def __init__(
        self,
        model,
        iterations: int | None = None,
        refinement=None,
        views: Views | None = None,
        **settings,
    ):
        self.rates = affinity_rates(model)
        self._network = Network(logits_fn(model, views))
        self._refinement = as_refinement(refinement, iterations=iterations, **settings)
        self._refiner = make_refiner(model, self._refinement)

    def __call__(self, image) -> Prediction:
        """Predicts one image, uint8 (H, W, 3) RGB."""
        return next(self.map([image]))

    def map(self, images):
        """Yields the `Prediction` of each image, in order.

        A dense CRF works on several images at once, see `DenseCRF.map`.

        Args:
            images: Iterable of uint8 (H, W, 3) RGB.
        """
        pending = collections.deque()

        def outputs():
            for image in images:
                check_images(image, rank=3)
                pending.append(self._network(image))
                yield pending[-1]

        for refined in self._refiner.map(outputs()):
            probabilities = next(iter(refined))
            yield self._prediction(pending.popleft(), probabilities)

    def _prediction(self, outputs, refined):
        unrefined = ops.convert_to_numpy(outputs.probabilities)[0].argmax(axis=-1)
        probabilities = ops.convert_to_numpy(refined)[0]
        same = None
        if outputs.affinity is not None:
            same = ops.sigmoid(outputs.padded_affinity - self._refinement.threshold)
            same = ops.convert_to_numpy(crop(same, outputs.size))[0]
        labels = probabilities.argmax(axis=-1)
        return Prediction(labels.astype(np.uint8), unrefined.astype(np.uint8), same, probabilities)
