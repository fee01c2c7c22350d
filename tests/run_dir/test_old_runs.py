"""A run of version 0.1.0: loaded, evaluated and continued by this version."""

import json
import tarfile
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers.tiny import write_camvid

from dilated_affinity.config import Config
from dilated_affinity.run_dir.layout import CONFIG_FILE
from dilated_affinity.run_dir.load import load_run
from dilated_affinity.training.trainer import train

ARCHIVE = Path(__file__).parents[1] / "fixtures" / "run_0.1.0.tar.xz"


@pytest.fixture
def old_run(tmp_path):
    """2 of 4 steps of `tiny_config(rates="(2,4)")`, as version 0.1.0 left them."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "run_0.1.0"


def test_settings_get_new_names(old_run):
    written = json.loads((old_run / CONFIG_FILE).read_text())["config"]
    config = Config.load(old_run / CONFIG_FILE)
    assert config.train_steps == written["iterations"] == 4
    assert config.random_flip is written["flip"] is True


def test_load_old_checkpoint(old_run):
    _, model = load_run(old_run, checkpoint="last")
    (checkpoint,) = (old_run / "checkpoints").glob("step-*.keras")
    saved = keras.models.load_model(checkpoint, compile=False)
    for ours, theirs in zip(model.weights, saved.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    logits = model(np.full((1, 33, 41, 3), 90, "float32"))
    assert logits["semantic"].shape == (1, 33, 41, 11) and logits["affinity"].shape[-1] == 16
    assert np.ptp(logits["semantic"]) > 0


def test_continue_old_run(old_run, tmp_path):
    config = Config.load(old_run / CONFIG_FILE)
    result = train(config.replace(data_dir=str(write_camvid(tmp_path / "data"))), old_run)
    rows = (old_run / "log.csv").read_text().splitlines()
    assert result.step == 4 and len(rows) == 3


def test_old_names_are_taken_with_a_warning():
    with pytest.warns(FutureWarning, match="iterations is called train_steps"):
        assert Config.for_dataset("camvid", iterations=3).train_steps == 3
    with pytest.warns(FutureWarning, match="flip is called random_flip"):
        assert not Config().replace(flip=False).random_flip
