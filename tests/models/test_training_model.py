"""Tests that fitting `training_model` is the same as fitting the given model."""

import keras
import numpy as np
import pytest
from helpers.tiny import NUM_CLASSES, tiny_config, write_camvid

import dilated_affinity as da
from dilated_affinity.errors import ConfigError

RATES = (2, 4)


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_fit_equals_fit_of_the_given_model(jit_compile):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, (4, 33, 41)).astype("uint8").repeat(2, 1)[:, :33]
    labels[:, :3] = 255
    images = rng.uniform(0, 255, (4, 33, 41, 3)).astype("float32")
    targets = {"semantic": labels, "affinity": np.asarray(da.affinity_targets(labels, RATES))}
    statistics = da.AffinityStatistics.from_labels(labels, RATES)
    whole = da.DeepLabV3Plus(5, RATES, "tiny", weights=None, filters=8, dropout=0.0)
    initial = whole.get_weights()
    fast, grid = da.training_model(whole)
    assert grid == {"logits_stride": 4, "padding": "same"}
    reached = {}
    for name, model, arguments in (("whole", whole, {}), ("fast", fast, grid)):
        whole.set_weights(initial)
        model.compile(
            keras.optimizers.SGD(0.1),
            loss={
                "semantic": da.SemanticLoss(),
                "affinity": da.AffinityLoss(statistics, **arguments),
            },
            loss_weights={"semantic": 1.0, "affinity": 6.0},
            metrics={"affinity": [da.AffinityAccuracy(RATES, **arguments)]},
            jit_compile=jit_compile,
        )
        history = model.fit(images, targets, batch_size=4, shuffle=False, verbose=0).history
        reached[name] = history, whole.get_weights()
    # The metric of the model to fit counts only the pixels at the positions of its logits.
    assert 0 < reached["fast"][0].pop("affinity_accuracy")[0] < 1
    del reached["whole"][0]["affinity_accuracy"]
    for name, (value,) in reached["whole"][0].items():
        assert reached["fast"][0][name][0] == pytest.approx(value, rel=1e-4), name
    moved = 0
    for first, second, start in zip(reached["whole"][1], reached["fast"][1], initial, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-5)
        moved += np.abs(first - start).max() > 1e-4
    assert moved > 10


def test_validation_on_images_of_unknown_size(tmp_path):
    config = tiny_config(write_camvid(tmp_path / "camvid"), train_steps=1, rates="2,4")
    train = da.training_dataset(config)
    labels = next(iter(train))[1]["semantic"].numpy()
    statistics = da.AffinityStatistics.from_labels(labels, RATES)
    model, grid = da.training_model(
        da.DeepLabV3Plus(NUM_CLASSES, RATES, "tiny", weights=None, filters=8)
    )
    model.compile(
        "sgd",
        loss={"semantic": da.SemanticLoss(), "affinity": da.AffinityLoss(statistics, **grid)},
        metrics={"affinity": [da.AffinityAccuracy(RATES, **grid)]},
        jit_compile=False,
    )
    validation = da.evaluation_dataset(config)
    history = model.fit(train, validation_data=validation, verbose=0).history
    images, targets = next(iter(validation.take(1)))
    assert validation.element_spec[0].shape[1] is None
    expected = da.AffinityLoss(statistics, **grid)(targets["affinity"], model(images)["affinity"])
    one = model.evaluate(validation.take(1), return_dict=True, verbose=0)
    assert one["affinity_loss"] == pytest.approx(float(expected), rel=1e-4)
    assert 0 < history["val_affinity_accuracy"][0] < 1


def test_training_model_without_affinity():
    plain = da.DeepLabV3Plus(5, None, "tiny", weights=None, filters=8)
    model, grid = da.training_model(plain)
    assert grid == {} and list(model.output) == ["semantic"]


def test_padding_of_training_model():
    model = da.DeepLabV3Plus(5, RATES, "resnet50", weights=None, filters=8)
    assert da.training_model(model)[1] == {"logits_stride": 4, "padding": "symmetric"}


def test_other_models_are_refused():
    images = keras.Input((8, 8, 3))
    model = keras.Model(images, {"affinity": keras.layers.Conv2D(8, 1, name="affinity")(images)})
    with pytest.raises(ConfigError, match="DeepLabV3Plus. Received: the model"):
        da.training_model(model)
