"""One pass over a split that keeps a score for every image, before and after refinement."""

import dataclasses

import numpy as np

from dilated_affinity.datasets.registry import Source
from dilated_affinity.evaluation.counters import ClassCounter
from dilated_affinity.evaluation.metrics import iou_of_confusion, mean_over_classes
from dilated_affinity.evaluation.scoring import score
from dilated_affinity.inference.predictor import Predictor


@dataclasses.dataclass(frozen=True)
class ImageScore:
    """mIoU of one image, over the classes in its label; NaN for one of void alone.

    Attributes:
        index: Its index in the split.
        name: Its id.
        before: Before refinement, 0 to 1.
        after: After it.
    """

    index: int
    name: str
    before: float
    after: float


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The result of `measure`.

    Attributes:
        scores: An `ImageScore` for every image, in order.
        confusion_before: int64 (C, C), rows are labels, before refinement.
        confusion_after: After it.
        iou_before: IoU of each class, float64 (C,); NaN for one that the labels lack.
        iou_after: After refinement.
    """

    scores: tuple[ImageScore, ...]
    confusion_before: np.ndarray
    confusion_after: np.ndarray
    iou_before: np.ndarray
    iou_after: np.ndarray

    @property
    def mean_iou(self) -> tuple[float, float]:
        """Means before and after refinement, over the classes that occur in the labels."""
        before, after = mean_over_classes([self.iou_before, self.iou_after]).tolist()
        return before, after

    def best(self, count: int) -> tuple[ImageScore, ...]:
        """The images of the highest mIoU after refinement, best first."""
        return tuple(reversed(self._ranked()[-count:])) if count else ()

    def worst(self, count: int) -> tuple[ImageScore, ...]:
        """The images of the lowest mIoU after refinement, worst first, none of the `best`."""
        ranked = self._ranked()
        return tuple(ranked[: max(min(count, len(ranked) - count), 0)])

    def _ranked(self):
        seen = (score for score in self.scores if not np.isnan(score.after))
        return sorted(seen, key=lambda score: (score.after, score.index))


def measure(predictor: Predictor, source: Source, limit: int | None = None) -> Measurement:
    """Measures a predictor on the images of a split, each by itself and all together.

    Args:
        predictor: The predictor.
        source: The examples.
        limit: How many examples to take, from the first. Defaults to None: all.

    Returns:
        `Measurement`.
    """

    def predict(examples):
        for prediction in predictor.map(example["image"] for example in examples):
            yield prediction.unrefined[np.newaxis], prediction.labels[np.newaxis]

    before, after = (_ImageByImage(source.classes.num_classes) for _ in range(2))
    score(source, predict, [[before], [after]], "report", limit)
    scores = zip(source.ids[:limit], before.mean_iou, after.mean_iou, strict=True)
    return Measurement(
        tuple(ImageScore(index, *each) for index, each in enumerate(scores)),
        before.confusion,
        after.confusion,
        iou_of_confusion(before.confusion),
        iou_of_confusion(after.confusion),
    )


class _ImageByImage:
    """A counter that keeps the mIoU of every image, and the confusion matrix of all of them."""

    def __init__(self, num_classes):
        self.confusion = np.zeros((num_classes, num_classes), np.int64)
        self.mean_iou = []

    def update_state(self, label, predicted):
        image = ClassCounter(len(self.confusion))
        image.update_state(label, predicted)
        self.confusion += image.confusion_matrix()
        self.mean_iou.append(float(mean_over_classes(image.class_iou())))
