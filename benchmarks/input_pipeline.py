"""Measures images per second of the input pipeline with and without affinity targets.

    python -m benchmarks.input_pipeline --dataset=voc2012_aug --data_dir=VOC --output=result.json

Three pipelines over the same images, in one process, take turns for several rounds:

- `without`: read, decode, scale, crop, flip, batch; no targets.
- `package`: the same with affinity targets as `training_dataset` makes them.
- `plain`: the same with affinity targets from plain TensorFlow operations, one channel for each
  neighbour, stacked; that they are equal is checked first.

It prints the medians over the rounds, their ratios, and the memory of the process over many images
of `package`, which should be constant from the second quarter on. Nothing else uses the cores, and
malloc is configured as by `train_main`; `--noconfigure_malloc` measures with glibc's defaults.
"""

import statistics
import time

import numpy as np
import psutil
import tensorflow as tf
from absl import app, flags

from benchmarks.recording import flag_values, write_result
from dilated_affinity.affinity.geometry import neighbor_offsets, parse_rates, reach
from dilated_affinity.affinity.targets import affinity_targets
from dilated_affinity.config import Config
from dilated_affinity.datasets.classes import IGNORE_LABEL
from dilated_affinity.datasets.registry import load_source
from dilated_affinity.runtime.system import configure_malloc
from dilated_affinity.training.input_pipeline import training_dataset

_DATASET = flags.DEFINE_string("dataset", "shapes", "Name of the data set.")
_DATA_DIR = flags.DEFINE_string("data_dir", "data", "Folder of the data set.")
_SPLIT = flags.DEFINE_string("split", "train", "Split to read.")
_RATES = flags.DEFINE_string("rates", "8,(12,24),16", "Dilation rates of the targets.")
_CROP_SIZE = flags.DEFINE_integer("crop_size", 513, "Side of the crops.", lower_bound=17)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Images per batch.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Measurements of each pipeline.", lower_bound=1)
_BATCHES = flags.DEFINE_integer(
    "batches", 12, "Batches per measurement, after two to warm up.", lower_bound=1
)
_MEMORY_IMAGES = flags.DEFINE_integer(
    "memory_images", 2000, "Images to watch the memory over; 0 leaves it out.", lower_bound=0
)
_CONFIGURE_MALLOC = flags.DEFINE_bool(
    "configure_malloc", True, "Use freed memory again, as train_main does."
)

_WARM_UP = 2


def plain_targets(labels, rates):
    """`affinity_targets` written plainly."""
    vertical, horizontal = reach(rates)
    height, width = labels.shape[-2:]
    padded = tf.pad(
        labels,
        [[0, 0], [vertical, vertical], [horizontal, horizontal]],
        constant_values=tf.constant(IGNORE_LABEL, labels.dtype),
    )
    channels = []
    for dy, dx in neighbor_offsets(rates):
        top, left = vertical + dy, horizontal + dx
        neighbor = padded[:, top : top + height, left : left + width]
        exists = tf.logical_and(labels != IGNORE_LABEL, neighbor != IGNORE_LABEL)
        same = tf.cast(labels == neighbor, tf.uint8)
        channels.append(tf.where(exists, same, tf.constant(255, tf.uint8)))
    return tf.stack(channels, axis=-1)


def _pipelines(config, source):
    rates = parse_rates(_RATES.value)
    without = config.replace(rates="none")

    def with_plain_targets(images, targets):
        return images, {**targets, "affinity": plain_targets(targets["semantic"], rates)}

    def plain(first_step, steps):
        batches = training_dataset(without, source, first_step, steps)
        batches = batches.map(
            with_plain_targets, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        )
        return batches.prefetch(2)

    return {
        "without": lambda first_step, steps: training_dataset(without, source, first_step, steps),
        "package": lambda first_step, steps: training_dataset(config, source, first_step, steps),
        "plain": plain,
    }


def _images_per_second(pipeline, first_step, steps):
    batches = iter(pipeline(first_step, _WARM_UP + steps))
    for _ in range(_WARM_UP):
        next(batches)
    start = time.perf_counter()
    for _ in range(steps):
        next(batches)
    return steps * _BATCH_SIZE.value / (time.perf_counter() - start)


def _memory(pipeline, images):
    """Resident memory in MiB after each batch."""
    process = psutil.Process()
    return [process.memory_info().rss / 2**20 for _ in pipeline(0, -(-images // _BATCH_SIZE.value))]


def _check(config, source):
    """Raises `AssertionError` where the two kinds of targets differ."""
    rates = parse_rates(_RATES.value)
    _, targets = next(iter(training_dataset(config, source, 0, 1)))
    labels = targets["semantic"]
    np.testing.assert_array_equal(targets["affinity"], plain_targets(labels, rates))
    np.testing.assert_array_equal(targets["affinity"], affinity_targets(labels, rates))


def _time_of_targets(config, source):
    """Milliseconds per image of the two kinds of targets alone."""
    rates = parse_rates(_RATES.value)
    _, targets = next(iter(training_dataset(config.replace(rates="none"), source, 0, 1)))
    labels = targets["semantic"]
    functions = {
        "package": lambda: affinity_targets(labels, rates),
        "plain": tf.function(lambda: plain_targets(labels, rates), autograph=False),
    }
    times = {}
    for name, function in functions.items():
        function()
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - start)
        times[name] = 1000 * statistics.median(seconds) / _BATCH_SIZE.value
    return times


def main(_):
    configured = _CONFIGURE_MALLOC.value and configure_malloc()
    config = Config.for_dataset(
        _DATASET.value,
        data_dir=_DATA_DIR.value,
        train_split=_SPLIT.value,
        rates=_RATES.value,
        crop_size=_CROP_SIZE.value,
        batch_size=_BATCH_SIZE.value,
        min_scale=0.5,
        max_scale=2.0,
        scale_step=0.25,
    )
    source = load_source(config.dataset, config.train_split, config.data_dir)
    _check(config, source)
    pipelines = _pipelines(config, source)
    rates = {name: [] for name in pipelines}
    for turn in range(_ROUNDS.value):
        for name, pipeline in pipelines.items():
            # The same images for each of the three.
            rate = _images_per_second(pipeline, turn * (_WARM_UP + _BATCHES.value), _BATCHES.value)
            rates[name].append(rate)
        print(f"round {turn + 1}: " + ", ".join(f"{n} {r[-1]:.1f}" for n, r in rates.items()))
    median = {name: statistics.median(values) for name, values in rates.items()}
    results = {
        "images": len(source),
        "malloc_configured": configured,
        "images_per_second": rates,
        "median_images_per_second": median,
        "package_over_without": median["package"] / median["without"],
        "package_over_plain": median["package"] / median["plain"],
        "milliseconds_of_targets_per_image": _time_of_targets(config, source),
    }
    print(f"{'':<10}{'images/s':>10}")
    for name, value in median.items():
        print(f"{name:<10}{value:>10.1f}")
    print(f"package / without targets: {results['package_over_without']:.2f}")
    print(f"package / plain targets:   {results['package_over_plain']:.2f}")
    times = results["milliseconds_of_targets_per_image"]
    print(f"targets alone: package {times['package']:.1f}, plain {times['plain']:.1f} ms per image")
    if _MEMORY_IMAGES.value:
        resident = _memory(pipelines["package"], _MEMORY_IMAGES.value)
        quarters = [statistics.mean(part) for part in np.array_split(resident, 4) if part.size]
        results["resident_mib"] = {
            "images": _MEMORY_IMAGES.value,
            "mean_of_quarters": [round(quarter, 1) for quarter in quarters],
            "peak": round(max(resident), 1),
        }
        shown = ", ".join(f"{quarter:.0f}" for quarter in quarters)
        print(f"memory over {_MEMORY_IMAGES.value} images, by quarter: {shown} MiB")
    settings = flag_values("dataset", "split", "rates", "crop_size", "batch_size", "rounds")
    write_result(settings, results)


if __name__ == "__main__":
    app.run(main)
