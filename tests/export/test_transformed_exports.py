"""Exports with batch norm folded and in mixed precision, against the Keras model as it is."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import networks
from helpers.exports import IMAGE, IMAGES, assert_agrees, small_model

from dilated_affinity.export import graph_transforms
from dilated_affinity.export.export import export_model
from dilated_affinity.inference.model import inference_model


@pytest.fixture(scope="module")
def model():
    return small_model(separable=False)


def with_batch_norm_at_work(model):
    """The model as it is, and batch norm with statistics other than 0 and 1."""
    copy = keras.models.clone_model(model, recursive=True)
    weights = networks.random_weights(copy)
    pairs = zip(model.weights, weights, strict=True)
    copy.set_weights([w if "bn" in v.path else v.numpy() for v, w in pairs])
    return copy


def batch_norms(model):
    return sum(
        batch_norms(layer)
        if isinstance(layer, keras.Model)
        else isinstance(layer, keras.layers.BatchNormalization)
        for layer in model.layers
    )


def test_batch_norm_folded(model, tmp_path):
    model = with_batch_norm_at_work(model)
    path = tmp_path / "model.keras"
    agreement = export_model(
        model, path, IMAGE, "keras", iterations=0, affinity=True, fold_batch_norm=True
    )
    assert agreement.labels == 0 and 0 < agreement.probabilities < 1e-4
    loaded = keras.models.load_model(path)
    assert batch_norms(model) > 10 and batch_norms(loaded) == 0
    received = {name: np.asarray(value) for name, value in loaded(IMAGES).items()}
    assert_agrees(received, inference_model(model, iterations=0)(IMAGES))


@pytest.mark.slow
def test_a_saved_model_folded_and_in_bfloat16(model, tmp_path):
    path = tmp_path / "model"
    export_model(model, path, IMAGE, mixed_precision="bfloat16", fold_batch_norm=True)
    received = tf.saved_model.load(path).serve(IMAGES)
    expected = inference_model(model)(IMAGES)
    assert np.mean(received["labels"] == expected["labels"]) > 0.95
    difference = np.abs(received["probabilities"] - expected["probabilities"])
    assert 1e-5 < difference.mean() < 0.02


def test_bfloat16(model, tmp_path):
    path = tmp_path / "model.keras"
    agreement = export_model(model, path, IMAGE, "keras", mixed_precision="bfloat16", iterations=0)
    assert 1e-5 < agreement.mean < 0.02 and agreement.mean < agreement.probabilities
    assert agreement.labels < 0.05 * agreement.pixels
    assert f"by {agreement.mean:.1e} on average" in str(agreement)
    whole = keras.models.load_model(path)
    (network,) = [layer for layer in whole.layers if isinstance(layer, keras.Model)]
    assert network.get_layer("decoder_conv1").compute_dtype == "bfloat16"
    assert network.get_layer("semantic_logits").compute_dtype == "float32"
    # Back in float32 nothing has been lost but what rounding lost while computing.
    restored = tmp_path / "restored.keras"
    mixed = graph_transforms.in_mixed_precision(model, "bfloat16")
    agreement = export_model(mixed, restored, IMAGE, "keras", mixed_precision="none", iterations=0)
    assert agreement.labels == 0
    received = keras.models.load_model(restored)(IMAGES)["probabilities"]
    expected = inference_model(model, iterations=0)(IMAGES)["probabilities"]
    np.testing.assert_allclose(received, expected, atol=1e-4)
