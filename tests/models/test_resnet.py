"""Tests of DeepLabv3+ with ResNet-50: preprocessing, end points, saving."""

import keras
import numpy as np
import pytest

from dilated_affinity.models.deeplab import BACKBONES, DeepLabV3Plus
from dilated_affinity.models.resnet import CaffePreprocessing

RATES = ((1, 2),)


@pytest.fixture(scope="module")
def model():
    return DeepLabV3Plus(
        3, RATES, "resnet50", 16, weights=None, filters=8, multi_grid=(1, 2, 4), separable=False
    )


def images(*shape):
    return np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)


def test_preprocessing_equals_keras(model):
    batch = images(2, 5, 7)
    expected = keras.applications.resnet.preprocess_input(batch.astype(np.float32))
    layer = model.get_layer("preprocess")
    for each in (batch, batch.astype(np.float32)):
        np.testing.assert_allclose(layer(each), expected, atol=1e-4)


def test_preprocessing_under_mixed_precision():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        layers = [BACKBONES[name].preprocess() for name in ("resnet50", "resnet_v1_50_beta")]
    finally:
        keras.config.set_dtype_policy(before)
    batch = images(1, 5, 7)
    expected = keras.applications.resnet.preprocess_input(batch.astype(np.float32))
    np.testing.assert_allclose(layers[0](batch), expected, atol=1e-4)
    np.testing.assert_allclose(layers[1](batch), batch / 127.5 - 1, atol=1e-6)


def test_preprocessing_config_round_trip():
    layer = CaffePreprocessing(name="mine", dtype="float32")
    again = keras.layers.deserialize(keras.layers.serialize(layer))
    assert type(again) is CaffePreprocessing
    assert again.get_config() == layer.get_config()


@pytest.mark.parametrize("size", [(97, 131), (64, 50)], ids=str)
def test_outputs_of_resnet(model, size):
    low, high = model.get_layer("resnet50")(images(1, *size).astype(np.float32))
    assert tuple(low.shape) == (1, -(-size[0] // 4), -(-size[1] // 4), 256)
    assert tuple(high.shape) == (1, -(-size[0] // 16), -(-size[1] // 16), 2048)
    # The residual of a unit before its addition, and the last unit's output after its ReLU.
    assert np.min(low) < 0 == np.min(high)


def test_multi_grid_of_last_stage(model):
    backbone = model.get_layer("resnet50")
    found = [backbone.get_layer(f"conv5_block{unit}_2_conv").dilation_rate for unit in (1, 2, 3)]
    assert found == [(2, 2), (4, 4), (8, 8)]


@pytest.mark.parametrize("name", ["decoder_resize", "semantic", "affinity"])
def test_padding_of_resizes(model, name):
    assert model.get_layer(name).padding == "symmetric"


def test_saved_model_gives_the_same_logits(model, tmp_path):
    batch = images(1, 33, 50)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    for name, logits in model(batch).items():
        assert tuple(logits.shape[1:3]) == (33, 50)
        np.testing.assert_array_equal(again(batch)[name], logits)


@pytest.mark.slow
def test_default_backbone():
    model = DeepLabV3Plus(3, RATES, weights=None)
    backbone = model.get_layer("resnet101")
    assert backbone.get_layer("conv4_block23_2_conv").dilation_rate == (1, 1)
    assert backbone.get_layer("conv5_block3_2_conv").dilation_rate == (2, 2)
    assert tuple(model(images(1, 65, 97))["semantic"].shape) == (1, 65, 97, 3)
