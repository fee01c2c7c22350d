"""Search of lambda, mu and the number of iterations on a split, as section 4.2 chose them."""

import dataclasses

import keras
import numpy as np
from keras import ops

from dilated_affinity.affinity.propagation import SELF_WEIGHT, STEEPNESS, steep_sigmoid
from dilated_affinity.canvases import Canvases
from dilated_affinity.datasets.loading import Source
from dilated_affinity.errors import ConfigError
from dilated_affinity.evaluation import ITERATIONS, check_iterations, padded_logits
from dilated_affinity.inference import network
from dilated_affinity.metrics import MeanIoU, means_over_same_classes
from dilated_affinity.models.deeplab import affinity_rates
from dilated_affinity.progress import progress
from dilated_affinity.refinement import Refiner

SELF_WEIGHTS = (1.5, SELF_WEIGHT, 20.0, 80.0)
STEEPNESSES = (STEEPNESS, 50.0, 1000.0)


@dataclasses.dataclass(frozen=True)
class RefinementSearch:
    """mIoU of every combination that `search_refinement` tried.

    Attributes:
        split_size: Number of images.
        iterations: Numbers of iterations of propagation.
        self_weights: Values of lambda.
        mus: Values of mu.
        mean_iou: float64 (len(mus), len(self_weights), len(iterations)).
    """

    split_size: int
    iterations: tuple[int, ...]
    self_weights: tuple[float, ...]
    mus: tuple[float, ...]
    mean_iou: np.ndarray

    @property
    def best(self) -> dict:
        """The settings of the highest mIoU, and it; of equals the one that propagates least."""
        values = np.moveaxis(self.mean_iou, -1, 0)
        iterations, mu, self_weight = np.unravel_index(values.argmax(), values.shape)
        return {
            "propagation_iterations": self.iterations[iterations],
            "self_weight": self.self_weights[self_weight],
            "mu": self.mus[mu],
            "mean_iou": float(values[iterations, mu, self_weight]),
        }

    def to_json(self) -> dict:
        """Plain JSON types."""
        return {
            "images": self.split_size,
            "iterations": list(self.iterations),
            "self_weights": list(self.self_weights),
            "mus": list(self.mus),
            "mean_iou": self.mean_iou.tolist(),
            "best": self.best,
        }

    def table(self) -> str:
        """A table for people: mIoU in %, a row for each lambda and mu."""
        lines = [f"{self.split_size} images, mIoU in %; columns: iterations of propagation"]
        lines.append(f"{'mu':>8}{'lambda':>8}" + "".join(f"{n:>8}" for n in self.iterations))
        for mu, rows in zip(self.mus, self.mean_iou, strict=True):
            for self_weight, values in zip(self.self_weights, rows, strict=True):
                cells = "".join(f"{100 * value:8.2f}" for value in values)
                lines.append(f"{mu:>8g}{self_weight:>8g}{cells}")
        best = self.best
        settings = " ".join(f"--{key}={best[key]:g}" for key in best if key != "mean_iou")
        lines.append(f"best: {100 * best['mean_iou']:.2f}, by predict_main {settings}")
        return "\n".join(lines)


def search_refinement(
    model: keras.Model,
    source: Source,
    iterations=ITERATIONS,
    self_weights=SELF_WEIGHTS,
    mus=STEEPNESSES,
    scales=(1.0,),
    flip=False,
    window=0,
    refinement="exact",
) -> RefinementSearch:
    """Measures all combinations of lambda, mu and iterations; the network sees each image once.

    Search on another split than the one whose mIoU you report.

    Args:
        model: As `DeepLabV3Plus` builds it, with affinity.
        source: The examples.
        iterations: Numbers of iterations, ascending.
        self_weights: Values of lambda of Eq. 6, at least 0.
        mus: Values of mu of Eq. 7, above 1.
        scales: See `evaluate`.
        flip: See `evaluate`.
        window: See `evaluate`.
        refinement: See `evaluate`.

    Returns:
        `RefinementSearch`.

    Raises:
        ConfigError: If there is nothing to try, a value is out of its range, the model has no
            affinity, or does not allow the variant of the refinement.
    """
    iterations = check_iterations(iterations)
    self_weights, mus = tuple(map(float, self_weights)), tuple(map(float, mus))
    if not self_weights or min(self_weights) < 0 or not mus or not min(mus) > 1:
        raise ConfigError(
            "A search needs values of self_weight that are at least 0 and of mu above 1. "
            f"Received: self_weights={self_weights}, mus={mus}"
        )
    rates = affinity_rates(model)
    if rates is None:
        raise ConfigError("A model without affinity has nothing to propagate with.")
    shape = (len(mus), len(self_weights), len(iterations))
    ious = np.empty(shape, object)
    for index in np.ndindex(shape):
        ious[index] = MeanIoU(source.classes.num_classes)
    refiners = [Refiner(model, rates, value, refinement) for value in self_weights]
    predict, canvases = network(model, scales, flip, window), Canvases()
    for number in progress(range(len(source)), "search"):
        example = source[number]
        logits = padded_logits(predict, example["image"], canvases)
        probabilities = ops.softmax(logits["semantic"])
        for mu, rows in zip(mus, ious, strict=True):
            affinities = steep_sigmoid(logits["affinity"], mu)
            for refine, row in zip(refiners, rows, strict=True):
                refined = refine(probabilities, affinities, example["label"].shape, iterations)
                for values, iou in zip(refined, row, strict=True):
                    predicted = ops.argmax(values, axis=-1)
                    iou.update_state(example["label"][np.newaxis], predicted)
    class_iou = np.stack([iou.class_iou() for iou in ious.flat])
    mean_iou = means_over_same_classes(class_iou).reshape(shape)
    return RefinementSearch(len(source), iterations, self_weights, mus, mean_iou)
