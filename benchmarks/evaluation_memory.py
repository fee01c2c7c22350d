"""Measures the peak memory of evaluating one image, with and without the affinity.

    python -m benchmarks.evaluation_memory --output=benchmarks/results/evaluation_memory.json

Each measurement has a process of its own: it builds the network with random weights, runs
`evaluate` on one random image and reports the peak resident memory of the process, including Python
and libraries.

- `without`: plain DeepLabv3+, no affinity head, no propagation.
- `with`: DeepLabv3+ with the affinity head, measured at 0 and at `--iterations` of propagation.

It prints both, their ratio, and the time of a whole evaluation including compilation. The exit
status is 1 if `with` reaches `--limit_gb`.
"""

import multiprocessing
import resource
import sys
import time

import keras
import numpy as np
from absl import app, flags

from benchmarks.recording import flag_values, write_result
from dilated_affinity.affinity.geometry import parse_rates
from dilated_affinity.datasets.classes import CITYSCAPES
from dilated_affinity.evaluation.evaluate import evaluate
from dilated_affinity.inference.views import Views
from dilated_affinity.models.deeplab import DeepLabV3Plus

flags.DEFINE_string("backbone", "resnet101", "Name of the backbone.")
flags.DEFINE_integer("output_stride", 8, "Output stride.")
flags.DEFINE_integer("height", 1024, "Height of the image.", lower_bound=1)
flags.DEFINE_integer("width", 2048, "Width of the image.", lower_bound=1)
_RATES = flags.DEFINE_string("rates", "8,(12,24),16", "Dilation rates.")
_ITERATIONS = flags.DEFINE_integer("iterations", 10, "Iterations of propagation.", lower_bound=1)
flags.DEFINE_integer("window", 0, "Side of sliding windows; 0: none.", lower_bound=0)
_LIMIT_GB = flags.DEFINE_float("limit_gb", 10.0, "Limit of the peak, in 10^9 bytes.")


class OneImage:
    """A random image with random labels, as a `Source`."""

    classes = CITYSCAPES
    ids = ("random",)

    def __init__(self, height, width):
        rng = np.random.default_rng(0)
        coarse = rng.integers(0, CITYSCAPES.num_classes, (-(-height // 32), -(-width // 32)))
        label = coarse.repeat(32, axis=0).repeat(32, axis=1)[:height, :width]
        image = rng.integers(0, 256, (height, width, 3))
        self._example = {"image": image.astype(np.uint8), "label": label.astype(np.uint8)}

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self._example


def measure(rates, iterations, settings):
    """Peak resident memory in bytes, and seconds, of this process evaluating one image."""
    keras.utils.set_random_seed(0)
    model = DeepLabV3Plus(
        CITYSCAPES.num_classes,
        rates,
        settings["backbone"],
        settings["output_stride"],
        weights=None,
    )
    source = OneImage(settings["height"], settings["width"])
    start = time.perf_counter()
    evaluate(model, source, iterations, views=Views(window=settings["window"]))
    seconds = time.perf_counter() - start
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "seconds": round(seconds, 1),
    }


def main(_):
    settings = flag_values("backbone", "output_stride", "height", "width", "window")
    cases = {
        "without": (None, (0,)),
        "with": (parse_rates(_RATES.value), (0, _ITERATIONS.value)),
    }
    # Spawned, not forked: a fork would begin with this process's memory.
    context = multiprocessing.get_context("spawn")
    results = {}
    for name, (rates, iterations) in cases.items():
        with context.Pool(1) as pool:
            results[name] = pool.apply(measure, (rates, iterations, settings))
        gigabytes = results[name]["peak_bytes"] / 1e9
        print(f"{name:<8}{gigabytes:7.2f} GB{results[name]['seconds']:8.1f} s", flush=True)
    peak = results["with"]["peak_bytes"]
    ratio = peak / results["without"]["peak_bytes"]
    print(f"with / without: {ratio:.2f}; limit: {_LIMIT_GB.value:g} GB")
    settings |= flag_values("rates", "iterations", "limit_gb")
    write_result(settings, {**results, "with_over_without": ratio})
    if peak >= _LIMIT_GB.value * 1e9:
        sys.exit(1)


if __name__ == "__main__":
    app.run(main)
