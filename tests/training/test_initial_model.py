"""A run that starts from the weights of another."""

import keras
import numpy as np
import pytest
from helpers.tiny import NUM_CLASSES, tiny_config, write_camvid

from dilated_affinity.datasets.classes import CAMVID, ClassTable
from dilated_affinity.errors import ConfigError, DataError
from dilated_affinity.export.export import export_model
from dilated_affinity.run_dir.checkpoints import (
    Checkpoints,
    TrainingState,
    read_state,
    write_checkpoint,
)
from dilated_affinity.run_dir.layout import BEST, CHECKPOINTS, save_settings
from dilated_affinity.run_dir.model import build_model
from dilated_affinity.training.compile import add_objective
from dilated_affinity.training.initial_model import (
    InitialModel,
    find_initial_model,
    load_initial_weights,
)
from dilated_affinity.training.trainer import train

OTHER_CLASSES = ClassTable(tuple(f"thing {i}" for i in range(11)), CAMVID.palette)


@pytest.fixture(autouse=True)
def _logged(caplog):
    caplog.set_level("INFO", "absl")


def write_source(folder, classes=CAMVID, **settings):
    """A run whose weights are numbers of their own; returns its model."""
    config = tiny_config("nowhere", **settings)
    save_settings(folder, config, classes)
    model = add_objective(build_model(config, classes.num_classes), config)
    rng = np.random.default_rng(3)
    model.set_weights([rng.normal(size=each.shape) for each in model.get_weights()])
    write_checkpoint(folder / BEST, model, TrainingState())
    return model


def loaded(initial_model, classes=CAMVID, **settings):
    """Weights by layer of a fresh model, before and after it is given those of another."""
    keras.utils.set_random_seed(1)
    config = tiny_config("nowhere", **settings)
    model = add_objective(build_model(config, classes.num_classes), config)
    fresh = by_layer(model)
    load_initial_weights(model, find_initial_model(str(initial_model)), classes)
    return fresh, by_layer(model)


def by_layer(model):
    return {layer.name: layer.get_weights() for layer in model.layers if layer.weights}


def same(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def assert_from(source, result, left_out=()):
    """All but some layers have the source's weights, and these the fresh ones."""
    fresh, received = result
    theirs = by_layer(source)
    assert len(received) >= 20 and set(left_out) <= set(received)
    for name, weights in received.items():
        expected = fresh[name] if name in left_out else theirs[name]
        assert same(weights, expected), name


def test_all_weights_from_run_or_file(tmp_path, caplog):
    source = write_source(tmp_path / "run")
    for path in ("plain.weights.h5", "plain.keras"):
        (source.save_weights if path.endswith("h5") else source.save)(tmp_path / path)
        assert_from(source, loaded(tmp_path / path))
    assert_from(source, loaded(tmp_path / "run"))
    assert_from(source, loaded(tmp_path / "run" / BEST))
    assert "initial weights from" in caplog.text and "left out" not in caplog.text


@pytest.mark.parametrize(
    ("source", "target", "left_out", "words"),
    [
        ({"rates": "4"}, {"rates": "2"}, ("affinity_logits",), "its rates are 4, here 2"),
        ({"rates": "none"}, {"rates": "2"}, ("affinity_logits",), "its rates are none, here 2"),
        ({"rates": "2"}, {"rates": "none"}, (), "its rates are 2, this run has no affinity"),
        ({"rates": "none"}, {"rates": "none"}, (), ""),
        (
            {"classes": OTHER_CLASSES, "rates": "2"},
            {"rates": "2"},
            ("semantic_logits",),
            "its 11 classes are others",
        ),
        ({"rates": "2"}, {"objective": "aaf"}, ("aaf",), "aaf (of another shape)"),
    ],
)
def test_heads_of_other_classes_or_rates_are_left_out(
    tmp_path, caplog, source, target, left_out, words
):
    """Though they may have the same shape."""
    model = write_source(tmp_path / "run", **source)
    assert_from(model, loaded(tmp_path / "run", **target), left_out)
    assert words in caplog.text and ("left out" in caplog.text) == bool(words)


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_files_outside_of_runs(tmp_path, suffix):
    source = build_model(tiny_config("nowhere", rates="4"), 5)
    path = tmp_path / f"model{suffix}"
    (source.save if suffix == ".keras" else source.save_weights)(path)
    left_out = ("semantic_logits", "affinity_logits")[: 2 if suffix == ".keras" else 1]
    assert_from(source, loaded(path, rates="2"), left_out)


def test_newest_checkpoint_without_validation(tmp_path):
    source = write_source(tmp_path / "run")
    (tmp_path / "run" / BEST).rename(tmp_path / "run" / CHECKPOINTS / "step-00000003.keras")
    assert_from(source, loaded(tmp_path / "run"))


def test_other_networks_are_refused(tmp_path):
    write_source(tmp_path / "run", filters=8)
    model = build_model(tiny_config("nowhere"), NUM_CLASSES)
    before = model.get_weights()
    with pytest.raises(DataError, match="best.keras: initial_model: the weights of another netw"):
        load_initial_weights(model, find_initial_model(str(tmp_path / "run")), CAMVID)
    assert same(model.get_weights(), before)


def test_an_export_is_refused(tmp_path):
    network = build_model(tiny_config("nowhere"), NUM_CLASSES)
    export_model(network, tmp_path / "export.keras", np.zeros((33, 33, 3), "uint8"), "keras")
    with pytest.raises(DataError, match="export.keras: initial_model: .* no export of export_main"):
        loaded(tmp_path / "export.keras")


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("model.h5", b"", ConfigError, "a .keras or .weights.h5 file. Received"),
        ("none.keras", None, DataError, "none.keras: initial_model: no such file"),
        ("m.keras", b"x", DataError, "m.keras: initial_model: not a Keras model"),
        ("m.weights.h5", b"x", DataError, "m.weights.h5: initial_model: cannot be read"),
        (".", None, DataError, "initial_model: no run here"),
    ],
)
def test_invalid_files(tmp_path, name, content, error, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        loaded(tmp_path / name)


def test_json_round_trip():
    for rates in (..., None, ((2, 2), (2, 4), (4, 2))):
        initial = InitialModel(BEST, ("a", "b"), rates)
        assert InitialModel.from_json(initial.to_json()) == initial


@pytest.mark.slow
def test_resume_does_not_need_initial_model(tmp_path):
    data = write_camvid(tmp_path / "camvid")
    source = write_source(tmp_path / "first")
    initial = str(tmp_path / "first")
    settings = {"learning_rate": 0.0, "train_steps": 2, "validate_every": 2}
    config = tiny_config(data, initial_model=initial, **settings)
    assert train(config, tmp_path / "second", stop_after=1).step == 1
    (path,) = Checkpoints(tmp_path / "second" / CHECKPOINTS).paths()
    model = keras.models.load_model(path, compile=False)
    for variable, expected in zip(model.trainable_weights, source.trainable_weights, strict=True):
        np.testing.assert_array_equal(variable, expected)
    assert read_state(path).step == 1
    (tmp_path / "first" / BEST).unlink()
    assert train(config, tmp_path / "second").step == 2
