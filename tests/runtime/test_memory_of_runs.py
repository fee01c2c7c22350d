"""Tests that memory does not grow in a long run or evaluation, in separate processes."""

import subprocess
import sys
from pathlib import Path

import pytest

RESIDENT = """
import sys
from pathlib import Path

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
"""

TRAINING = """
import keras
from helpers.tiny import tiny_config, write_camvid
from dilated_affinity.run_dir.checkpoints import Checkpoints
from dilated_affinity.training.trainer import train

write = Checkpoints.write

def watched(self, model, state):
    print("MiB", resident())
    return write(self, model, state)

Checkpoints.write = watched
folder = Path(sys.argv[1])
settings = {"train_steps": 3000, "validate_every": 500, "checkpoint_every": 100, "rates": "2"}
train(tiny_config(write_camvid(folder / "data"), **settings), folder / "run")
"""

EVALUATION = """
import numpy as np
from helpers.tiny import ListSource, NUM_CLASSES, tiny_config
from dilated_affinity.datasets.classes import CAMVID
from dilated_affinity.evaluation.evaluate import evaluate
from dilated_affinity.run_dir.model import build_model

class Watched(ListSource):
    def __getitem__(self, index):
        if index % 20 == 0:
            print("MiB", resident())
        return super().__getitem__(index % len(self._examples))

    def __len__(self):
        return 500

rng = np.random.default_rng(0)
examples = [
    {
        "image": rng.integers(0, 256, (80 + 16 * index, 120, 3)).astype(np.uint8),
        "label": rng.integers(0, 11, (80 + 16 * index, 120)).astype(np.uint8),
        "id": str(index),
    }
    for index in range(4)
]
evaluate(build_model(tiny_config("unused"), NUM_CLASSES), Watched(examples, CAMVID))
"""

GROWTH = 60
"""MiB by which memory may exceed the second quarter's peak, for fragmentation of the heap."""


def resident_over_time(program, folder):
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT + program, folder],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("MiB")]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("program", [TRAINING, EVALUATION], ids=["3,000 steps", "500 images"])
def test_memory_does_not_grow(program, tmp_path):
    values = resident_over_time(program, tmp_path)
    assert len(values) >= 25
    quarter = len(values) // 4
    assert max(values[-quarter:]) - max(values[quarter : 2 * quarter]) < GROWTH, values
