"""Measures the time of a training step with and without deterministic operations.

    python -m benchmarks.determinism --output=result.json

The reference is the same training with `--nodeterministic`. Each has a process of its own, since
compiled kernels may be kept; the two take turns. Steps include reading and augmenting the images of
`shapes`, whose recipe is trained.
"""

import statistics
import subprocess
import sys
import tempfile
import time

from absl import app, flags

from benchmarks.recording import flag_values, write_result
from dilated_affinity.affinity.statistics import AffinityStatistics
from dilated_affinity.config import Config
from dilated_affinity.datasets.registry import label_readers, load_source
from dilated_affinity.run_dir.model import build_model
from dilated_affinity.runtime.reproducibility import deterministic_operations
from dilated_affinity.training.compile import compile_model
from dilated_affinity.training.input_pipeline import training_dataset

_ROUNDS = flags.DEFINE_integer("rounds", 3, "Processes of each kind.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 30, "Measured steps of each process.", lower_bound=1)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Internal: measure one process on this data.")
_DETERMINISTIC = flags.DEFINE_bool("deterministic", True, "Internal: measure this kind.")

_WARM_UP = 3
_KINDS = ("deterministic", "nodeterministic")


def _seconds_per_step():
    """Median over the steps of this process."""
    config = Config.for_dataset("shapes", data_dir=_DATA_DIR.value)
    source = load_source("shapes", "train[:40]", config.data_dir)
    counted = AffinityStatistics.from_labels(label_readers(source), config.affinity_rates)
    with deterministic_operations(_DETERMINISTIC.value):
        model = build_model(config, source.classes.num_classes, counted)
        trained = compile_model(model, config, counted)
        seconds, start = [], None
        for images, targets in training_dataset(config, source, steps=_WARM_UP + _STEPS.value):
            trained.train_on_batch(images, targets)
            if start is not None:
                seconds.append(time.perf_counter() - start)
            start = time.perf_counter()
    return statistics.median(seconds[_WARM_UP - 1 :])


def main(_):
    if _DATA_DIR.value:
        print(_seconds_per_step())
        return
    seconds = {kind: [] for kind in _KINDS}
    with tempfile.TemporaryDirectory() as folder:
        load_source("shapes", "train", folder)
        for _ in range(_ROUNDS.value):
            for kind, values in seconds.items():
                command = [sys.executable, "-m", "benchmarks.determinism", *sys.argv[1:]]
                command += [f"--data_dir={folder}", f"--{kind}"]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                values.append(float(done.stdout.splitlines()[-1]))
            print(", ".join(f"{kind} {values[-1]:.3f} s" for kind, values in seconds.items()))
    with_, without = (statistics.median(seconds[kind]) for kind in _KINDS)
    print(f"time with / without deterministic operations: {with_ / without:.3f}")
    results = {"seconds_per_step": seconds, "time_with_over_without": with_ / without}
    write_result(flag_values("rounds", "steps"), results)


if __name__ == "__main__":
    app.run(main)
