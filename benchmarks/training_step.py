"""What the affinity branch costs in training: time and memory of a step with and without it.

    python benchmarks/training_step.py --backbone=mobilenet_v2 --batch_size=8 --output=result.json

The reference is the same step of plain DeepLabv3+ (`--rates=none`), in the same process; the two
take turns. Both take images and targets from memory. Peak memory is the high-water mark of a
process that does nothing but the steps of one of the two.
"""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import tensorflow as tf
from absl import app, flags

from dilated_affinity.affinity.statistics import AffinityStatistics
from dilated_affinity.affinity.targets import affinity_targets
from dilated_affinity.config import Config
from dilated_affinity.memory import keep_freed_memory
from dilated_affinity.training import build_model, compile_model
from dilated_affinity.version import __version__

_BACKBONE = flags.DEFINE_string("backbone", "mobilenet_v2", "Name of the backbone.")
_RATES = flags.DEFINE_string("rates", "8,(12,24),16", "Dilation rates of the step with affinity.")
_CROP_SIZE = flags.DEFINE_integer("crop_size", 321, "Side of the crops.", lower_bound=17)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Images per step.", lower_bound=2)
_ROUNDS = flags.DEFINE_integer("rounds", 9, "Measured steps of each kind.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")
_MEMORY_OF = flags.DEFINE_string("memory_of", None, "Internal: print the peak of these rates.")

_CLASSES = 21
_WARM_UP = 2


def _step(rates):
    """A function that trains one step, on random blocks of classes."""
    config = Config(
        backbone=_BACKBONE.value,
        backbone_weights="none",
        rates=rates,
        crop_size=_CROP_SIZE.value,
        batch_size=_BATCH_SIZE.value,
    )
    rng = np.random.default_rng(0)
    side = _CROP_SIZE.value
    blocks = rng.integers(0, _CLASSES, (_BATCH_SIZE.value, 6, 6))
    labels = blocks.repeat(-(-side // 6), 1).repeat(-(-side // 6), 2)[:, :side, :side]
    labels = labels.astype(np.uint8)
    images = tf.constant(rng.uniform(0, 255, (*labels.shape, 3)), tf.float32)
    targets, counted = {"semantic": tf.constant(labels)}, None
    if config.affinity_rates:
        counted = AffinityStatistics.from_labels(labels, config.affinity_rates)
        targets["affinity"] = affinity_targets(labels, config.affinity_rates)
    model = build_model(config, _CLASSES, counted)
    trained = compile_model(model, config, counted)
    for _ in range(_WARM_UP):
        trained.train_on_batch(images, targets)
    return lambda: trained.train_on_batch(images, targets)


def _peak_mib(rates):
    """High-water mark of a process of its own."""
    command = [sys.executable, *sys.argv, f"--memory_of={rates}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def main(_):
    keep_freed_memory()
    if _MEMORY_OF.value:
        step = _step(_MEMORY_OF.value)
        step()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    kinds = {"without": "none", "with": _RATES.value}
    # First: a new process inherits the high-water mark of the one that starts it.
    peak = {kind: _peak_mib(rates) for kind, rates in kinds.items()}
    steps = {kind: _step(rates) for kind, rates in kinds.items()}
    seconds = {kind: [] for kind in kinds}
    for _ in range(_ROUNDS.value):
        for kind, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[kind].append(time.perf_counter() - start)
        print(", ".join(f"{kind} {values[-1]:.2f} s" for kind, values in seconds.items()))
    median = {kind: statistics.median(values) for kind, values in seconds.items()}
    result = {
        "package_version": __version__,
        "tensorflow_version": tf.__version__,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        **{
            name: flags.FLAGS[name].value
            for name in ("backbone", "rates", "crop_size", "batch_size")
        },
        "seconds_per_step": seconds,
        "median_seconds_per_step": median,
        "time_with_over_without": median["with"] / median["without"],
        "peak_mib": peak,
        "peak_with_over_without": peak["with"] / peak["without"],
    }
    print(f"{'':<10}{'s/step':>10}{'peak MiB':>10}")
    for kind in kinds:
        print(f"{kind:<10}{median[kind]:>10.2f}{peak[kind]:>10.0f}")
    print(f"time with / without affinity:   {result['time_with_over_without']:.3f}")
    print(f"memory with / without affinity: {result['peak_with_over_without']:.3f}")
    if _OUTPUT.value:
        path = Path(_OUTPUT.value)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
