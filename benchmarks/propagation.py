"""Measures time and memory of propagation against three references.

    python -m benchmarks.propagation --output=result.json --plot=result.png
    KERAS_BACKEND=jax python -m benchmarks.propagation --crf_sizes= --output=result.json  # a GPU

- `package`: `propagate`, as users call it.
- `plain`: the same equations written plainly, in a `tf.function`, under JAX in `jax.jit`, so that
  XLA compiles both there; that the results are equal is checked first.
- `crf`: dense CRF by `pydensecrf`, with the settings of `baselines.crf`, where the extra `crf` is
  installed; `--crf_sizes=` leaves it out.
- `floor`, a lower bound: each iteration reads the affinities, and reads and writes the
  probabilities, at the memory bandwidth of this machine, and multiplies and adds at the speed of a
  matrix product.

They take turns. A second table shows `package` over image sizes, classes, rates and iterations; the
plot shows its time per pixel. Peak memory, on CPUs only, is that of a process of its own, above its
memory once the inputs exist and the code is compiled.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
from absl import app, flags
from keras import ops

from benchmarks.recording import flag_values, write_result
from benchmarks.steps import plain_propagation, propagation_inputs
from dilated_affinity.affinity.geometry import format_rates, parse_rates
from dilated_affinity.affinity.propagation import propagate
from dilated_affinity.baselines.crf import DenseCRF
from dilated_affinity.errors import ConfigError
from dilated_affinity.runtime.distribution import gpu_names
from dilated_affinity.runtime.xla import compiled

_RATES = flags.DEFINE_string("rates", "8,(12,24),16", "Dilation rates.")
_SIZES = flags.DEFINE_list(
    "sizes", ["513x513x21", "1024x2048x19"], "Height x width x classes to compare at."
)
_CRF_SIZES = flags.DEFINE_list("crf_sizes", None, "Those with dense CRF. Default: all.")
_ITERATIONS = flags.DEFINE_integer("iterations", 10, "Iterations.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Measurements of each.", lower_bound=1)
_PLOT = flags.DEFINE_string("plot", None, "PNG file to write.")
_MEMORY_OF = flags.DEFINE_string("memory_of", None, "Internal: print the peak at this size.")

SWEEP = {
    "size": ["129x129x21", "257x257x21", "513x513x21", "1025x1025x21", "1024x2048x21"],
    "classes": ["513x513x8", "513x513x16", "513x513x19", "513x513x24", "513x513x40"],
    "rates": ["8", "8,16", "8,(12,24)", "8,(12,24),16"],
    "iterations": [1, 3, 6, 10, 20],
}
"""Settings of the second table, varied one at a time around 513x513x21."""


def _crf(probabilities):
    """Dense CRF on probabilities (1, H, W, C) and an image; None where it is not installed."""
    try:
        crf = DenseCRF(iterations=_ITERATIONS.value)
    except ConfigError as error:
        print(error)
        return None
    height, width = probabilities.shape[1:3]
    # Shades and noise as in photographs, since its time depends on the number of colours.
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 32 + 2, width // 32 + 2, 3)).astype(np.float32)
    image = cv2.resize(coarse, (width, height)) + rng.normal(0, 4, (height, width, 3))
    image = image.clip(0, 255).astype(np.uint8)
    unrefined = ops.convert_to_numpy(probabilities[0])
    return lambda: crf(image, unrefined)


def _seconds(functions, rounds):
    """Medians of alternating calls, after one call of each."""
    for function in functions.values():
        function()
    seconds = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            result = function()
            if ops.is_tensor(result):
                ops.convert_to_numpy(result[0, 0, 0, 0])
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _machine():
    """Measured memory bandwidth in bytes/s and float32 operations/s of this machine."""
    block = ops.ones(2**26)
    scale = compiled(lambda values: 2.0 * values)
    matrix = ops.ones((2048, 2048))
    seconds = _seconds(
        {
            "copy": lambda: scale(block)[None, None, None],
            "product": lambda: ops.matmul(matrix, matrix)[None, None],
        },
        5,
    )
    return 2 * 4 * 2**26 / seconds["copy"], 2 * 2048**3 / seconds["product"]


def _floor(size, rates, bandwidth, operations):
    height, width, classes = map(int, size.split("x"))
    pixels, channels = height * width * _ITERATIONS.value, 8 * len(rates)
    memory = 4 * pixels * (channels + 2 * classes) / bandwidth
    arithmetic = pixels * classes * (2 * channels + 4) / operations
    return max(memory, arithmetic)


def _peak(size):
    """Bytes of propagation above its inputs, over the bytes of the probabilities."""
    module = "benchmarks.propagation"
    command = [sys.executable, "-m", module, *sys.argv[1:], f"--memory_of={size}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def _high_water():
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def _print_peak(size, rates):
    inputs = propagation_inputs(size, rates)
    ops.convert_to_numpy(propagate(*inputs, rates, _ITERATIONS.value)[0, 0, 0, 0])
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the high-water mark
    before = _high_water()
    ops.convert_to_numpy(propagate(*inputs, rates, _ITERATIONS.value)[0, 0, 0, 0])
    print((_high_water() - before) / (4 * np.prod(inputs[0].shape)))


def _compare(size, rates, machine):
    probabilities, affinities = propagation_inputs(size, rates)
    reference = plain_propagation(rates, _ITERATIONS.value)
    functions = {
        "package": lambda: propagate(probabilities, affinities, rates, _ITERATIONS.value),
        "plain": lambda: reference(probabilities, affinities),
    }
    results = [ops.convert_to_numpy(function()) for function in functions.values()]
    difference = np.abs(results[0] - results[1]).max()
    if not difference < 1e-4:
        raise RuntimeError(f"package and plain differ by {difference} at {size}")
    seconds = _seconds(functions, _ROUNDS.value)
    with_crf = _SIZES.value if _CRF_SIZES.value is None else _CRF_SIZES.value
    crf = _crf(probabilities) if size in with_crf else None
    if crf is not None:
        seconds["crf"] = _seconds({"crf": crf}, 1)["crf"]
    seconds["floor"] = _floor(size, rates, *machine)
    compared = {
        "seconds": seconds,
        "times_faster": {
            name: seconds[name] / seconds["package"] for name in seconds if name != "package"
        },
    }
    # The peak of a process does not include the memory of a GPU.
    return compared if gpu_names() else {**compared, "peak_over_probabilities": _peak(size)}


def _sweep():
    results = {}
    for varied, values in SWEEP.items():
        for value in values:
            size = value if varied in ("size", "classes") else "513x513x21"
            rates = parse_rates(value if varied == "rates" else _RATES.value)
            iterations = value if varied == "iterations" else _ITERATIONS.value
            inputs = propagation_inputs(size, rates)
            call = {"package": lambda i=inputs, r=rates, n=iterations: propagate(*i, r, n)}
            seconds = _seconds(call, _ROUNDS.value)["package"]
            height, width, _ = map(int, size.split("x"))
            results.setdefault(varied, []).append(
                {
                    varied: value,
                    "number_of_rates": len(rates),
                    "seconds": seconds,
                    "nanoseconds_per_pixel": 1e9 * seconds / (height * width),
                }
            )
    return results


def _draw(sweep, path):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(sweep))
    for panel, (varied, rows) in zip(panels, sweep.items(), strict=True):
        names = [str(row[varied]) for row in rows]
        panel.bar(names, [row["nanoseconds_per_pixel"] for row in rows], color="#00338f")
        panel.set_title(varied)
        panel.tick_params(axis="x", rotation=30)
    panels[0].set_ylabel("ns per pixel")
    figure.savefig(path, dpi=100)


def main(_):
    rates = parse_rates(_RATES.value)
    if _MEMORY_OF.value:
        _print_peak(_MEMORY_OF.value, rates)
        return
    machine = _machine()
    print(f"{_ITERATIONS.value} iterations, rates {format_rates(rates)}")
    comparisons = {}
    for size in _SIZES.value:
        comparisons[size] = result = _compare(size, rates, machine)
        print(f"{size}\n  package {result['seconds']['package']:9.3f} s")
        for name, ratio in result["times_faster"].items():
            print(f"  {name:<8}{result['seconds'][name]:9.3f} s, {ratio:.2f} times as long")
        if "peak_over_probabilities" in result:
            peak = result["peak_over_probabilities"]
            print(f"  peak memory: {peak:.2f} times the probabilities")
    sweep = _sweep()
    for varied, rows in sweep.items():
        for row in rows:
            value = f"{row['seconds']:8.3f} s {row['nanoseconds_per_pixel']:9.1f} ns per pixel"
            print(f"{varied:<11}{row[varied]!s:<14}{value}")
    results = {
        "bytes_per_second": machine[0],
        "operations_per_second": machine[1],
        "comparisons": comparisons,
        "sweep": sweep,
    }
    write_result(flag_values("rates", "iterations", "rounds"), results)
    if _PLOT.value:
        _draw(sweep, _PLOT.value)


if __name__ == "__main__":
    app.run(main)
