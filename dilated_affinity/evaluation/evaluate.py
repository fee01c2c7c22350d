"""Evaluation of a split before and after refinement, every image once at its original size."""

import dataclasses
import itertools
from collections.abc import Sequence

import keras
import numpy as np

from dilated_affinity.affinity.affinities import affinities_from_targets
from dilated_affinity.affinity.targets import affinity_targets
from dilated_affinity.datasets.registry import Source
from dilated_affinity.errors import ConfigError
from dilated_affinity.evaluation.counters import BoundaryCounter, ClassCounter
from dilated_affinity.evaluation.metrics import AffinityAccuracy, mean_over_classes
from dilated_affinity.evaluation.scoring import RefinedClasses, classes, score
from dilated_affinity.inference.network import Network, logits_fn
from dilated_affinity.inference.refinement import Refinement, as_refinement
from dilated_affinity.inference.refiners import METHODS, make_refiner
from dilated_affinity.inference.views import Views
from dilated_affinity.models.deeplab import affinity_rates

ITERATIONS = (0, 1, 3, 6, 10)
"""Iterations of Tables 3 and 4."""

AFFINITY_SOURCES = ("predicted", "ground_truth")
"""Where the affinity to propagate with may come from."""


def class_iou(predict, source: Source) -> np.ndarray:
    """Measures the IoU of each class over all examples, without refinement.

    Args:
        predict: The model, as `logits_fn` wraps it.
        source: The examples.

    Returns:
        float64 (C,); NaN for classes that are not in the labels.
    """
    network, counter = Network(predict), ClassCounter(source.classes.num_classes)

    def predicted(examples):
        return ((classes(network(each["image"]).probabilities),) for each in examples)

    score(source, predicted, [[counter]], "validation")
    return counter.class_iou()


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`; `to_json` and `table` present it.

    Attributes:
        split_size: Number of images.
        class_names: Name of each class.
        iterations: Iterations of the refinement at which the rest was measured.
        affinity_source: `"predicted"` or `"ground_truth"`, the affinity that was propagated with;
            None if the method does not propagate.
        class_iou: float64 (len(iterations), C); NaN for classes that the labels lack.
        pixel_accuracy: One for each number of iterations.
        boundary_iou: Mean boundary IoU, likewise.
        rates: (vertical, horizontal) pairs, or None for a model without affinity.
        affinity_accuracy: float64 (|R|, 9), of the affinity head per rate and neighbour count.
        affinity_accuracy_by_rate: float64 (|R|,).
        refine: The method of refinement, a value of `Config.refine`.
    """

    split_size: int
    class_names: tuple[str, ...]
    iterations: tuple[int, ...]
    affinity_source: str | None
    class_iou: np.ndarray
    pixel_accuracy: tuple[float, ...]
    boundary_iou: tuple[float, ...]
    rates: tuple[tuple[int, int], ...] | None = None
    affinity_accuracy: np.ndarray | None = None
    affinity_accuracy_by_rate: np.ndarray | None = None
    refine: str = "propagation"

    @property
    def mean_iou(self) -> tuple[float, ...]:
        """Mean over the classes that occur in the labels, for each number of iterations."""
        return tuple(mean_over_classes(self.class_iou).tolist())

    @property
    def absent_classes(self) -> tuple[str, ...]:
        """Classes that the labels lack; they are left out of the means."""
        return absent_classes(self.class_names, self.class_iou[0])

    def to_json(self) -> dict:
        """Returns plain JSON types: fractions between 0 and 1, null for what does not occur."""
        result = {
            "images": self.split_size,
            "refine": self.refine,
            "affinity_source": self.affinity_source,
            "iterations": list(self.iterations),
            "mean_iou": _json_numbers(self.mean_iou),
            "pixel_accuracy": _json_numbers(self.pixel_accuracy),
            "boundary_iou": _json_numbers(self.boundary_iou),
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
        """Returns a table as text: percentages, a column for each number of iterations."""
        affinity = ""
        if self.rates is not None and self.affinity_source is not None:
            affinity = f", {self.affinity_source.replace('_', ' ')} affinity"
        title = METHODS[self.refine].title
        lines = [f"{self.split_size} images; columns: iterations of {title}{affinity}"]
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


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A refinement to evaluate.

    Attributes:
        refinement: Its settings; its own iterations are ignored.
        iterations: Numbers of iterations to measure at, ascending.
        affinity_source: `"predicted"`, or `"ground_truth"` for the oracle of Tables 3 and 4.

    Raises:
        ConfigError: If the iterations are not ascending, or there is no such source.
    """

    refinement: Refinement = Refinement()
    iterations: tuple[int, ...] = ITERATIONS
    affinity_source: str = "predicted"

    def __post_init__(self):
        check_iterations(self.iterations)
        if self.affinity_source not in AFFINITY_SOURCES:
            raise ConfigError(
                f"affinity_source must be one of {', '.join(AFFINITY_SOURCES)}. "
                f"Received: affinity_source={self.affinity_source!r}"
            )


def evaluate(
    model: keras.Model,
    source: Source,
    iterations=ITERATIONS,
    affinity_source="predicted",
    refinement=None,
    views: Views | None = None,
    **settings,
) -> Evaluation:
    """Measures a model on every example of a split, before and after refinement.

    A dense CRF works in several processes, which import the calling script: guard its work by
    `if __name__ == "__main__":`.

    Args:
        model: As `DeepLabV3Plus` builds it; without affinity it can be propagated for 0 iterations
            only.
        source: The examples.
        iterations: Numbers of iterations to measure at, ascending, or a single one.
        affinity_source: `"predicted"`, or `"ground_truth"` for the oracle of Tables 3 and 4.
        refinement: As for `Predictor`, except for its iterations.
        views: `Views` of the image to average over before refinement. Defaults to None: the image
            as it is.
        **settings: As for `inference_model`.

    Returns:
        `Evaluation`.

    Raises:
        ConfigError: If the iterations are not ascending, or need affinity that the model lacks; or
            if the model does not allow the refinement.
    """
    refinement = as_refinement(refinement, **settings)
    measurement = Measurement(refinement, check_iterations(iterations), affinity_source)
    return evaluate_all(model, source, [measurement], views)[0]


def evaluate_all(
    model: keras.Model,
    source: Source,
    measurements: Sequence[Measurement],
    views: Views | None = None,
) -> list[Evaluation]:
    """Measures several refinements of a model in one pass: the network sees each image once.

    Args:
        model: As for `evaluate`.
        source: As for `evaluate`.
        measurements: What to measure.
        views: As for `evaluate`.

    Returns:
        An `Evaluation` for each measurement, the same as `evaluate` gives.

    Raises:
        ConfigError: As `evaluate`.
    """
    rates = affinity_rates(model)
    for each in measurements:
        if rates is None and each.refinement.propagates and each.iterations != (0,):
            raise ConfigError(
                "A model without affinity has nothing to propagate with: only 0 iterations. "
                f"Received: iterations={each.iterations}"
            )
    pairs = None
    if rates is not None:
        sources = [each.affinity_source for each in measurements]
        pairs = _Pairs(rates, source.classes.ignore_label, sources)
    refinements = [(make_refiner(model, each.refinement), each.iterations) for each in measurements]
    predict = RefinedClasses(Network(logits_fn(model, views)), refinements, pairs)
    num_classes = source.classes.num_classes
    columns = [
        [(ClassCounter(num_classes), BoundaryCounter(num_classes)) for _ in each.iterations]
        for each in measurements
    ]
    score(source, predict, list(itertools.chain.from_iterable(columns)), "evaluation")
    return [
        _evaluation(source, *each, rates, pairs) for each in zip(measurements, columns, strict=True)
    ]


def _evaluation(source, measurement, metrics, rates, pairs):
    ious, boundaries = zip(*metrics, strict=True)
    refinement = measurement.refinement
    return Evaluation(
        split_size=len(source),
        class_names=source.classes.names,
        iterations=measurement.iterations,
        affinity_source=measurement.affinity_source if refinement.propagates else None,
        class_iou=np.stack([iou.class_iou() for iou in ious]),
        pixel_accuracy=tuple(iou.pixel_accuracy() for iou in ious),
        boundary_iou=tuple(mean_over_classes([each.class_iou() for each in boundaries]).tolist()),
        rates=rates,
        affinity_accuracy=None if pairs is None else pairs.accuracy.by_rate_and_count(),
        affinity_accuracy_by_rate=None if pairs is None else pairs.accuracy.by_rate(),
        refine=refinement.variant,
    )


class _Pairs:
    """Measures the predicted affinity of each example, and gives each refinement what it asks for.

    Args:
        rates: Rates of the model.
        ignore_label: The void label.
        sources: For each refinement, where its affinity comes from.
    """

    def __init__(self, rates, ignore_label, sources):
        self.accuracy = AffinityAccuracy(rates)
        self._rates = rates
        self._ignore_label = ignore_label
        self._sources = sources

    def __call__(self, example, outputs):
        label = outputs.pad(example["label"], self._ignore_label)
        targets = affinity_targets(label, self._rates)
        self.accuracy.update_state(targets, outputs.padded_affinity)
        by_source = {"predicted": outputs}
        if "ground_truth" in self._sources:
            given = affinities_from_targets(targets)
            by_source["ground_truth"] = dataclasses.replace(outputs, given=given)
        return [by_source[each] for each in self._sources]


def absent_classes(names, class_iou) -> tuple[str, ...]:
    """Returns the names of the classes that the labels lack, whose IoU is NaN."""
    return tuple(name for name, iou in zip(names, class_iou, strict=True) if np.isnan(iou))


def left_out(absent) -> list[str]:
    """Returns the line of a table that names the classes left out of its means, if any."""
    return [f"not in the labels, left out of the means: {', '.join(absent)}"] if absent else []


def check_iterations(iterations) -> tuple[int, ...]:
    """Returns the numbers of iterations as a tuple; a `ConfigError` unless they are ascending."""
    iterations = (iterations,) if isinstance(iterations, int) else tuple(iterations)
    if not iterations or list(iterations) != sorted(set(iterations)) or iterations[0] < 0:
        raise ConfigError(
            f"iterations must be ascending and at least 0. Received: iterations={iterations}"
        )
    return iterations


def _json_numbers(values):
    return [None if np.isnan(value) else float(value) for value in values]
