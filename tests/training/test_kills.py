"""`kill -9` at random moments: what is continued ends as what was never disturbed, bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def figures(folder, kills, seed, *options):
    done = subprocess.run(
        [sys.executable, "-m", "helpers.killed_runs", f"--folder={folder}", f"--kills={kills}"]
        + [f"--seed={seed}", *options],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "PYTHONPATH": str(TESTS)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(figures, kills):
    assert sum(figures["kills"].values()) == kills
    assert figures["kills"]["inside a save"] > 0
    assert figures["runs ended"] == figures["identical to the undisturbed"] > 0


@pytest.mark.slow
def test_five_kills(tmp_path):
    """One while starting, two between saves and two inside a save, if the machine is idle."""
    check(figures(tmp_path, 5, seed=5), 5)


@pytest.mark.slow
def test_sixty_kills_with_affinity(tmp_path):
    check(figures(tmp_path, 60, 1, "--rates=2"), 60)
