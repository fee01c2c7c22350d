"""A run of version 0.1.0: loaded, evaluated and continued by this version."""

import json
import tarfile
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers.tiny import write_camvid

from dilated_affinity.config import Config
from dilated_affinity.inference.refinement import Refinement
from dilated_affinity.report import RunFiles
from dilated_affinity.run_dir.layout import CALIBRATION_FILE, CONFIG_FILE, chosen_checkpoint
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


@pytest.mark.parametrize(
    ("postprocess", "refinement", "refine"),
    [
        ("propagate", "exact", "propagation"),
        ("propagate", "decoder_stride", "propagation_decoder_stride"),
        ("propagate", "early_stop", "propagation_early_stop"),
        ("crf", "early_stop", "crf"),
        ("none", "exact", "none"),
    ],
)
def test_postprocess_and_refinement_are_one_setting(old_run, postprocess, refinement, refine):
    path = old_run / CONFIG_FILE
    content = json.loads(path.read_text())
    assert content["config"]["postprocess"] == "propagate"
    content["config"] |= {"postprocess": postprocess, "refinement": refinement}
    path.write_text(json.dumps(content))
    assert Config.load(path).refine == refine


def test_its_calibration_applies(old_run):
    settings = {
        "propagation_iterations": 6,
        "self_weight": 20.0,
        "mu": 50.0,
        "affinity_threshold": 1.0,
        "symmetric_affinity": True,
    }
    (old_run / CALIBRATION_FILE).write_text(json.dumps({"step": 2, "settings": settings}))
    config, _ = load_run(old_run, checkpoint="last")
    assert Refinement.from_config(config) == Refinement(6, 20.0, 50.0, 1.0, True)


def test_its_evaluation_is_in_the_report(old_run):
    _, state = chosen_checkpoint(old_run, "last")
    evaluation = {"step": state.step, "mean_iou": [0.5], "refinement": "early_stop"}
    evaluation["refine_with"] = "prediction"
    (old_run / "evaluation_prediction.json").write_text(json.dumps(evaluation))
    found = RunFiles.read(old_run, "last").evaluations
    assert found["predicted"]["refine"] == "propagation_early_stop"


def test_old_names_are_taken_with_a_warning():
    with pytest.warns(FutureWarning, match="iterations is called train_steps"):
        assert Config.for_dataset("camvid", iterations=3).train_steps == 3
    with pytest.warns(FutureWarning, match="flip is called random_flip"):
        assert not Config().replace(flip=False).random_flip
    with pytest.warns(FutureWarning, match="postprocess is called refine"):
        assert Config.for_dataset("camvid", postprocess="crf").refine == "crf"
