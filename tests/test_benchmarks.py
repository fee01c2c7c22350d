"""The benchmark for a GPU, which is rarely at hand, still runs: at tiny sizes, on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow  # half a minute


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--rounds=1", "--output=result.json"],
        cwd=folder,  # where it draws the images of its input pipeline
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
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


def test_ratios_are_those_of_the_times(measured):
    for each in measured["propagation"]:
        for name, seconds in each["seconds"].items():
            assert each["over_plain"][name] == pytest.approx(seconds / each["seconds"]["plain"])
            assert each["over_floor"][name] == pytest.approx(seconds / each["floor_seconds"])
        # 4 bytes of 32 affinities, and of the probabilities once read and once written.
        moved = 10 * 4 * 33 * 41 * (32 + 2 * 5) / measured["copy_bytes_per_second"]
        assert each["floor_seconds"] == pytest.approx(moved)
    for each in measured["training"]:
        ratio = each["with"]["seconds"] / each["without"]["seconds"]
        assert each["with_over_without"] == pytest.approx(ratio)
