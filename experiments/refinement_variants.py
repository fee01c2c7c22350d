"""Measures time and mIoU of each variant of the refinement against the exact one, on a run.

    python -m experiments.run refinement_variants --model_dir=runs/camvid

Both the predicted affinity and that of the ground truth are measured. The time is that of refining
one image, from probabilities at full resolution to labels, without the network. The variants take
turns on each image, and the first image is not timed.
"""

import dataclasses
import statistics
import time
from pathlib import Path

import numpy as np
from absl import flags
from keras import ops

from dilated_affinity.affinity.affinities import affinities_from_targets
from dilated_affinity.affinity.early_stopping import EarlyStop
from dilated_affinity.affinity.targets import affinity_targets
from dilated_affinity.cli import app, config_flags
from dilated_affinity.datasets.registry import load_source
from dilated_affinity.errors import ConfigError
from dilated_affinity.evaluation.evaluate import AFFINITY_SOURCES
from dilated_affinity.evaluation.metrics import BoundaryIoU, MeanIoU, mean_over_classes
from dilated_affinity.inference.network import Network, logits_fn
from dilated_affinity.inference.refinement import Refinement, as_refinement
from dilated_affinity.inference.refiners import make_refiner
from dilated_affinity.run_dir.load import load_run
from dilated_affinity.runtime.progress import progress
from dilated_affinity.runtime.system import environment
from dilated_affinity.version import __version__
from experiments.records import RESULTS, write_json

VARIANTS = {
    "propagation": Refinement(),
    "propagation_decoder_stride": Refinement(variant="propagation_decoder_stride"),
    **{
        f"propagation_early_stop, tolerance {tolerance:g}": as_refinement(
            EarlyStop(tolerance=tolerance)
        )
        for tolerance in (0.0, 1e-3, 1e-2)
    },
}

_given = config_flags.define(
    (
        *("data_dir", "val_split", "eval_output_stride", "propagation_iterations"),
        *("self_weight", "mu", "affinity_threshold", "symmetric_affinity"),
    )
)
_MODEL_DIR = flags.DEFINE_string("model_dir", None, "Folder of the run.")
_CHECKPOINT = config_flags.define_checkpoint()
_EVERY = flags.DEFINE_integer("every", 4, "Measure every n-th image of the split.", lower_bound=1)
_OUTPUT = flags.DEFINE_string(
    "output",
    str(RESULTS / "refinement_variants.json"),
    "JSON file to write.",
)


class _Measured:
    """Metrics and times of one variant over the images."""

    def __init__(self, num_classes):
        self.iou = MeanIoU(num_classes)
        self.boundary_iou = BoundaryIoU(num_classes)
        self.seconds = []

    def add(self, label, predicted, seconds):
        self.iou.update_state(label[np.newaxis], predicted)
        self.boundary_iou.update_state(label[np.newaxis], predicted)
        self.seconds.append(seconds)


def _summary(variants):
    """Metrics and median time of each variant as JSON types."""
    return {
        name: {
            "mean_iou": float(mean_over_classes(each.iou.class_iou())),
            "boundary_iou": float(mean_over_classes(each.boundary_iou.class_iou())),
            # The first call compiles.
            "median_seconds_per_image": statistics.median(each.seconds[1:]),
        }
        for name, each in variants.items()
    }


def _measure(config, model, source):
    rates, classes = config.affinity_rates, source.classes
    given = Refinement.from_config(config)
    refiners = {
        name: make_refiner(model, given.replace(variant=each.variant, stop=each.stop))
        for name, each in VARIANTS.items()
    }
    names = ("unrefined", *VARIANTS)
    measured = {
        affinity: {name: _Measured(classes.num_classes) for name in names}
        for affinity in AFFINITY_SOURCES
    }
    network = Network(logits_fn(model))
    for index in progress(range(0, len(source), _EVERY.value), "refinement"):
        example = source[index]
        label, predicted = example["label"], network(example["image"])
        targets = affinity_targets(predicted.pad(label, classes.ignore_label), rates)
        true = dataclasses.replace(predicted, given=affinities_from_targets(targets))
        for affinity, outputs in (("predicted", predicted), ("ground_truth", true)):
            _ = outputs.padded_probabilities, outputs.padded_affinity  # before the clock starts
            for name in names:
                # Without iterations, "unrefined" is the time of the labels alone.
                count = 0 if name == "unrefined" else config.propagation_iterations
                refine = refiners["propagation" if name == "unrefined" else name]
                start = time.perf_counter()
                refined = next(refine(outputs, (count,)))
                labels = ops.convert_to_numpy(ops.argmax(refined, axis=-1))
                seconds = time.perf_counter() - start
                measured[affinity][name].add(label, labels, seconds)
    return {affinity: _summary(variants) for affinity, variants in measured.items()}


def main():
    """Entry point."""
    app.run(_run)


def _run():
    model_dir = Path(app.required(_MODEL_DIR.value, "model_dir"))
    config, model = load_run(model_dir, checkpoint=_CHECKPOINT.value, **_given())
    source = load_source(config.dataset, config.val_split, config.data_dir)
    if len(source) <= _EVERY.value:
        raise ConfigError(
            "--every must leave two or more images, since the first is not timed. "
            f"Received: every={_EVERY.value}, {len(source)} images"
        )
    measured = _measure(config, model, source)
    for affinity, variants in measured.items():
        title = f"{affinity.replace('_', ' ')} affinity"
        print(f"{title:<40}  s/image    share     mIoU boundary")
        exact = variants["propagation"]["median_seconds_per_image"]
        for name, values in variants.items():
            seconds = values["median_seconds_per_image"]
            values["time_over_exact"] = seconds / exact
            print(
                f"{name:<40}{seconds:9.3f}{seconds / exact:9.2f}"
                f"{100 * values['mean_iou']:9.2f}{100 * values['boundary_iou']:9.2f}"
            )
    content = {
        "package_version": __version__,
        **environment(),
        "dataset": config.dataset,
        "split": config.val_split,
        "checkpoint": _CHECKPOINT.value,
        "every": _EVERY.value,
        "images": len(range(0, len(source), _EVERY.value)),
        "backbone": config.backbone,
        "output_stride": config.eval_output_stride,
        "rates": config.rates,
        **Refinement.from_config(config).to_config(),
        **measured,
    }
    write_json(Path(_OUTPUT.value), content)
