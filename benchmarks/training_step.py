"""Measures time and memory of a training step with and without the affinity branch.

    python -m benchmarks.training_step --backbone=mobilenet_v2 --batch_size=8 --output=result.json

The reference is the same step of plain DeepLabv3+ (`--rates=none`), in the same process; the two
take turns. Images and targets are in memory. Peak memory is that of a process that trains one of
the two alone.
"""

import resource
import statistics
import subprocess
import sys
import time

from absl import app, flags

from benchmarks.recording import flag_values, write_result
from benchmarks.steps import training_step
from dilated_affinity.config import Config
from dilated_affinity.runtime.system import configure_malloc

_BACKBONE = flags.DEFINE_string("backbone", "mobilenet_v2", "Name of the backbone.")
_RATES = flags.DEFINE_string("rates", "8,(12,24),16", "Dilation rates of the step with affinity.")
_CROP_SIZE = flags.DEFINE_integer("crop_size", 321, "Side of the crops.", lower_bound=17)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Images per step.", lower_bound=2)
_ROUNDS = flags.DEFINE_integer("rounds", 9, "Measured steps of each kind.", lower_bound=1)
_MEMORY_OF = flags.DEFINE_string("memory_of", None, "Internal: print the peak of these rates.")

_WARM_UP = 2


def _step(rates):
    """A function that trains one step, warmed up."""
    config = Config(
        backbone=_BACKBONE.value,
        backbone_weights="none",
        rates=rates,
        crop_size=_CROP_SIZE.value,
        batch_size=_BATCH_SIZE.value,
    )
    step = training_step(config)
    for _ in range(_WARM_UP):
        step()
    return step


def _peak_mib(rates):
    """Peak memory of a process of its own."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.training_step",
        *sys.argv[1:],
        f"--memory_of={rates}",
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def main(_):
    configure_malloc()
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
    results = {
        "seconds_per_step": seconds,
        "median_seconds_per_step": median,
        "time_with_over_without": median["with"] / median["without"],
        "peak_mib": peak,
        "peak_with_over_without": peak["with"] / peak["without"],
    }
    print(f"{'':<10}{'s/step':>10}{'peak MiB':>10}")
    for kind in kinds:
        print(f"{kind:<10}{median[kind]:>10.2f}{peak[kind]:>10.0f}")
    print(f"time with / without affinity:   {results['time_with_over_without']:.3f}")
    print(f"memory with / without affinity: {results['peak_with_over_without']:.3f}")
    write_result(flag_values("backbone", "rates", "crop_size", "batch_size", "rounds"), results)


if __name__ == "__main__":
    app.run(main)
