"""Measures what propagation would gain with a more accurate affinity.

    python -m experiments.run mixed_affinity --model_dir=runs/camvid

At a share of the pixels, drawn at random, the affinity of the labels takes the place of the
predicted one, for all of a pixel's neighbours at once. The share grows from none to all. Its row
has the accuracy of the affinity for pixels of which 3 or 4 neighbours share the class, as a mean
over the rates, and the mIoU before and after propagation with the run's settings.
"""

import dataclasses
from pathlib import Path

import numpy as np
from absl import flags
from keras import ops

from dilated_affinity.affinity.affinities import affinities_from_targets
from dilated_affinity.affinity.targets import affinity_targets
from dilated_affinity.cli import app, config_flags
from dilated_affinity.datasets.registry import load_source
from dilated_affinity.errors import ConfigError
from dilated_affinity.evaluation.counters import ClassCounter
from dilated_affinity.evaluation.metrics import AffinityAccuracy, mean_over_classes
from dilated_affinity.evaluation.scoring import RefinedClasses, score
from dilated_affinity.inference.network import Network, logits_fn
from dilated_affinity.inference.refinement import Refinement
from dilated_affinity.inference.refiners import make_refiner
from dilated_affinity.run_dir.load import load_run
from experiments.records import RESULTS, run_record, write_json

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
COUNTS = (3, 4)

_given = config_flags.define(
    (
        *("data_dir", "val_split", "eval_output_stride", "propagation_iterations"),
        *("self_weight", "mu", "affinity_threshold", "symmetric_affinity"),
    )
)
_MODEL_DIR = flags.DEFINE_string("model_dir", None, "Folder of the run.")
_CHECKPOINT = config_flags.define_checkpoint()
_OUTPUT = flags.DEFINE_string("output", str(RESULTS / "mixed_affinity.json"), "JSON file to write.")


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


def main():
    """Entry point."""
    app.run(_run)


def _run():
    model_dir = Path(app.required(_MODEL_DIR.value, "model_dir"))
    config, model = load_run(model_dir, checkpoint=_CHECKPOINT.value, **_given())
    refinement = Refinement.from_config(config)
    if config.affinity_rates is None or not refinement.iterations:
        raise ConfigError(
            f"{model_dir}: must be a run with affinity and iterations of propagation. "
            f"Received: rates={config.rates}, {refinement.iterations} iterations"
        )
    source = load_source(config.dataset, config.val_split, config.data_dir)
    rows = measure(model, source, config.affinity_rates, refinement)
    columns = [f"n{count}" for count in COUNTS] + ["mIoU, 0", f"mIoU, {refinement.iterations}"]
    print("share of true" + "".join(f"{name:>10}" for name in columns))
    for row in rows:
        values = [*(row[f"accuracy_n{count}"] for count in COUNTS), *row["mean_iou"]]
        print(f"{100 * row['share']:>11.0f} %" + "".join(f"{100 * each:10.2f}" for each in values))
    settings = {"split": config.val_split, "checkpoint": _CHECKPOINT.value, "images": len(source)}
    measured = {**settings, "refinement": refinement.to_config(), "shares": rows}
    write_json(Path(_OUTPUT.value), {**run_record(model_dir), "mixed_affinity": measured})
