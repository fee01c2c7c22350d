"""Training through the propagation, and the settings learned there."""

import json

import keras
import pytest
from helpers.tiny import NUM_CLASSES, tiny_config, write_camvid

from dilated_affinity.affinity.statistics import AffinityStatistics
from dilated_affinity.errors import ConfigError
from dilated_affinity.inference.model import inference_model
from dilated_affinity.run_dir.checkpoints import Checkpoints
from dilated_affinity.run_dir.layout import CALIBRATION_FILE, CHECKPOINTS
from dilated_affinity.run_dir.load import load_run
from dilated_affinity.run_dir.model import build_model
from dilated_affinity.training.compile import add_objective, compile_model
from dilated_affinity.training.input_pipeline import training_dataset
from dilated_affinity.training.losses import SemanticLoss
from dilated_affinity.training.trainer import train

SETTINGS = {"rates": "4,(8,4)", "train_propagation": 2}


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    return write_camvid(tmp_path_factory.mktemp("camvid"))


@pytest.mark.parametrize("learned", [False, True])
def test_refined_loss_is_that_of_inference(camvid, learned):
    config = tiny_config(camvid, **SETTINGS, train_refinement=learned, dropout=0.0)
    images, targets = next(iter(training_dataset(config).take(1)))
    images = keras.ops.cast(keras.ops.round(images), "uint8")
    keras.utils.set_random_seed(1)
    statistics = AffinityStatistics.from_labels(targets["semantic"], config.affinity_rates)
    model = add_objective(build_model(config, NUM_CLASSES, statistics), config)
    head = model.get_layer("affinity_logits")
    head.kernel.assign(head.kernel * 30)
    fitted = compile_model(model, config, statistics)
    logs = fitted.evaluate(keras.ops.cast(images, "float32"), targets, return_dict=True, verbose=0)
    network = keras.Model(
        model.input, {name: model.output[name] for name in targets if name in model.output}
    )
    predict = inference_model(network, 2, refinement="propagation_decoder_stride")
    probabilities = predict(images)["probabilities"]
    expected = SemanticLoss()(targets["semantic"], keras.ops.log(probabilities))
    assert logs["refined_loss"] == pytest.approx(float(expected), rel=1e-4)
    assert logs["refined_loss"] != pytest.approx(logs["semantic_loss"], rel=1e-4)


@pytest.fixture(scope="module")
def run(camvid, tmp_path_factory):
    config = tiny_config(camvid, **SETTINGS, train_refinement=True, head_multiplier=20.0)
    folder = tmp_path_factory.mktemp("run")
    train(config, folder)
    return config, folder


def last_layer(folder):
    path = Checkpoints(folder / CHECKPOINTS).latest()
    return keras.models.load_model(path).get_layer("learned_propagation")


@pytest.mark.slow
def test_learned_settings_are_those_of_the_run(run):
    _, folder = run
    content = json.loads((folder / CALIBRATION_FILE).read_text())
    assert content["by"] == "training"
    learned = last_layer(folder).settings()
    assert learned != pytest.approx({"self_weight": 6.0, "mu": 7.0, "threshold": 0.0}, rel=1e-5)
    config, model = load_run(folder)
    assert content["settings"]["mu"] == config.mu != 7.0
    assert set(model.output) == {"semantic", "affinity"}
    assert load_run(folder, calibrated=False)[0].mu == 7.0


@pytest.mark.slow
def test_resumed_run_learns_the_same(run, tmp_path):
    config, folder = run
    train(config, tmp_path, stop_after=3)
    train(config, tmp_path)
    assert last_layer(tmp_path).settings() == last_layer(folder).settings()


@pytest.mark.slow
def test_calibration_starts_from_what_was_learned(run, camvid, tmp_path):
    config, folder = run
    train(config.replace(calibrate="training"), tmp_path)
    content = json.loads((tmp_path / CALIBRATION_FILE).read_text())
    learned = json.loads((folder / CALIBRATION_FILE).read_text())["settings"]
    assert content["by"] == "calibration" and content["given"] == learned


def test_settings_cannot_be_learned_without_propagation(camvid):
    with pytest.raises(ConfigError, match="train_refinement needs train_propagation"):
        tiny_config(camvid, train_refinement=True)
