"""Benchmarks run at tiny sizes; those about GPUs on a CPU."""

import json

import numpy as np
import pytest
from helpers.commands import run_module
from helpers.jax_processes import needs_jax

pytestmark = pytest.mark.slow  # a minute


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    # It draws the images of its input pipeline in the current folder.
    arguments = ("--tiny", "--rounds=1", "--output=result.json")
    done = run_module("benchmarks.gpu", *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "result.json").read_text())


def test_every_part_is_measured(measured):
    numbers = [
        measured["copy_bytes_per_second"],
        measured["pipeline"]["images_per_second"],
        *(each["seconds"] for each in measured["network"]),
        *(each[kind]["seconds"] for each in measured["training"] for kind in ("with", "without")),
        *(value for each in measured["propagation"] for value in each["seconds"].values()),
    ]
    assert len(numbers) == 8 and np.isfinite(numbers).all() and min(numbers) > 0


def test_ratios_and_environment_are_recorded(measured):
    for each in measured["propagation"]:
        for name, seconds in each["seconds"].items():
            assert each["over_plain"][name] == pytest.approx(seconds / each["seconds"]["plain"])
            assert each["over_floor"][name] == pytest.approx(seconds / each["floor_seconds"])
        # 4 bytes of 32 affinities, and of the probabilities once read and once written.
        moved = 10 * 4 * 33 * 41 * (32 + 2 * 5) / measured["copy_bytes_per_second"]
        assert each["floor_seconds"] == pytest.approx(moved)
    assert measured["settings"]["rounds"] == 1 and measured["packages"]["keras"]
    for each in measured["training"]:
        ratio = each["with"]["seconds"] / each["without"]["seconds"]
        assert each["with_over_without"] == pytest.approx(ratio)


def test_targets_of_the_device_are_those_of_the_pipeline(measured):
    (targets,) = measured["targets"]
    losses = targets["losses"]
    np.testing.assert_allclose(losses["device"], losses["pipeline"], rtol=1e-3)
    assert len(losses["device"]) == 4 and min(targets["seconds"].values()) > 0


@needs_jax
def test_memory_of_a_step(tmp_path):
    output = tmp_path / "result.json"
    step = "mobilenet_v2_0.35:65:2"
    arguments = (f"--steps={step}", f"--compared={step}", f"--output={output}")
    backend = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    done = run_module("benchmarks.step_memory", *arguments, **backend)
    assert done.returncode == 0, done.stderr[-3000:]
    (measured,) = json.loads(output.read_text())["steps"]
    assert measured["with"]["temporary"] > measured["without"]["temporary"] > 1e6
    # The batch alone: float32 images and uint8 labels, and with affinity 32 channels of targets.
    pixels = 2 * 65 * 65
    difference = measured["with"]["arguments"] - measured["without"]["arguments"]
    assert measured["without"]["arguments"] > 13 * pixels and difference > 32 * pixels


def test_evaluation_against_network_and_propagation(tmp_path):
    output = tmp_path / "result.json"
    arguments = (
        *("--images=2", "--sizes=33x41,28x41", "--classes=3", "--rounds=3", "--filters=8"),
        *("--rates=2", "--iterations=0,1,3", "--limit=0.01", f"--output={output}"),
    )
    done = run_module("benchmarks.evaluation", *arguments)
    assert done.returncode == 1, "the evaluation takes more than a hundredth of its network"
    assert output.exists(), done.stderr[-3000:]
    measured = json.loads(output.read_text())
    assert measured["settings"]["images"] == 2 and measured["settings"]["classes"] == 3
    for kind in ("clock", "processor"):
        result = measured[kind]
        assert set(result["seconds"]) == {"evaluation", *result["evaluation_over"]}
        median = {name: np.median(values) for name, values in result["seconds"].items()}
        assert min(map(len, result["seconds"].values())) == 3 and min(median.values()) > 0
        for name, value in result["median_seconds_per_image"].items():
            assert value == pytest.approx(median[name] / 2)
        for name, ratio in result["evaluation_over"].items():
            assert ratio == pytest.approx(median["evaluation"] / median[name])
