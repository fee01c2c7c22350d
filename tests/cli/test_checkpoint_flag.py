"""`--checkpoint` of every command that uses a run: in this one, only the last checkpoint exists."""

import re

import pytest
from helpers.tiny_run import command, write_run

from dilated_affinity.run_dir.checkpoints import Checkpoints, TrainingState
from dilated_affinity.run_dir.layout import BEST, CHECKPOINTS
from dilated_affinity.run_dir.load import load_checkpoint

COMMANDS = {
    "eval_main": (),
    "predict_main": ("--limit=1", "--output_dir={folder}/predictions"),
    "report_main": ("--limit=1", "--output={folder}/report.html"),
    "export_main": ("--format=keras", "--output={folder}/model.keras"),
    "calibrate_main": ("--calibrate=val[:1]",),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    _, model_dir = write_run(folder, rates="4,8", propagation_iterations=2)
    model = load_checkpoint(model_dir / BEST)
    Checkpoints(model_dir / CHECKPOINTS).write(model, TrainingState(step=7))
    (model_dir / BEST).unlink()
    return model_dir


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_last_checkpoint(run, tmp_path, name):
    arguments = [text.format(folder=tmp_path) for text in COMMANDS[name]]
    best = command(name, f"--model_dir={run}", *arguments)
    assert best.returncode == 1 and "this run has no checkpoints/best.keras yet" in best.stderr
    last = command(name, f"--model_dir={run}", "--checkpoint=last", *arguments)
    assert last.returncode == 0, last.stderr
    assert "last checkpoint" in last.stderr
    if name == "eval_main":  # also at the run's own number of iterations
        assert re.search(r"^ +0 +1 +2 +3 +6 +10$", last.stdout, re.M), last.stdout
