"""Measures propagation, inference, training and input pipeline on a GPU, in about five minutes.

    python -m benchmarks.gpu --output=result.json
    KERAS_BACKEND=jax python -m benchmarks.gpu --output=result.json
    python -m benchmarks.gpu --tiny  # on any machine in a minute, to see that it runs

- Propagation, at the sizes of VOC and Cityscapes: `propagate` in a graph, with affinities and
  probabilities stored in float32 and in bfloat16. References are the plain equations compiled by
  the same compiler, and a lower bound: each iteration reads the affinities once, and reads and
  writes the probabilities, at the copy bandwidth of this device.
- Its share of the inference of ResNet-101 at output stride 8.
- Training steps with and without the affinity branch, in float32 and bfloat16 and, under
  TensorFlow, with and without deterministic operations; images per second, and peak memory.
- Affinity targets computed by the input pipeline against those computed on the device beside the
  loss, from labels that are 8|R| times smaller: steps that read from the pipeline.
- Images per second of the input pipeline on this machine's CPU.

Times are medians of several rounds in which the alternatives take turns.
"""

import contextlib
import statistics
import time

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from keras import ops

from benchmarks.recording import flag_values, write_result
from benchmarks.steps import (
    in_graph,
    plain_propagation,
    propagation_inputs,
    training_setup,
    training_step,
)
from dilated_affinity.affinity.geometry import parse_rates
from dilated_affinity.affinity.propagation import propagate
from dilated_affinity.affinity.targets import affinity_targets
from dilated_affinity.config import Config
from dilated_affinity.datasets.registry import load_source
from dilated_affinity.models.deeplab import DeepLabV3Plus
from dilated_affinity.runtime.distribution import gpu_names
from dilated_affinity.training.input_pipeline import training_dataset

PARTS = ("propagation", "network", "training", "targets", "pipeline")

_RATES = flags.DEFINE_string("rates", "8,(12,24),16", "Dilation rates.")
_SIZES = flags.DEFINE_list(
    "sizes", ["513x513x21", "1024x2048x19"], "Height x width x classes of propagation."
)
_STEPS = flags.DEFINE_list(
    "steps",
    ["resnet101:513:4", "resnet101:513:16", "mobilenet_v2:513:16"],
    "Steps of training: backbone:crop:batch.",
)
_PRECISIONS = flags.DEFINE_list("precisions", ["none", "bfloat16"], "Mixed precision of the steps.")
_PARTS = flags.DEFINE_list("parts", list(PARTS), "What to measure.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Measurements of each.", lower_bound=1)
_TINY = flags.DEFINE_bool("tiny", False, "Use tiny sizes, whose numbers mean nothing.")

_ITERATIONS = 10


def _wait(result):
    """Waits until a tensor has been computed."""
    first = next(iter(result.values())) if isinstance(result, dict) else result
    ops.convert_to_numpy(first[(0,) * (len(first.shape) - 1)])


def _seconds(functions):
    """Median seconds of each function, called in turns; each returns a tensor or a dict of them."""
    calls = {}
    for name, function in functions.items():
        for _ in range(2):
            start = time.perf_counter()
            _wait(function())
        # Calls that fill 50 ms are waited for at once, so that dispatch is not measured.
        calls[name] = max(1, min(50, int(0.05 / max(time.perf_counter() - start, 1e-6))))
    measured = {name: [] for name in functions}
    for _ in range(_ROUNDS.value):
        for name, function in functions.items():
            start = time.perf_counter()
            for _ in range(calls[name]):
                result = function()
            _wait(result)
            measured[name].append((time.perf_counter() - start) / calls[name])
    return {name: statistics.median(values) for name, values in measured.items()}


def _bandwidth():
    """Bytes per second of a copy larger than any cache, read and written."""
    numbers = ops.ones((1, 2**16 if _TINY.value else 2**28))
    double = in_graph(lambda values: values * 2.0)
    return 8 * numbers.shape[1] / _seconds({"copy": lambda: double(numbers)})["copy"]


def _propagation(size, bandwidth):
    rates = parse_rates(_RATES.value)
    inputs = propagation_inputs(size, rates)

    def stored_in(dtype):
        refine = in_graph(lambda *given: propagate(*given, rates, _ITERATIONS, storage_dtype=dtype))
        return lambda: refine(*inputs)

    plain = plain_propagation(rates, _ITERATIONS)
    functions = {
        "plain": lambda: plain(*inputs),
        "package": stored_in("float32"),
        "package_bfloat16": stored_in("bfloat16"),
    }
    expected = ops.convert_to_numpy(functions["plain"]())
    difference = np.abs(ops.convert_to_numpy(functions["package"]()) - expected).max()
    if not difference < 1e-4:
        raise RuntimeError(f"propagate differs from the plain equations by {difference}")
    height, width, classes = map(int, size.split("x"))
    floor = 4 * height * width * (8 * len(rates) + 2 * classes) * _ITERATIONS / bandwidth
    seconds = _seconds(functions)
    return {
        "size": size,
        "floor_seconds": floor,
        "seconds": seconds,
        "over_floor": {name: value / floor for name, value in seconds.items()},
        "over_plain": {name: value / seconds["plain"] for name, value in seconds.items()},
    }


def _network(propagation):
    """Time of the network at the size of a measured propagation, and the share of the latter."""
    height, width, classes = map(int, propagation["size"].split("x"))
    backbone = "mobilenet_v2_0.35" if _TINY.value else "resnet101"
    model = DeepLabV3Plus(
        classes, parse_rates(_RATES.value), backbone, output_stride=8, weights=None
    )
    infer = in_graph(lambda images: model(images, training=False))
    images = ops.convert_to_tensor(
        np.random.default_rng(0).uniform(0, 255, (1, height, width, 3)), "float32"
    )
    seconds = _seconds({"network": lambda: infer(images)})["network"]
    refinement = propagation["seconds"]["package"]
    return {
        "size": propagation["size"],
        "backbone": backbone,
        "seconds": seconds,
        "share_of_propagation": refinement / (refinement + seconds),
    }


@contextlib.contextmanager
def _deterministic(wanted):
    """Context in which TensorFlow's operations are deterministic, if wanted."""
    if wanted:
        tf.config.experimental.enable_op_determinism()
    try:
        yield
    finally:
        if wanted:
            # There is no public function for this.
            from tensorflow.python.framework import config

            config.disable_op_determinism()


def _peak_bytes():
    """Peak memory of the device since the last call; None if unknown."""
    if keras.backend.backend() == "jax":
        import jax

        stats = jax.devices()[0].memory_stats() or {}
        return stats.get("peak_bytes_in_use")
    if not tf.config.list_physical_devices("GPU"):
        return None
    peak = tf.config.experimental.get_memory_info("GPU:0")["peak"]
    tf.config.experimental.reset_memory_stats("GPU:0")
    return peak


def _training(name, precision, deterministic):
    backbone, crop, batch = name.split(":")
    settings = {
        "backbone": backbone,
        "backbone_weights": "none",
        "crop_size": int(crop),
        "batch_size": int(batch),
        "mixed_precision": precision,
    }
    measured = {"step": name, "mixed_precision": precision, "deterministic": deterministic}
    with _deterministic(deterministic):
        for kind, rates in (("without", "none"), ("with", _RATES.value)):
            keras.utils.clear_session()
            _peak_bytes()
            start = time.perf_counter()
            step = training_step(Config(rates=rates, **settings))
            step()
            compiled = time.perf_counter() - start
            values = []
            for _ in range(2 * _ROUNDS.value):
                start = time.perf_counter()
                step()
                values.append(time.perf_counter() - start)
            seconds = statistics.median(values)
            measured[kind] = {
                "seconds": seconds,
                "images_per_second": int(batch) / seconds,
                "first_step_seconds": compiled,
                "peak_bytes": _peak_bytes(),
            }
    measured["with_over_without"] = measured["with"]["seconds"] / measured["without"]["seconds"]
    return measured


def _targets(name):
    """Seconds per step with targets of the pipeline and with those computed in the step."""
    backbone, crop, batch = name.split(":")
    config = Config.for_dataset(
        "shapes",
        backbone=backbone,
        backbone_weights="none",
        rates=_RATES.value,
        crop_size=int(crop),
        batch_size=int(batch),
    )
    source = load_source("shapes", "train", config.data_dir)
    read = {"pipeline": config, "device": config.replace(rates="none")}
    trained, batches = {}, {}
    steps = 2 + 2 * _ROUNDS.value
    for place in read:
        keras.utils.set_random_seed(0)
        trained[place] = training_setup(config)[0]
        dataset = training_dataset(read[place], source, 0, steps)
        jax = keras.backend.backend() == "jax"
        batches[place] = dataset.as_numpy_iterator() if jax else iter(dataset)
    _compute_targets_in_steps(trained["device"], config.affinity_rates)
    measured, losses = {place: [] for place in read}, {place: [] for place in read}
    for _ in range(steps):
        for place in read:
            start = time.perf_counter()
            images, targets = next(batches[place])
            found = trained[place].train_on_batch(images, targets, return_dict=True)
            measured[place].append(time.perf_counter() - start)
            losses[place].append(float(found["loss"]))
    seconds = {place: statistics.median(values[2:]) for place, values in measured.items()}
    return {
        "step": name,
        "seconds": seconds,
        "losses": losses,
        "device_over_pipeline": seconds["device"] / seconds["pipeline"],
    }


def _compute_targets_in_steps(model, rates):
    """Lets the training step of a model compute the affinity targets from the labels."""
    inner = model.train_step

    def train_step(*given):
        *state, data = given
        images, targets, _ = keras.utils.unpack_x_y_sample_weight(data)
        targets = {**targets, "affinity": affinity_targets(targets["semantic"], rates)}
        return inner(*state, (images, targets))

    model.train_step = train_step


def _pipeline():
    """Images per second from images of `shapes`, enlarged to the paper's crops."""
    config = Config.for_dataset(
        "shapes", rates=_RATES.value, crop_size=65 if _TINY.value else 513, batch_size=8
    )
    steps = 2 if _TINY.value else 20
    source = load_source("shapes", "train", config.data_dir)
    start = time.perf_counter()
    for _ in training_dataset(config, source, 0, steps):
        pass
    return {"images_per_second": steps * config.batch_size / (time.perf_counter() - start)}


def measure() -> dict:
    """Measures the parts of --parts and prints a line for each."""
    tiny, jax = _TINY.value, keras.backend.backend() == "jax"
    parts = _PARTS.value
    result = {"device": next(iter(gpu_names()), "CPU")}
    if "propagation" in parts or "network" in parts:
        result["copy_bytes_per_second"] = bandwidth = _bandwidth()
        print(f"{result['device']}: copies {bandwidth / 1e9:.1f} GB/s", flush=True)
        sizes = ["33x41x5"] if tiny else _SIZES.value
        result["propagation"] = [_propagation(size, bandwidth) for size in sizes]
        for each in result["propagation"]:
            print(f"{each['size']}: floor {1e3 * each['floor_seconds']:.3f} ms", flush=True)
            for name, value in each["seconds"].items():
                over = each["over_floor"][name], each["over_plain"][name]
                print(
                    f"  {name:<18}{1e3 * value:9.3f} ms, {over[0]:.2f} x floor, "
                    f"{over[1]:.2f} x plain"
                )
    if "network" in parts:
        result["network"] = [_network(each) for each in result["propagation"]]
        for each in result["network"]:
            print(
                f"{each['size']}: {each['backbone']} {1e3 * each['seconds']:.1f} ms, "
                f"propagation is {100 * each['share_of_propagation']:.1f} % of both",
                flush=True,
            )
    steps = ["mobilenet_v2_0.35:65:2"] if tiny else _STEPS.value
    if "training" in parts:
        result["training"] = []
        for step in steps:
            for precision in _PRECISIONS.value[: 1 if tiny else None]:
                # Under JAX a flag of XLA decides on deterministic operations.
                for deterministic in (False,) if jax or tiny else (False, True):
                    each = _training(step, precision, deterministic)
                    result["training"].append(each)
                    _print_training(each)
    if "targets" in parts:
        result["targets"] = [_targets(step) for step in steps]
        for each in result["targets"]:
            print(
                f"{each['step']}: targets of the pipeline {each['seconds']['pipeline']:.3f} s, "
                f"on the device {each['seconds']['device']:.3f} s",
                flush=True,
            )
    if "pipeline" in parts:
        result["pipeline"] = _pipeline()
        print(f"input pipeline: {result['pipeline']['images_per_second']:.1f} images/s")
    return result


def _print_training(each):
    settings = f"{each['step']} {each['mixed_precision']}"
    settings += " deterministic" if each["deterministic"] else ""
    for kind in ("without", "with"):
        values = each[kind]
        peak = values["peak_bytes"]
        memory = "" if peak is None else f", peak {peak / 2**30:.2f} GiB"
        print(
            f"{settings}, {kind} affinity: {1e3 * values['seconds']:.1f} ms, "
            f"{values['images_per_second']:.1f} images/s, "
            f"first {values['first_step_seconds']:.0f} s{memory}",
            flush=True,
        )


def main(_):
    unknown = set(_PARTS.value) - set(PARTS)
    if unknown:
        raise app.UsageError(f"--parts must be of {', '.join(PARTS)}. Received: {unknown}")
    settings = flag_values("rates", "sizes", "steps", "precisions", "parts", "rounds", "tiny")
    write_result(settings, measure())


if __name__ == "__main__":
    app.run(main)
