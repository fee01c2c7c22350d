"""Measures the evaluation of a split against network and propagation alone.

    python -m benchmarks.evaluation --dataset=folder --data_dir=DIR --split=val \\
        --output=benchmarks/results/evaluation.json

Three passes over the same images take turns for several rounds:

- `evaluation`: `evaluate` at `--iterations`: images are read, predicted, refined and counted;
- `network_and_propagation`: these alone, at the same iterations, on images in memory;
- `prediction`: likewise, but with the most iterations only, as a `Predictor` does.

The images are those of a data set, or drawn, of the sizes of photographs. The network has random
weights, unless those of its backbone are given. The first image, for which TensorFlow traces the
network, is not timed, nor is the first pass, in which XLA compiles. Times are medians over the
rounds, of the clock and of the processor: the latter tell more where other processes run as well.
The exit status is 1 if `evaluation` takes more than `--limit` times as long as
`network_and_propagation`.
"""

import os
import statistics
import sys
import time

import keras
import numpy as np
from absl import app, flags

from benchmarks.recording import flag_values, write_result
from dilated_affinity.affinity.geometry import parse_rates
from dilated_affinity.datasets.classes import ClassTable
from dilated_affinity.datasets.registry import load_source
from dilated_affinity.evaluation.evaluate import evaluate
from dilated_affinity.inference.network import Network, logits_fn
from dilated_affinity.inference.refinement import Refinement
from dilated_affinity.inference.refiners import make_refiner
from dilated_affinity.models.deeplab import DeepLabV3Plus

_DATASET = flags.DEFINE_string("dataset", None, "Name of a data set. Defaults to drawn images.")
_DATA_DIR = flags.DEFINE_string("data_dir", "data", "Folder of the data set.")
_SPLIT = flags.DEFINE_string("split", "val", "Split to evaluate.")
_IMAGES = flags.DEFINE_integer("images", 200, "Number of images.", lower_bound=1)
_SIZES = flags.DEFINE_list(
    "sizes", ["375x500", "500x375", "333x500", "500x333", "281x500"], "Sizes of drawn images."
)
_CLASSES = flags.DEFINE_integer("classes", 7, "Classes of drawn images.", lower_bound=2)
_BACKBONE = flags.DEFINE_string("backbone", "mobilenet_v2", "Name of the backbone.")
_WEIGHTS = flags.DEFINE_string("backbone_weights", None, "Weights of the backbone.")
_FILTERS = flags.DEFINE_integer("filters", 128, "Channels of the decoder.", lower_bound=1)
_OUTPUT_STRIDE = flags.DEFINE_integer("output_stride", 16, "Output stride.")
_RATES = flags.DEFINE_string("rates", "8,(12,24),16", "Dilation rates.")
_ITERATIONS = flags.DEFINE_list("iterations", ["0", "1", "3", "6", "10"], "Columns.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Measurements of each pass.", lower_bound=1)
_LIMIT = flags.DEFINE_float("limit", 1.25, "Largest ratio.")

_REFERENCES = ("network_and_propagation", "prediction")


class Drawn:
    """Random images of several sizes, whose labels are of blocks, as a `Source`."""

    def __init__(self, count, sizes, num_classes):
        names = tuple(map(str, range(num_classes)))
        self.classes = ClassTable(names, ((0, 0, 0),) * num_classes)
        self.ids = list(map(str, range(count)))
        self._sizes = sizes

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        height, width = self._sizes[index % len(self._sizes)]
        rng = np.random.default_rng(index)
        coarse = rng.integers(0, self.classes.num_classes, (-(-height // 32), -(-width // 32)))
        label = coarse.repeat(32, axis=0).repeat(32, axis=1)[:height, :width].astype(np.uint8)
        return {"image": rng.integers(0, 256, (height, width, 3), np.uint8), "label": label}


class Timed:
    """The first images of a source; the clocks start when the first has been processed."""

    def __init__(self, source, count):
        self.classes = source.classes
        self.ids = [source.ids[0], *source.ids[:count]]
        self._source = source

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        if index == 1:
            self._started = _clocks()
        return self._source[max(index - 1, 0)]

    def seconds(self):
        """Seconds of the clock and of the processor since then."""
        return [now - then for now, then in zip(_clocks(), self._started, strict=True)]


class InMemory:
    """The examples of a source, read in advance."""

    def __init__(self, source, count):
        self.classes, self.ids = source.classes, list(source.ids[:count])
        self._examples = [source[index] for index in range(len(self.ids))]

    def __getitem__(self, index):
        return self._examples[index]


def _clocks():
    return time.perf_counter(), time.process_time()


def _refine_all(model, source, iterations):
    """Network and propagation alone."""
    network, refiner = Network(logits_fn(model)), make_refiner(model, Refinement())
    for index in range(len(source)):
        for refined in refiner(network(source[index]["image"]), iterations):
            keras.ops.convert_to_numpy(refined[:, 0, 0])  # waits


def _measure(passes):
    """Seconds of alternating passes, each a source and a function, by name."""
    clock, processor = ({name: [] for name in passes} for _ in range(2))
    for round_ in range(1 + _ROUNDS.value):
        for name, (source, run) in passes.items():
            timed = Timed(source, _IMAGES.value)
            run(timed)
            if round_:
                for seconds, all_seconds in zip(timed.seconds(), (clock, processor), strict=True):
                    all_seconds[name].append(seconds)
    return clock, processor


def _summary(seconds, images):
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "seconds": seconds,
        "median_seconds_per_image": {name: value / images for name, value in median.items()},
        "evaluation_over": {name: median["evaluation"] / median[name] for name in _REFERENCES},
    }


def main(_):
    keras.utils.set_random_seed(0)
    if _DATASET.value:
        source = load_source(_DATASET.value, _SPLIT.value, _DATA_DIR.value)
    else:
        sizes = [tuple(map(int, size.split("x"))) for size in _SIZES.value]
        source = Drawn(_IMAGES.value, sizes, _CLASSES.value)
    in_memory = InMemory(source, _IMAGES.value)
    model = DeepLabV3Plus(
        source.classes.num_classes,
        parse_rates(_RATES.value),
        _BACKBONE.value,
        _OUTPUT_STRIDE.value,
        weights=_WEIGHTS.value,
        filters=_FILTERS.value,
    )
    iterations = tuple(map(int, _ITERATIONS.value))
    clock, processor = _measure(
        {
            "evaluation": (source, lambda timed: evaluate(model, timed, iterations)),
            "network_and_propagation": (
                in_memory,
                lambda timed: _refine_all(model, timed, iterations),
            ),
            "prediction": (in_memory, lambda timed: _refine_all(model, timed, iterations[-1:])),
        }
    )
    images = len(in_memory.ids)
    results = {"clock": _summary(clock, images), "processor": _summary(processor, images)}
    for kind, result in results.items():
        for name, seconds in result["median_seconds_per_image"].items():
            print(f"{kind:<12}{name:<26}{seconds:8.3f} s/image")
        for name, ratio in result["evaluation_over"].items():
            print(f"{kind:<12}evaluation / {name}: {ratio:.2f}")
    settings = flag_values("dataset", "split", "rounds", "limit", "backbone", "output_stride")
    settings |= flag_values("filters", "rates", "iterations")
    settings |= {"images": images, "classes": source.classes.num_classes}
    write_result(settings, {**results, "load_average": os.getloadavg()[0]})
    if results["clock"]["evaluation_over"][_REFERENCES[0]] > _LIMIT.value:
        sys.exit(1)


if __name__ == "__main__":
    app.run(main)
