"""Evaluation of a split, before and after propagation, every image once at its original size."""

import dataclasses

import keras
import numpy as np
from keras import ops

from dilated_affinity.affinity.affinities import affinities_from_targets
from dilated_affinity.affinity.targets import affinity_targets
from dilated_affinity.datasets.registry import Source
from dilated_affinity.errors import ConfigError
from dilated_affinity.evaluation.metrics import (
    AffinityAccuracy,
    BoundaryIoU,
    MeanIoU,
    mean_over_classes,
)
from dilated_affinity.inference.padding import PaddedShapes, on_canvas, pad_to
from dilated_affinity.inference.predictor import logits_fn
from dilated_affinity.inference.refinement import Refiner, as_refinement
from dilated_affinity.models.deeplab import affinity_rates
from dilated_affinity.runtime.progress import progress

ITERATIONS = (0, 1, 3, 6, 10)
"""Iterations of Tables 3 and 4."""

REFINE_WITH = ("prediction", "ground_truth")


def class_iou(predict, source: Source) -> np.ndarray:
    """IoU of each class over all examples, without propagation; NaN for those not in the labels.

    Args:
        predict: The model, as `logits_fn` wraps it.
        source: The examples.
    """
    metric = MeanIoU(source.classes.num_classes)
    for example in _examples(source, "validation"):
        logits = predict(example["image"][np.newaxis])
        # Of probabilities, as `evaluate` takes it: rounding may make two of them equal.
        predicted = ops.argmax(ops.softmax(logits["semantic"]), axis=-1)
        metric.update_state(example["label"][np.newaxis], predicted)
    return metric.class_iou()


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured; `to_json` and `table` present it.

    Attributes:
        split_size: Number of images.
        class_names: Name of each class.
        iterations: Iterations of propagation at which the rest was measured.
        refine_with: `"prediction"` or `"ground_truth"`, the affinity used; or `"crf"`.
        class_iou: float64 (len(iterations), C); NaN for classes that the labels lack.
        pixel_accuracy: One for each number of iterations.
        boundary_iou: Mean boundary IoU, likewise.
        rates: (vertical, horizontal) pairs, or None for a model without affinity.
        affinity_accuracy: float64 (|R|, 9), of the affinity head per rate and neighbour count.
        affinity_accuracy_by_rate: float64 (|R|,).
    """

    split_size: int
    class_names: tuple[str, ...]
    iterations: tuple[int, ...]
    refine_with: str
    class_iou: np.ndarray
    pixel_accuracy: tuple[float, ...]
    boundary_iou: tuple[float, ...]
    rates: tuple[tuple[int, int], ...] | None = None
    affinity_accuracy: np.ndarray | None = None
    affinity_accuracy_by_rate: np.ndarray | None = None

    @property
    def mean_iou(self) -> tuple[float, ...]:
        """Mean over the classes that occur in the labels, for each number of iterations."""
        return tuple(mean_over_classes(self.class_iou).tolist())

    @property
    def absent_classes(self) -> tuple[str, ...]:
        """Classes that the labels lack; they are left out of the means."""
        return absent_classes(self.class_names, self.class_iou[0])

    def to_json(self) -> dict:
        """Plain JSON types; fractions between 0 and 1, null for what does not occur."""
        result = {
            "images": self.split_size,
            "refine_with": self.refine_with,
            "iterations": list(self.iterations),
            "mean_iou": list(self.mean_iou),
            "pixel_accuracy": list(self.pixel_accuracy),
            "boundary_iou": list(self.boundary_iou),
            "class_iou": {
                name: _json_numbers(ious)
                for name, ious in zip(self.class_names, self.class_iou.T, strict=True)
            },
            "absent_classes": list(self.absent_classes),
        }
        if self.rates is not None:
            result["affinity_accuracy"] = {
                "rates": [list(rate) for rate in self.rates],
                "by_rate": _json_numbers(self.affinity_accuracy_by_rate),
                "by_rate_and_count": [_json_numbers(row) for row in self.affinity_accuracy],
            }
        return result

    def table(self) -> str:
        """A table for people: percentages, a column for each number of iterations."""
        affinity = "" if self.rates is None else f", {self.refine_with.replace('_', ' ')} affinity"
        what = "the dense CRF" if self.refine_with == "crf" else "propagation"
        lines = [f"{self.split_size} images; columns: iterations of {what}{affinity}"]
        width = max(map(len, (*self.class_names, "pixel accuracy")))
        lines.append(" " * width + "".join(f"{count:>9}" for count in self.iterations))

        def row(name, values):
            cells = ("        -" if np.isnan(value) else f"{100 * value:9.2f}" for value in values)
            lines.append(f"{name:<{width}}" + "".join(cells))

        for name, ious in zip(self.class_names, self.class_iou.T, strict=True):
            row(name, ious)
        lines.append("-" * (width + 9 * len(self.iterations)))
        row("mIoU", self.mean_iou)
        row("pixel accuracy", self.pixel_accuracy)
        row("boundary IoU", self.boundary_iou)
        lines += left_out(self.absent_classes)
        if self.rates is not None:
            lines += ["", "affinity accuracy by rate and by number of neighbours of the same class"]
            names = [f"({vertical},{horizontal})" for vertical, horizontal in self.rates]
            width = max(map(len, names))
            lines.append(
                " " * width + f"{'all':>9}" + "".join(f"{f'n{count}':>9}" for count in range(9))
            )
            for name, overall, counts in zip(
                names, self.affinity_accuracy_by_rate, self.affinity_accuracy, strict=True
            ):
                row(name, [overall, *counts])
        return "\n".join(lines)


def evaluate(
    model: keras.Model,
    source: Source,
    iterations=ITERATIONS,
    refine_with="prediction",
    refinement=None,
    scales=(1.0,),
    flip=False,
    window=0,
    **settings,
) -> Evaluation:
    """Measures a model on every example of a split, before and after propagation.

    The network sees every image as it is. Probabilities are padded behind it, where propagation
    is compiled for few sizes only; padding lends nothing to its neighbours and is not measured.

    Args:
        model: As `DeepLabV3Plus` builds it; without affinity only 0 iterations are possible.
        source: The examples.
        iterations: Numbers of iterations to measure at, ascending, or a single one.
        refine_with: `"prediction"`, or `"ground_truth"` for the oracle of Tables 3 and 4.
        refinement: As for `inference_model`, but for its iterations.
        scales: Scales of the image to average over before propagation, see `MultiScale`.
        flip: Average with the mirror image, too.
        window: Side of the windows in which to predict what is larger, see `SlidingWindow`; 0
            for whole images.
        **settings: As for `inference_model`.

    Returns:
        `Evaluation`.

    Raises:
        ConfigError: If the iterations are not ascending, or need affinity that is not there; for
            scales or a window that make no sense; for a variant of the refinement that the model
            does not allow.
    """
    iterations = check_iterations(iterations)
    if refine_with not in REFINE_WITH:
        raise ConfigError(
            f"refine_with must be one of {', '.join(REFINE_WITH)}. "
            f"Received: refine_with={refine_with!r}"
        )
    rates = affinity_rates(model)
    if rates is None and iterations != (0,):
        raise ConfigError(
            "A model without affinity has nothing to propagate with: only 0 iterations. "
            f"Received: iterations={iterations}"
        )
    classes = source.classes
    ious = [MeanIoU(classes.num_classes) for _ in iterations]
    boundaries = [BoundaryIoU(classes.num_classes) for _ in iterations]
    accuracy = None if rates is None else AffinityAccuracy(rates)
    predict, padded_shapes = logits_fn(model, scales, flip, window), PaddedShapes()
    refiner = Refiner(model, as_refinement(refinement, **settings))
    ground_truth = refine_with == "ground_truth"
    refine = refiner.with_affinities if ground_truth else refiner
    for example in _examples(source, "evaluation"):
        size = example["label"].shape
        logits = padded_logits(predict, example["image"], padded_shapes)
        affinity, canvas = logits.get("affinity"), logits["semantic"].shape[1:3]
        if rates is not None:
            labels = pad_to(example["label"], canvas, classes.ignore_label)
            targets = affinity_targets(labels, rates)
            accuracy.update_state(targets, logits["affinity"])
            if ground_truth:
                affinity = affinities_from_targets(targets)
        refined = refine(ops.softmax(logits["semantic"]), affinity, size, iterations)
        for probabilities, iou, boundary in zip(refined, ious, boundaries, strict=True):
            predicted = ops.argmax(probabilities, axis=-1)
            iou.update_state(example["label"][np.newaxis], predicted)
            boundary.update_state(example["label"][np.newaxis], predicted)
    return Evaluation(
        split_size=len(source),
        class_names=classes.names,
        iterations=iterations,
        refine_with=refine_with,
        class_iou=np.stack([iou.class_iou() for iou in ious]),
        pixel_accuracy=tuple(iou.pixel_accuracy() for iou in ious),
        boundary_iou=tuple(mean_over_classes([each.class_iou() for each in boundaries]).tolist()),
        rates=rates,
        affinity_accuracy=None if rates is None else accuracy.by_rate_and_count(),
        affinity_accuracy_by_rate=None if rates is None else accuracy.by_rate(),
    )


def absent_classes(names, class_iou) -> tuple[str, ...]:
    """Names of the classes that the labels lack, whose IoU is NaN."""
    return tuple(name for name, iou in zip(names, class_iou, strict=True) if np.isnan(iou))


def left_out(absent) -> list[str]:
    """The line of a table that names the classes left out of its means; none without any."""
    return [f"not in the labels, left out of the means: {', '.join(absent)}"] if absent else []


def check_iterations(iterations) -> tuple[int, ...]:
    """The numbers of iterations to measure at, or a `ConfigError` unless they are ascending."""
    iterations = (iterations,) if isinstance(iterations, int) else tuple(iterations)
    if not iterations or list(iterations) != sorted(set(iterations)) or iterations[0] < 0:
        raise ConfigError(
            f"iterations must be ascending and at least 0. Received: iterations={iterations}"
        )
    return iterations


def padded_logits(predict, image, padded_shapes: PaddedShapes):
    """Logits of an image on a canvas for propagation, the image top left.

    Args:
        predict: The model, as `logits_fn` wraps it.
        image: uint8 (H, W, 3).
        padded_shapes: The padded_shapes in use.

    Returns:
        A dict of float32 (1, h, w, C) by head.
    """
    canvas = padded_shapes.round_up(image.shape[:2])
    logits = predict(image[np.newaxis])
    return {head: on_canvas(values, canvas) for head, values in logits.items()}


def _examples(source, description):
    return (source[index] for index in progress(range(len(source)), description))


def _json_numbers(values):
    return [None if np.isnan(value) else float(value) for value in values]
