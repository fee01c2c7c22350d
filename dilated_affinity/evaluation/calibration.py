"""Fit of the settings of propagation to a trained model, on images with labels.

With focal loss and the neighbour weights of Eq. 5, the affinity head ranks pairs well but predicts
"same" too often: with the paper's Eq. 7, propagation then smooths classes across boundaries. A
threshold tau, fitted after training together with mu, lambda and symmetry, corrects that.
"""

import dataclasses

import keras
import numpy as np
from keras import ops

from dilated_affinity.affinity.targets import NOT_A_PAIR, affinity_targets, neighbor_counts
from dilated_affinity.datasets.registry import Source
from dilated_affinity.errors import ConfigError, DataError
from dilated_affinity.evaluation.metrics import iou_of_confusion, mean_over_classes
from dilated_affinity.evaluation.search import RefinementSearch, refinement_grid
from dilated_affinity.inference.network import Network, logits_fn
from dilated_affinity.inference.padding import PaddedShapes, pad_to
from dilated_affinity.inference.refinement import Refinement, as_refinement
from dilated_affinity.inference.refiners.decoder_stride import DecoderStridePropagation
from dilated_affinity.inference.refiners.propagation import Propagation, propagated
from dilated_affinity.models.deeplab import affinity_rates
from dilated_affinity.runtime.progress import progress

CURVE = (0, 1, 3, 6, 10)
"""Iterations at which curves are measured, those of Tables 3 and 4."""

IMAGES = 100
"""Default number of images."""

LOGIT_EDGES = np.linspace(-6.0, 6.0, 25)
"""Edges of the bins of affinity logits of `Reliability`."""

_PIXELS = 2**21
"""The number of pixels after which no more images are taken: fewer large images suffice."""

_BATCH = 8

_STEEPNESSES = (7.0, 20.0, 50.0, 1000.0)
_THRESHOLDS = (-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
_SELF_WEIGHTS = (2.0, 6.0, 20.0, 80.0)
_THRESHOLD_STEPS = (-0.5, -0.25, 0.25, 0.5)
_STEEPNESS_FACTORS = (0.5, 2.0)


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Frequencies of pairs that share their class, by affinity logit and neighbour count.

    Attributes:
        pairs: int64 (9, bins): existing pairs of pixels of n0 to n8, in bins of their logit between
            `LOGIT_EDGES`; the first and the last bin are open.
        same: int64 (9, bins): those among them that share their class.
    """

    pairs: np.ndarray
    same: np.ndarray


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The result of `calibrate`.

    Attributes:
        refinement: The settings found; its iterations are 0 if propagation gains nothing.
        given: The settings that were given, for comparison.
        images: Number of images.
        iterations: Numbers of iterations of the curves.
        mean_iou: mIoU at each of them with the settings found (before its iterations are set to 0).
        given_mean_iou: mIoU at each of them with the settings given.
        tried: Every combination of settings tried, with its mIoU.
        reliability: Of the affinity logits as predicted.
    """

    refinement: Refinement
    given: Refinement
    images: int
    iterations: tuple[int, ...]
    mean_iou: tuple[float, ...]
    given_mean_iou: tuple[float, ...]
    tried: RefinementSearch
    reliability: Reliability

    @property
    def gain(self) -> float:
        """The gain of the last number of iterations over none, in mIoU."""
        return self.mean_iou[-1] - self.mean_iou[0]

    def __str__(self):
        """Returns one line: the settings found and their gain on the images of the fit."""
        count, (before, after) = self.iterations[-1], np.multiply(self.mean_iou, 100)[[0, -1]]
        given = 100 * self.given_mean_iou[-1]
        found = (
            f"tau {self.refinement.threshold:g}, mu {self.refinement.mu:g}, "
            f"lambda {self.refinement.self_weight:g}, "
            f"{'' if self.refinement.symmetric else 'not '}symmetric"
        )
        if not self.refinement.iterations:
            return (
                f"no settings of propagation gain: mIoU {before:.2f} % without, {after:.2f} % "
                f"after {count} iterations at best; set to 0 iterations"
            )
        return (
            f"{found}: {count} iterations bring mIoU from {before:.2f} to {after:.2f} % "
            f"({given:.2f} % with the settings given)"
        )

    def to_json(self) -> dict:
        """Returns plain JSON types."""
        return {
            "images": self.images,
            "settings": self.refinement.to_config(),
            "given": self.given.to_config(),
            "iterations": list(self.iterations),
            "mean_iou": {"calibrated": list(self.mean_iou), "given": list(self.given_mean_iou)},
            "reliability": {
                "logit_edges": LOGIT_EDGES.tolist(),
                "pairs": self.reliability.pairs.tolist(),
                "same": self.reliability.same.tolist(),
            },
            "tried": self.tried.to_json()["tried"],
        }


def calibrate(
    model: keras.Model,
    source: Source,
    refinement=None,
    images: int = IMAGES,
    **settings,
) -> Calibration:
    """Fits tau, mu, lambda and symmetry for the mIoU after the last iteration of propagation.

    Use images that you do not report on; those of the training split serve well. The network sees
    each image once. The rest is computed at the pixels where the decoder has features, where
    propagation is exact if the rates are multiples of the decoder's stride; otherwise at full
    resolution, on fewer images.

    Args:
        model: As `DeepLabV3Plus` builds it, with affinity.
        source: Examples, as `load_source` returns them: a sequence of dicts of `"image"` uint8
            (H, W, 3) and `"label"` uint8 (H, W), with an attribute `classes`.
        refinement: Settings to start from, and to compare with, see `as_refinement`.
        images: Number of examples to take, drawn evenly from all; fewer if they are large.
        **settings: Fields of the refinement to replace, such as `iterations=10`.

    Returns:
        `Calibration`. Its `refinement` goes into `inference_model`, `Predictor`, `evaluate` and
        `export_model`.

    Raises:
        ConfigError: If the model has no affinity, or there are no iterations or images.
        DataError: If no image has a labelled pixel.

    Example:

        found = da.calibrate(model, da.load_source("shapes", "train", "data"))
        predict = da.inference_model(model, refinement=found.refinement)
    """
    given = as_refinement(refinement, **settings)
    if affinity_rates(model) is None:
        raise ConfigError("A model without affinity has nothing to propagate with.")
    if given.iterations < 1 or not given.propagates:
        raise ConfigError(
            "calibration needs iterations of propagation. "
            f"Received: iterations={given.iterations}, refinement={given.variant!r}"
        )
    if images < 1:
        raise ConfigError(f"images must be at least 1. Received: images={images}")
    predictions = _Predictions.collect(model, source, images)
    curve = tuple(sorted({n for n in CURVE if n < given.iterations} | {given.iterations}))
    fit = _Fit(predictions, given.iterations)
    best = fit.best()
    found = predictions.mean_iou(best, curve)
    if not found[-1] > found[0]:
        best = best.replace(iterations=0)
    return Calibration(
        best,
        given,
        predictions.images,
        curve,
        tuple(found),
        tuple(predictions.mean_iou(given, curve)),
        fit.tried(),
        predictions.reliability(),
    )


class _Fit:
    """A search along one setting after another, from a coarse grid of mu and tau."""

    def __init__(self, predictions, iterations):
        self._predictions = predictions
        self._iterations = iterations
        self._found = {}

    def best(self) -> Refinement:
        start = Refinement(iterations=self._iterations)
        grid = refinement_grid((start.self_weight,), _STEEPNESSES, _THRESHOLDS, (True,), start)
        best = self._best_of(progress(grid, "calibration"))
        for changes in (
            lambda best: [{"self_weight": value} for value in _SELF_WEIGHTS],
            lambda best: [{"symmetric": False}],
            lambda best: [{"threshold": best.threshold + step} for step in _THRESHOLD_STEPS],
            lambda best: [{"mu": best.mu * factor} for factor in _STEEPNESS_FACTORS],
        ):
            best = self._best_of([best, *(best.replace(**each) for each in changes(best))])
        return best

    def tried(self) -> RefinementSearch:
        values = np.array(list(self._found.values()))[:, None]
        images = self._predictions.images
        return RefinementSearch(images, (self._iterations,), tuple(self._found), values)

    def _best_of(self, refinements):
        return max(refinements, key=self._mean_iou)

    def _mean_iou(self, refinement):
        if refinement not in self._found:
            (value,) = self._predictions.mean_iou(refinement, (self._iterations,))
            self._found[refinement] = value
        return self._found[refinement]


@dataclasses.dataclass(frozen=True)
class _Predictions:
    """Predictions of a model for some images, in batches of one size.

    Attributes:
        images: Number of images.
        num_classes: C.
        rates: The affinity's, in pixels of the batches.
        batches: Arrays of probabilities (B, h, w, C), affinity logits (B, h, w, 8|R|), labels
            (B, h, w), and whether a pixel is inside its image (B, h, w).
    """

    images: int
    num_classes: int
    rates: tuple[tuple[int, int], ...]
    batches: list[tuple[np.ndarray, ...]]

    @classmethod
    def collect(cls, model, source, images):
        propagation = _propagation(model)
        network, padded_shapes, by_shape = Network(logits_fn(model)), PaddedShapes(step=32), {}
        taken = pixels = labelled = 0
        order = np.random.default_rng(0).permutation(len(source))[:images].tolist()
        for index in progress(order, "calibration images"):
            if pixels >= _PIXELS:
                break
            example = source[index]
            outputs = network(example["image"])
            probabilities, logits, label = (
                propagation.on_grid(values, outputs.size)[0]
                for values in (
                    ops.convert_to_numpy(outputs.probabilities),
                    ops.convert_to_numpy(outputs.affinity),
                    example["label"][np.newaxis],
                )
            )
            shape = padded_shapes.round_up(label.shape)
            by_shape.setdefault(shape, []).append(
                (
                    pad_to(probabilities, shape),
                    pad_to(logits, shape),
                    pad_to(label, shape, source.classes.ignore_label),
                    pad_to(np.ones(label.shape, bool), shape),
                )
            )
            taken, pixels = taken + 1, pixels + label.size
            labelled += np.count_nonzero(label != source.classes.ignore_label)
        if not labelled:
            raise DataError(f"no pixel of {taken} images to calibrate on has a class.")
        batches = [
            tuple(np.concatenate(arrays) for arrays in zip(*examples[i : i + _BATCH], strict=True))
            for examples in by_shape.values()
            for i in range(0, len(examples), _BATCH)
        ]
        return cls(taken, source.classes.num_classes, propagation.rates, batches)

    def mean_iou(self, refinement, iterations) -> list[float]:
        """Returns the mIoU at ascending numbers of iterations, over the classes in the labels."""
        confusions = np.zeros((len(iterations), self.num_classes, self.num_classes), np.int64)
        for probabilities, logits, labels, inside in self.batches:
            affinities = refinement.affinities(logits, self.rates, inside)
            maps = probabilities, affinities
            states = propagated(refinement, self.rates, *maps, iterations, inside)
            for confusion, refined in zip(confusions, states, strict=True):
                confusion += self._confusion(labels, ops.convert_to_numpy(refined))
        return mean_over_classes([iou_of_confusion(each) for each in confusions]).tolist()

    def _confusion(self, labels, probabilities):
        counted = labels < self.num_classes
        cells = labels[counted].astype(int) * self.num_classes
        cells += probabilities.argmax(axis=-1)[counted]
        size = self.num_classes**2
        return np.bincount(cells, minlength=size).reshape([self.num_classes] * 2)

    def reliability(self) -> Reliability:
        """Counts all pairs of labelled pixels."""
        bins = len(LOGIT_EDGES) - 1
        pairs, same = np.zeros((2, 9, bins), np.int64)
        for _, logits, labels, _ in self.batches:
            targets = affinity_targets(labels, self.rates)
            counts = np.repeat(np.asarray(neighbor_counts(targets)), 8, axis=-1)
            targets = np.asarray(targets)
            exists = targets != NOT_A_PAIR
            places = np.digitize(logits[exists], LOGIT_EDGES[1:-1])
            cells = counts[exists].astype(int) * bins + places
            pairs += np.bincount(cells, minlength=pairs.size).reshape(pairs.shape)
            cells = cells[targets[exists] == 1]
            same += np.bincount(cells, minlength=same.size).reshape(same.shape)
        return Reliability(pairs, same)


def _propagation(model):
    """Propagation at the decoder's stride if the model allows it, otherwise at every pixel."""
    try:
        return DecoderStridePropagation(model, Refinement())
    except ConfigError:
        return Propagation(model, Refinement())
