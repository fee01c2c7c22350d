"""A command writes its own lines to standard error and nothing else."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dilated_affinity.cli import app

ROOT = Path(__file__).parents[2]

# As pip writes it, but with the small backbone of the tests.
SCRIPT = """
import sys
import dilated_affinity
from helpers import tiny
from dilated_affinity.cli.train_main import main
sys.exit(main())
"""

SETTINGS = (
    "--dataset=shapes",
    "--train_split=train[:6]",
    "--val_split=val[:2]",
    "--backbone=tiny",
    "--noseparable",
    "--filters=8",
    "--crop_size=33",
    "--batch_size=2",
    "--train_steps=2",
    "--validate_every=1",
    "--calibrate=none",
)

LINES = (
    r"Preparing shapes in .*",
    r"shapes: 6 training and 2 validation images, 7 classes, .*; on CPU, float32; writing to .*",
    r"step 1 of 2: .*affinity_loss \d.*; learning rate 0\.0\d+",
    r"step 1: validation mIoU \d+\.\d\d %, before refinement",
    r"step 2 of 2: .*affinity_loss \d.*; learning rate 0; [\d.]+ s a step; [\d.]+ images/s",
    r"step 2: validation mIoU \d+\.\d\d %, before refinement",
)

SLOW = re.compile(r"step \d of 2: computing for \d+ s.*|[a-z ]+: \d+ of \d+ images.*")
"""Lines of a machine that is so busy that work takes more than 30 seconds."""


@pytest.mark.slow
def test_training_writes_only_its_own_lines(tmp_path):
    script = tmp_path / "train_main"
    script.write_text(SCRIPT)
    environment = {name: os.environ[name] for name in os.environ if "LOG_LEVEL" not in name}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    folders = (f"--data_dir={tmp_path / 'data'}", f"--model_dir={tmp_path / 'run'}")
    done = subprocess.run(
        [sys.executable, script, *SETTINGS, *folders],
        capture_output=True,
        text=True,
        env={**environment, "PYTHONPATH": paths},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if not SLOW.fullmatch(line)]
    assert len(lines) == len(LINES), done.stderr
    for line, pattern in zip(lines, LINES, strict=True):
        assert re.fullmatch(pattern, line), line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("5 out of the last 5 calls to %s triggered tf.function retracing.", False),
        ("%s: gradients do not exist", True),
    ],
)
def test_warnings_of_tensorflow(text, shown):
    place = os.path.join("site-packages", "tensorflow", "function.py")
    record = logging.LogRecord("tensorflow", logging.WARNING, place, 1, text, ("f",), None)
    assert app._concerns_the_user(record) is shown
