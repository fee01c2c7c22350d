"""Search of the refinement's settings on a split, as section 4.2 chose lambda."""

import dataclasses
import itertools

import keras
import numpy as np

from dilated_affinity.affinity.affinities import STEEPNESS
from dilated_affinity.affinity.propagation import SELF_WEIGHT
from dilated_affinity.datasets.registry import Source
from dilated_affinity.errors import ConfigError
from dilated_affinity.evaluation.counters import ClassCounter
from dilated_affinity.evaluation.evaluate import (
    ITERATIONS,
    absent_classes,
    check_iterations,
    left_out,
)
from dilated_affinity.evaluation.metrics import mean_over_classes
from dilated_affinity.evaluation.scoring import RefinedClasses, score
from dilated_affinity.inference.network import Network, logits_fn
from dilated_affinity.inference.refinement import Refinement, as_refinement
from dilated_affinity.inference.refiners import make_refiner
from dilated_affinity.inference.views import Views
from dilated_affinity.models.deeplab import affinity_rates

SELF_WEIGHTS = (2.0, SELF_WEIGHT, 20.0)
STEEPNESSES = (STEEPNESS, 50.0, 1000.0)
THRESHOLDS = (0.0, 1.0, 2.0)
SYMMETRIC = (True,)


@dataclasses.dataclass(frozen=True)
class RefinementSearch:
    """The mIoU of every combination of settings that was tried.

    Attributes:
        split_size: Number of images.
        iterations: Numbers of iterations of propagation.
        refinements: The settings tried; their own iterations are ignored.
        mean_iou: float64 (len(refinements), len(iterations)).
        absent_classes: Classes that the labels lack; they are left out of the means.
    """

    split_size: int
    iterations: tuple[int, ...]
    refinements: tuple[Refinement, ...]
    mean_iou: np.ndarray
    absent_classes: tuple[str, ...] = ()

    @property
    def best(self) -> Refinement:
        """The settings of the highest mIoU; of equals those that propagate least."""
        column, row = np.unravel_index(self.mean_iou.T.argmax(), self.mean_iou.T.shape)
        return self.refinements[row].replace(iterations=self.iterations[column])

    @property
    def best_mean_iou(self) -> float:
        """The highest mIoU."""
        return float(self.mean_iou.max())

    def to_json(self) -> dict:
        """Returns plain JSON types."""
        return {
            "images": self.split_size,
            "iterations": list(self.iterations),
            "tried": [
                {**_tried(refinement), "mean_iou": values.tolist()}
                for refinement, values in zip(self.refinements, self.mean_iou, strict=True)
            ],
            "absent_classes": list(self.absent_classes),
            "best": {**self.best.to_config(), "mean_iou": self.best_mean_iou},
        }

    def table(self) -> str:
        """Returns a table as text: mIoU in %, a row for each combination."""
        lines = [f"{self.split_size} images, mIoU in %; columns: iterations of propagation"]
        header = f"{'mu':>8}{'tau':>8}{'lambda':>8}{'symmetric':>11}"
        lines.append(header + "".join(f"{count:>8}" for count in self.iterations))
        for each, values in zip(self.refinements, self.mean_iou, strict=True):
            symmetric = "yes" if each.symmetric else "no"
            settings = f"{each.mu:>8g}{each.threshold:>8g}{each.self_weight:>8g}{symmetric:>11}"
            lines.append(settings + "".join(f"{100 * value:8.2f}" for value in values))
        lines += left_out(self.absent_classes)
        settings = settings_as_flags(self.best)
        lines.append(f"best: {100 * self.best_mean_iou:.2f}, by predict_main {settings}")
        return "\n".join(lines)


def settings_as_flags(refinement: Refinement) -> str:
    """Writes the settings as flags of the commands.

    >>> settings_as_flags(Refinement(mu=50.0, symmetric=True)).split()[:3]
    ['--propagation_iterations=10', '--self_weight=6', '--mu=50']
    """
    values = refinement.to_config().items()
    return " ".join(
        f"--{'' if value else 'no'}{name}" if isinstance(value, bool) else f"--{name}={value:g}"
        for name, value in values
    )


def refinement_grid(
    self_weights=SELF_WEIGHTS,
    mus=STEEPNESSES,
    thresholds=THRESHOLDS,
    symmetric=SYMMETRIC,
    refinement=None,
) -> tuple[Refinement, ...]:
    """Makes all combinations of settings.

    Args:
        self_weights: Values of lambda of Eq. 6, at least 0.
        mus: Values of mu of Eq. 7, above 1.
        thresholds: Values of tau, see `steep_sigmoid`.
        symmetric: Of True and False, what to try, see `symmetric_logits`.
        refinement: The rest of the settings, see `as_refinement`.

    Raises:
        ConfigError: If there is nothing to try or a value is out of its range.
    """
    base = as_refinement(refinement)
    combinations = tuple(
        base.replace(mu=mu, threshold=threshold, self_weight=self_weight, symmetric=both)
        for mu, threshold, both, self_weight in itertools.product(
            map(float, mus), map(float, thresholds), symmetric, map(float, self_weights)
        )
    )
    if not combinations:
        raise ConfigError(
            "A search needs at least one value of every setting. "
            f"Received: self_weights={tuple(self_weights)}, mus={tuple(mus)}, "
            f"thresholds={tuple(thresholds)}, symmetric={tuple(symmetric)}"
        )
    return combinations


def search_refinement(
    model: keras.Model,
    source: Source,
    iterations=ITERATIONS,
    self_weights=SELF_WEIGHTS,
    mus=STEEPNESSES,
    thresholds=THRESHOLDS,
    symmetric=SYMMETRIC,
    views: Views | None = None,
    refinement=None,
) -> RefinementSearch:
    """Measures all combinations of settings at full resolution, the network seeing an image once.

    `calibrate` is faster and tries more. Search on another split than the one whose mIoU you
    report.

    Args:
        model: As `DeepLabV3Plus` builds it, with affinity.
        source: The examples.
        iterations: Numbers of iterations, ascending.
        self_weights: See `refinement_grid`.
        mus: See `refinement_grid`.
        thresholds: See `refinement_grid`.
        symmetric: See `refinement_grid`.
        views: See `evaluate`.
        refinement: The method, see `as_refinement`.

    Returns:
        `RefinementSearch`.

    Raises:
        ConfigError: If there is nothing to try, a value is out of its range, the model has no
            affinity, or the method does not propagate or is not allowed by the model.
    """
    iterations = check_iterations(iterations)
    tried = refinement_grid(self_weights, mus, thresholds, symmetric, refinement)
    if affinity_rates(model) is None:
        raise ConfigError("A model without affinity has nothing to propagate with.")
    if not tried[0].propagates:
        raise ConfigError(
            f"A search tries settings of propagation. Received: refinement={tried[0].variant!r}"
        )
    ious = [[ClassCounter(source.classes.num_classes) for _ in iterations] for _ in tried]
    refinements = [(make_refiner(model, each), iterations) for each in tried]
    predict = RefinedClasses(Network(logits_fn(model, views)), refinements)
    score(source, predict, [[iou] for row in ious for iou in row], "search")
    class_iou = np.array([[iou.class_iou() for iou in row] for row in ious])
    absent = absent_classes(source.classes.names, class_iou[0, 0])
    return RefinementSearch(len(source), iterations, tried, mean_over_classes(class_iou), absent)


def _tried(refinement):
    settings = refinement.to_config()
    del settings["propagation_iterations"]
    return settings
