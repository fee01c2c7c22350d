"""Tests of the atrous backbones against `keras.applications`."""

import keras
import numpy as np
import pytest
from helpers.networks import SMALL, application, dilated, features_of, images, weights_of

from dilated_affinity.errors import ConfigError
from dilated_affinity.models.backbone import atrous

MOBILENET_WEIGHTS = "weights/mobilenet_v2_imagenet_notop.weights.h5"


@pytest.mark.parametrize("size", [(64, 96), (97, 131), (65, 100)], ids=str)
def test_mobilenet_at_output_stride_32(size):
    # Built for each size, on which the padding of this application depends.
    batch, weights = images(*size, batch=2), weights_of(SMALL)
    expected = features_of(application(SMALL, size), weights, batch)
    np.testing.assert_allclose(features_of(dilated(32), weights, batch), expected, atol=1e-4)


def test_even_sizes_match_the_mobilenet_of_any_size():
    batch, weights = images(64, 96), weights_of(SMALL)
    expected = features_of(application(), weights, batch)
    np.testing.assert_allclose(features_of(dilated(32), weights, batch), expected, atol=1e-4)


@pytest.mark.parametrize("size", [(64, 96), (97, 131), (66, 99)], ids=str)
@pytest.mark.parametrize("name", ["resnet50", pytest.param("resnet101", marks=pytest.mark.slow)])
def test_resnet_at_output_stride_32(name, size):
    batch, weights = images(*size), weights_of(name)
    expected = features_of(application(name), weights, batch)
    np.testing.assert_allclose(features_of(dilated(32, name), weights, batch), expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(224, 224), (97, 131)], ids=str)
def test_features_with_imagenet_weights(shared_file, size):
    model = application("mobilenet_v2", size)
    model.load_weights(shared_file(MOBILENET_WEIGHTS))
    batch = images(*size)
    ours = features_of(dilated(32, "mobilenet_v2"), model.get_weights(), batch)
    np.testing.assert_allclose(ours, model(batch, training=False), atol=1e-4)


@pytest.mark.parametrize("output_stride", [8, 16])
def test_subsampled_atrous_features(output_stride):
    batch, weights, step = images(225, 225), weights_of(SMALL), 32 // output_stride
    expected = features_of(dilated(32), weights, batch)
    finer = features_of(dilated(output_stride), weights, batch)
    assert finer.shape[1:3] == (225 // output_stride + 1,) * 2
    np.testing.assert_allclose(finer[:, ::step, ::step], expected, atol=1e-4)


@pytest.mark.parametrize("output_stride", [8, 16])
def test_atrous_features_of_an_even_size(output_stride):
    """Levels of even size are sampled at odd positions, as with "same" padding."""
    batch, weights, step = images(128, 128), weights_of(SMALL), 32 // output_stride
    expected = features_of(dilated(32), weights, batch)
    finer = features_of(dilated(output_stride), weights, batch)
    np.testing.assert_allclose(finer[:, step - 1 :: step, step - 1 :: step], expected, atol=1e-4)


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("size", [(97, 131), (128, 66)], ids=str)
@pytest.mark.parametrize(
    "name, multi_grid",
    [
        ("resnet50", None),
        ("resnet_v1_50_beta", None),
        pytest.param("resnet50", (1, 2, 4), marks=pytest.mark.slow),
        pytest.param("resnet101", None, marks=pytest.mark.slow),
        pytest.param("resnet_v1_101_beta", (1, 2, 4), marks=pytest.mark.slow),
    ],
)
def test_atrous_features_of_symmetric_padding(name, multi_grid, size, output_stride):
    """They agree up to the border at even and odd sizes, without a shift."""
    batch, weights, step = images(*size), weights_of(name), 32 // output_stride
    expected = features_of(dilated(32, name, multi_grid=multi_grid), weights, batch)
    finer = features_of(dilated(output_stride, name, multi_grid=multi_grid), weights, batch)
    assert finer.shape[1:3] == tuple(-(-side // output_stride) for side in size)
    np.testing.assert_allclose(finer[:, ::step, ::step], expected, atol=1e-4)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("size", [(97, 131), (64, 33)], ids=str)
def test_feature_sizes_round_up(output_stride, size):
    shape = dilated(output_stride)(images(*size, batch=3)).shape
    assert tuple(shape) == (3, *(-(-side // output_stride) for side in size), 1280)


# Without biases, with a stem of three convolutions, and two convolutions with 128 input channels.
BETA = -(7 * 7 * 3 * 64 + 4 * 64) + 9 * (3 * 64 + 64 * 64 + 64 * 128) + 4 * 256
BETA += 64 * (64 + 256)


@pytest.mark.parametrize(
    "name, count",
    [
        ("mobilenet_v2", 2_257_984),
        (SMALL, 410_208),
        ("resnet50", 23_587_712),
        pytest.param("resnet101", 42_658_176, marks=pytest.mark.slow),
        ("resnet_v1_50_beta", 23_587_712 - 26_560 + BETA),
        pytest.param("resnet_v1_101_beta", 42_658_176 - 52_672 + BETA, marks=pytest.mark.slow),
    ],
)
def test_number_of_parameters(name, count):
    assert dilated(8, name).count_params() == count


def test_weights_files_are_interchangeable(tmp_path):
    ours, theirs, weights = dilated(8), application(), weights_of(SMALL)
    ours.set_weights(weights)
    ours.save_weights(tmp_path / "ours.weights.h5")
    theirs.load_weights(tmp_path / "ours.weights.h5")
    for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    back = dilated(16)
    theirs.save_weights(tmp_path / "theirs.weights.h5")
    back.load_weights(tmp_path / "theirs.weights.h5")
    for one, other in zip(back.get_weights(), weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_unknown_choices_are_refused():
    with pytest.raises(ConfigError, match="output_stride"):
        dilated(4)
    with pytest.raises(ConfigError, match="batch_norm"):
        dilated(16, batch_norm="none")
    with pytest.raises(ConfigError, match="padding"):
        atrous(application(), "valid")


# Dilation.


def dilations(name, output_stride, multi_grid=None):
    """Dilation and stride of the spatial convolutions, by name, where either is not 1."""
    network = dilated(output_stride, name, multi_grid=multi_grid)
    return {
        layer.name: (layer.dilation_rate[0], layer.strides[0])
        for layer in network.layers
        if getattr(layer, "kernel_size", (1, 1)) != (1, 1)
        and (layer.dilation_rate[0], layer.strides[0]) != (1, 1)
    }


def test_dilation_of_resnet_stages():
    expected = {"conv1_conv": (1, 2)}
    expected |= {f"conv4_block{unit}_2_conv": (2, 1) for unit in range(1, 7)}
    expected |= {f"conv5_block{unit}_2_conv": (4, 1) for unit in range(1, 4)}
    assert dilations("resnet50", 8) == expected


def test_dilation_of_unit_without_its_stride():
    expected = {"conv1_1": (1, 2), "block1_unit_3_conv2": (1, 2)}
    expected |= {f"block3_unit_{unit}_conv2": (2, 1) for unit in range(1, 7)}
    expected |= {f"block4_unit_{unit}_conv2": (4, 1) for unit in range(1, 4)}
    assert dilations("resnet_v1_50_beta", 8) == expected


@pytest.mark.parametrize(
    "name, unit, first, output_stride",
    [
        (SMALL, "block_{}_depthwise", 14, 8),
        (SMALL, "block_{}_depthwise", 14, 32),
        ("resnet50", "conv5_block{}_2_conv", 1, 8),
    ],
)
def test_multi_grid_multiplies_the_dilation_of_the_last_stage(name, unit, first, output_stride):
    plain, multiplied = dilations(name, output_stride), dilations(name, output_stride, (1, 2, 4))
    expected = dict(plain)
    for index, factor in enumerate((1, 2, 4)):
        layer, dilation = unit.format(first + index), 32 // output_stride * factor
        assert plain.get(layer, (1, 1)) == (32 // output_stride, 1)
        if dilation > 1:
            expected[layer] = (dilation, 1)
    assert multiplied == expected != plain


@pytest.mark.parametrize("multi_grid", [(), (1, 2), (1, 2, 4, 8), (1, 0, 4), (1, 2.0, 4), 4, "124"])
def test_invalid_multi_grid_is_refused(multi_grid):
    with pytest.raises(ConfigError, match=r"multi_grid must be 3 .*Received: multi_grid="):
        dilated(16, multi_grid=multi_grid)


# Settings.


@pytest.mark.parametrize(
    "name, convolutions", [(SMALL, 35), pytest.param("resnet50", 53, marks=pytest.mark.slow)]
)
def test_weight_decay_of_backbone(name, convolutions):
    network = dilated(16, name, weight_decay=1e-4)
    expected, kernels = 0.0, 0
    for layer in network.layers:
        if type(layer) is keras.layers.Conv2D:
            expected += 0.5 * 1e-4 * float(np.sum(np.square(layer.kernel)))
            kernels += 1
    assert kernels == convolutions == len(network.losses)
    np.testing.assert_allclose(sum(map(float, network.losses)), expected, rtol=1e-5)


@pytest.mark.parametrize("batch_norm", ["sync", "local"])
def test_batch_norm_variance_with_large_mean(batch_norm):
    """With mean 1000 and deviation 1, E[x^2] - E[x]^2 in float32 has less than one digit."""
    norm = next(
        layer
        for layer in dilated(16, batch_norm=batch_norm, batch_norm_momentum=0.0).layers
        if isinstance(layer, keras.layers.BatchNormalization)
    )
    channels = norm.gamma.shape[0]
    features = np.random.default_rng(0).normal(1000, 1, (2, 33, 33, channels)).astype(np.float32)
    normalized = norm(features, training=True)
    expected = np.var(features.astype(np.float64), axis=(0, 1, 2))
    np.testing.assert_allclose(norm.moving_variance, expected, rtol=1e-3)
    np.testing.assert_allclose(np.std(normalized, axis=(0, 1, 2)), 1, rtol=2e-3)


@pytest.mark.parametrize("batch_norm", ["sync", "local", "frozen"])
def test_batch_norm_settings(batch_norm):
    norms = [
        layer
        for layer in dilated(16, batch_norm=batch_norm, batch_norm_momentum=0.9).layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    assert len(norms) == 52
    for norm in norms:
        assert norm.momentum == 0.9
        # On one replica; tests/runtime/test_distribution.py tests several.
        assert norm.synchronized is False
        assert norm.trainable == (batch_norm != "frozen")
