"""Objectives in a run: what each changes in batches, model and training."""

import csv
import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.tiny import NUM_CLASSES, tiny_config, write_camvid

from dilated_affinity.baselines.boundary import boundary_weights
from dilated_affinity.config import OBJECTIVES, Config
from dilated_affinity.datasets.classes import CAMVID
from dilated_affinity.errors import ConfigError
from dilated_affinity.run_dir.checkpoints import Checkpoints
from dilated_affinity.run_dir.layout import BEST, CHECKPOINTS, LOG_FILE
from dilated_affinity.run_dir.load import load_run
from dilated_affinity.run_dir.model import build_model
from dilated_affinity.training.compile import add_objective, compile_model
from dilated_affinity.training.initial_model import InitialModel, load_initial_weights
from dilated_affinity.training.input_pipeline import training_dataset
from dilated_affinity.training.losses import SemanticLoss
from dilated_affinity.training.objectives import registry
from dilated_affinity.training.objectives.objective import Objective, TrainedOutput
from dilated_affinity.training.objectives.registry import _BUILT_IN, register_objective
from dilated_affinity.training.trainer import train


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    return write_camvid(tmp_path_factory.mktemp("camvid"))


def first_batch(config):
    return next(iter(training_dataset(config).take(1)))


def test_config_names_agree_with_entries():
    assert {name: each.predicts_affinity for name, each in _BUILT_IN.items()} == OBJECTIVES


def test_only_affinity_has_rates(camvid):
    config = tiny_config(camvid)
    assert config.affinity_rates is not None
    for objective in ("none", "aaf", "boundary"):
        assert config.replace(objective=objective).affinity_rates is None


def test_images_and_labels_do_not_depend_on_objective(camvid):
    config = tiny_config(camvid)
    images, targets = first_batch(config)
    for objective in ("none", "aaf", "boundary"):
        others = first_batch(config.replace(objective=objective))
        np.testing.assert_array_equal(others[0], images)
        np.testing.assert_array_equal(others[1]["semantic"], targets["semantic"])
        assert "affinity" not in others[1]
        if objective == "aaf":
            np.testing.assert_array_equal(others[1]["aaf"], targets["semantic"])


def test_boundary_weights_multiply_the_loss(camvid):
    settings = {"weight_decay": 0.0, "dropout": 0.0, "learning_rate": 0.0}
    config = tiny_config(
        camvid, objective="boundary", boundary_amplitude=4.0, boundary_sigma=3.0, **settings
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


def test_aaf_size_weights_are_trained(camvid, tmp_path):
    config = tiny_config(camvid, objective="aaf", head_multiplier=10.0, train_steps=2)
    train(config, tmp_path)
    model = keras.models.load_model(Checkpoints(tmp_path / CHECKPOINTS).latest())
    layer = model.get_layer("aaf")
    assert np.abs(np.array(layer.edge)).max() > 0 and int(layer.passes) == 2
    multipliers = model.optimizer.multipliers
    assert multipliers and not any(path.startswith("aaf") for path in multipliers)
    assert "aaf_loss" in (tmp_path / "log.csv").read_text()
    _, best = load_run(tmp_path)
    outputs = best(np.zeros((1, 33, 33, 3), "float32"))
    assert {name: each.shape[-1] for name, each in outputs.items()} == {"semantic": NUM_CLASSES}
    saved = keras.models.load_model(tmp_path / BEST, compile=False)
    for kernel in ("decoder_conv1", "semantic_logits"):
        first, second = (each.get_layer(kernel).kernel for each in (saved, best))
        np.testing.assert_array_equal(first, second)


class Brightness(Objective):
    """Predicts whether a class has a high number, with a layer of its own, and weighs pixels."""

    class_layers = ("high",)

    def targets(self, labels, config):
        return {"high": labels[..., None] // 6}

    def sample_weights(self, labels, config):
        ones = tf.ones(tf.shape(labels))
        return {"semantic": ones, "high": 0.5 * ones}

    def extra_outputs(self, model, config):
        layer = keras.layers.Conv2D(1, 1, activation="sigmoid", dtype="float32", name="high")
        return {"high": layer(model.output["semantic"])}

    def outputs(self, model, config, statistics=None, class_weights=None):
        return {"high": TrainedOutput(keras.losses.MeanSquaredError(), 0.25, ("mae",))}

    def multipliers(self, config):
        return {"high": 3.0}


@pytest.fixture
def brightness(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "brightness", False)  # taken out again after the test
    monkeypatch.setitem(registry._registered, "brightness", None)
    register_objective("brightness", Brightness())


def last_weights(model_dir):
    model = keras.models.load_model(Checkpoints(model_dir / CHECKPOINTS).latest())
    return model, [np.asarray(each) for each in (*model.weights, *model.optimizer.variables)]


@pytest.mark.slow
def test_registered_objective_is_trained_logged_and_resumed(camvid, tmp_path, brightness):
    settings = {"train_steps": 2, "validate_every": 2, "head_multiplier": 10.0}
    config = tiny_config(camvid, objective="brightness", **settings)
    train(config, tmp_path / "whole")
    train(config, tmp_path / "parts", stop_after=1)
    assert train(config, tmp_path / "parts").step == 2
    model, whole = last_weights(tmp_path / "whole")
    for first, second in zip(whole, last_weights(tmp_path / "parts")[1], strict=True):
        np.testing.assert_array_equal(first, second)
    logs = [(tmp_path / run / LOG_FILE).read_text() for run in ("whole", "parts")]
    assert logs[0] == logs[1]
    (row,) = csv.DictReader(logs[0].splitlines())
    assert float(row["high_loss"]) > 0 and float(row["high_mae"]) > 0
    assert model.optimizer.multipliers["high/kernel"] == 3.0
    assert model.optimizer.multipliers["semantic_logits/kernel"] == 10.0
    weights = first_batch(config)[2]
    assert (weights["semantic"].numpy() == 1).all() and (weights["high"].numpy() == 0.5).all()
    assert set(load_run(tmp_path / "whole")[1].output) == {"semantic"}


def test_sample_weights_must_cover_all_outputs(camvid, brightness, monkeypatch):
    weights = {"high": tf.ones((1,))}
    monkeypatch.setattr(Brightness, "sample_weights", lambda *_: weights)
    config = tiny_config(camvid, objective="brightness")
    model = add_objective(build_model(config, NUM_CLASSES), config)
    with pytest.raises(ConfigError, match="must be for each of semantic, high. Received: high"):
        compile_model(model, config)


def test_initial_model_of_other_classes(camvid, tmp_path, brightness):
    config = tiny_config(camvid, objective="brightness")
    sources = [add_objective(build_model(config, classes), config) for classes in (NUM_CLASSES, 5)]
    sources[1].save(tmp_path / "five.keras")
    names = tuple(f"class {index}" for index in range(5))
    table = dataclasses.replace(CAMVID, names=names, palette=CAMVID.palette[:5])
    before = np.array(sources[0].get_layer("high").kernel)
    initial = InitialModel(tmp_path / "five.keras", table.names, None)
    load_initial_weights(sources[0], initial, CAMVID)
    np.testing.assert_array_equal(sources[0].get_layer("high").kernel, before)
    for first, second in zip(
        *(each.get_layer("decoder_conv0").get_weights() for each in sources), strict=True
    ):
        np.testing.assert_array_equal(first, second)


def test_unknown_objective():
    with pytest.raises(ConfigError, match="objective must be .* Did you mean 'boundary'"):
        Config(objective="boundry")


@pytest.mark.parametrize("name, objective", [("aaf", Objective()), ("mine", Objective)])
def test_invalid_registration(name, objective):
    with pytest.raises(ConfigError, match="register_objective needs an Objective and a name other"):
        register_objective(name, objective)
    assert OBJECTIVES.get("mine") is None and not OBJECTIVES["aaf"]


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["aaf", "boundary", "none"])
def test_resume_is_exact(camvid, tmp_path, objective):
    config = tiny_config(camvid, objective=objective)
    train(config, tmp_path / "whole")
    train(config, tmp_path / "parts", stop_after=2)
    train(config, tmp_path / "parts")
    whole, parts = (last_weights(tmp_path / run)[1] for run in ("whole", "parts"))
    for first, second in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(first, second)
