"""Tests of the baselines in a run: batches, model and training with each `structure`."""

import keras
import numpy as np
import pytest
from helpers.tiny import NUM_CLASSES, tiny_config, write_camvid

from dilated_affinity.baselines.boundary import boundary_weights
from dilated_affinity.run_dir.checkpoints import Checkpoints
from dilated_affinity.run_dir.layout import CHECKPOINTS
from dilated_affinity.training.input_pipeline import training_dataset
from dilated_affinity.training.losses import SemanticLoss
from dilated_affinity.training.run_model import build_model, compile_model
from dilated_affinity.training.trainer import load_run, train


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    return write_camvid(tmp_path_factory.mktemp("camvid"))


def first_batch(config):
    return next(iter(training_dataset(config).take(1)))


def test_rates_of_each_structure(camvid):
    config = tiny_config(camvid)
    assert config.affinity_rates is not None
    for structure in ("none", "aaf", "boundary"):
        assert config.replace(structure=structure).affinity_rates is None


def test_images_and_labels_of_each_structure(camvid):
    config = tiny_config(camvid)
    images, targets = first_batch(config)
    for structure in ("none", "aaf", "boundary"):
        others = first_batch(config.replace(structure=structure))
        np.testing.assert_array_equal(others[0], images)
        np.testing.assert_array_equal(others[1]["semantic"], targets["semantic"])
        assert "affinity" not in others[1]
        if structure == "aaf":
            np.testing.assert_array_equal(others[1]["aaf"], targets["semantic"])


def test_boundary_weights_in_the_loss(camvid):
    settings = {"weight_decay": 0.0, "dropout": 0.0, "learning_rate": 0.0}
    config = tiny_config(
        camvid, structure="boundary", boundary_amplitude=4.0, boundary_sigma=3.0, **settings
    )
    images, targets, weights = first_batch(config)
    expected = boundary_weights(targets["semantic"], 4.0, 3.0, normalize=True)
    np.testing.assert_array_equal(weights["semantic"], expected)
    assert float(np.ptp(weights["semantic"])) > 0.5
    model = compile_model(build_model(config, NUM_CLASSES), config)
    doubled = {"semantic": 2.0 * weights["semantic"]}
    reported = model.train_on_batch(images, targets, doubled, return_dict=True)["loss"]
    logits = model(images, training=True)["semantic"]
    expected = SemanticLoss()(targets["semantic"], logits, doubled["semantic"])
    np.testing.assert_allclose(reported, expected, rtol=1e-4)
    assert reported > 1.5 * float(SemanticLoss()(targets["semantic"], logits))


def test_training_of_aaf_size_weights(camvid, tmp_path):
    config = tiny_config(camvid, structure="aaf", head_multiplier=10.0, train_steps=2)
    train(config, tmp_path)
    model = keras.models.load_model(Checkpoints(tmp_path / CHECKPOINTS).latest())
    layer = model.get_layer("aaf")
    assert np.abs(np.array(layer.edge)).max() > 0 and int(layer.passes) == 2
    multipliers = model.optimizer.multipliers
    assert multipliers and not any(path.startswith("aaf") for path in multipliers)
    assert "aaf_loss" in (tmp_path / "log.csv").read_text()
    _, best = load_run(tmp_path)
    assert best(np.zeros((1, 33, 33, 3), "float32"))["semantic"].shape[-1] == NUM_CLASSES


@pytest.mark.slow
@pytest.mark.parametrize("structure", ["aaf", "boundary", "none"])
def test_resumed_run_equals_uninterrupted_run(camvid, tmp_path, structure):
    config = tiny_config(camvid, structure=structure)
    train(config, tmp_path / "whole")
    train(config, tmp_path / "parts", stop_after=2)
    train(config, tmp_path / "parts")
    whole, parts = (
        keras.models.load_model(Checkpoints(tmp_path / run / CHECKPOINTS).latest())
        for run in ("whole", "parts")
    )
    for first, second in zip(
        (*whole.weights, *whole.optimizer.variables),
        (*parts.weights, *parts.optimizer.variables),
        strict=True,
    ):
        np.testing.assert_array_equal(first, second)
