"""Propagation with mixtures of the predicted affinity and that of the labels."""

import dataclasses

import numpy as np
from keras import ops

from dilated_affinity.affinity.affinities import affinities_from_targets
from dilated_affinity.affinity.targets import affinity_targets
from dilated_affinity.evaluation.counters import ClassCounter
from dilated_affinity.evaluation.metrics import AffinityAccuracy, mean_over_classes
from dilated_affinity.evaluation.scoring import RefinedClasses, score
from dilated_affinity.inference.network import Network, logits_fn
from dilated_affinity.inference.refinement import Refinement
from dilated_affinity.inference.refiners import make_refiner

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
COUNTS = (3, 4)


class Mixtures:
    """Mixes the predicted affinity of each example with that of its label, at every share.

    An argument `prepare` of `RefinedClasses`, with a refinement for each share.
    """

    def __init__(self, rates, refinement: Refinement, ignore_label: int):
        self.accuracies = [AffinityAccuracy(rates) for _ in SHARES]
        self._rates = rates
        self._refinement = refinement
        self._ignore_label = ignore_label
        self._generator = np.random.default_rng(0)

    def __call__(self, example, outputs):
        label = outputs.pad(example["label"], self._ignore_label)
        targets = affinity_targets(label, self._rates)
        true = ops.convert_to_numpy(affinities_from_targets(targets))
        valid = outputs.pad(np.ones(outputs.size, bool))
        predicted = self._refinement.affinities(outputs.padded_affinity, self._rates, valid)
        # The pixels of a share are among those of the next one.
        drawn = self._generator.random((*label.shape, 1), np.float32)
        mixed = []
        for share, accuracy in zip(SHARES, self.accuracies, strict=True):
            affinities = np.where(drawn < share, true, ops.convert_to_numpy(predicted))
            # As logits, of which those above 0 mean the same class.
            accuracy.update_state(targets, affinities - 0.5)
            mixed.append(dataclasses.replace(outputs, given=affinities))
        return mixed


def measure(model, source, rates, refinement: Refinement) -> list[dict]:
    """Measures each share: accuracies of the affinity, and mIoU without and with propagation."""
    classes = source.classes
    mixtures = Mixtures(rates, refinement, classes.ignore_label)
    iterations = (0, refinement.iterations)
    refiners = [(make_refiner(model, refinement), iterations) for _ in SHARES]
    counters = [[ClassCounter(classes.num_classes) for _ in iterations] for _ in SHARES]
    predict = RefinedClasses(Network(logits_fn(model)), refiners, mixtures)
    score(source, predict, [[each] for row in counters for each in row], "mixed affinity")
    return [
        {
            "share": share,
            **{f"accuracy_n{count}": _mean(accuracy, count) for count in COUNTS},
            "mean_iou": mean_over_classes([each.class_iou() for each in row]).tolist(),
        }
        for share, accuracy, row in zip(SHARES, mixtures.accuracies, counters, strict=True)
    ]


def _mean(accuracy, count):
    return float(np.nanmean(accuracy.by_rate_and_count()[:, count]))
