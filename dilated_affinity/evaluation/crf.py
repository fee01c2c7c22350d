"""Evaluation and prediction with a dense CRF in the place of propagation (Table 5)."""

import collections
import dataclasses

import numpy as np
from keras import ops

from dilated_affinity.baselines.crf import DenseCRF
from dilated_affinity.config import Config
from dilated_affinity.datasets.registry import Source
from dilated_affinity.evaluation.evaluate import Evaluation
from dilated_affinity.evaluation.metrics import BoundaryIoU, MeanIoU, mean_over_classes
from dilated_affinity.inference.predictor import Prediction, logits_fn
from dilated_affinity.models.deeplab import affinity_rates
from dilated_affinity.runtime.progress import progress


def dense_crf_of(config: Config) -> DenseCRF:
    """The CRF that a run's settings `crf_*` describe.

    Raises:
        ConfigError: If the extra `crf` is not installed.
    """
    names = [field.name for field in dataclasses.fields(DenseCRF)]
    return DenseCRF(**{name: getattr(config, f"crf_{name}") for name in names})


def evaluate_crf(
    model, source: Source, crf: DenseCRF, scales=(1.0,), flip=False, window=0, workers=None
) -> Evaluation:
    """Measures a model on every example of a split, before and after a CRF.

    Args:
        model: As `DeepLabV3Plus` builds it; its affinity, if any, is left aside.
        source: The examples.
        crf: The CRF.
        scales: See `evaluate`.
        flip: See `evaluate`.
        window: See `evaluate`.
        workers: Processes in which the CRF runs, see `DenseCRF.map`.

    Returns:
        `Evaluation` at 0 and at the CRF's iterations, its `refine_with` `"crf"`.
    """
    before, after = (_Scores(source.classes.num_classes) for _ in range(2))
    predict = logits_fn(model, scales, flip, window)
    labels = collections.deque()

    def pairs():
        for index in progress(range(len(source)), "evaluation"):
            example = source[index]
            probabilities = _probabilities(predict(example["image"][np.newaxis]))
            before.add(example["label"], probabilities)
            labels.append(example["label"])
            yield example["image"], probabilities

    for refined in crf.map(pairs(), workers):
        after.add(labels.popleft(), refined)
    scores = (before, after)
    return Evaluation(
        split_size=len(source),
        class_names=source.classes.names,
        iterations=(0, crf.iterations),
        refine_with="crf",
        class_iou=np.stack([each.iou.class_iou() for each in scores]),
        pixel_accuracy=tuple(each.iou.pixel_accuracy() for each in scores),
        boundary_iou=tuple(
            mean_over_classes([each.boundary.class_iou() for each in scores]).tolist()
        ),
    )


class CRFPredictor:
    """Predicts images of any sizes and refines them by a CRF; has the methods of `Predictor`.

    Args:
        model: As `DeepLabV3Plus` builds it.
        crf: The CRF.
        scales: See `Predictor`.
        flip: See `Predictor`.
        window: See `Predictor`.
        workers: Processes in which `map` runs the CRF, see `DenseCRF.map`.
    """

    def __init__(self, model, crf: DenseCRF, scales=(1.0,), flip=False, window=0, workers=None):
        self.rates = affinity_rates(model)
        self._network = logits_fn(model, scales, flip, window)
        self._crf = crf
        self._workers = workers

    def __call__(self, image) -> Prediction:
        """Predicts one image, uint8 (H, W, 3) RGB."""
        return next(self._map([image], workers=1))

    def map(self, images):
        """Yields the `Prediction` of each image in order, several being refined at once."""
        return self._map(images, self._workers)

    def _map(self, images, workers):
        found = collections.deque()

        def pairs():
            for image in images:
                logits = self._network(image[np.newaxis])
                probabilities = _probabilities(logits)
                same = None
                if self.rates is not None:
                    same = ops.convert_to_numpy(ops.sigmoid(logits["affinity"]))[0]
                found.append((_labels(probabilities), same))
                yield image, probabilities

        for refined in self._crf.map(pairs(), workers):
            yield Prediction(_labels(refined), *found.popleft(), refined)


class _Scores:
    """Metrics of one stage of the refinement."""

    def __init__(self, num_classes):
        self.iou = MeanIoU(num_classes)
        self.boundary = BoundaryIoU(num_classes)

    def add(self, label, probabilities):
        predicted = _labels(probabilities)[np.newaxis]
        self.iou.update_state(label[np.newaxis], predicted)
        self.boundary.update_state(label[np.newaxis], predicted)


def _probabilities(logits):
    return ops.convert_to_numpy(ops.softmax(logits["semantic"]))[0]


def _labels(probabilities):
    return probabilities.argmax(axis=-1).astype(np.uint8)
