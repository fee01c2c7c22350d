"""The atrous MobileNetV2 against `keras.applications`, and its weights."""

import dataclasses
import functools

import keras
import numpy as np
import pytest

from dilated_affinity.errors import ConfigError, DataError
from dilated_affinity.models import deeplab
from dilated_affinity.models.backbone import atrous
from dilated_affinity.models.deeplab import DeepLabV3Plus

SMALL = "mobilenet_v2_0.35"
WEIGHTS = "weights/mobilenet_v2_imagenet_notop.weights.h5"


# Networks are built once: every test that reads one sets its weights first.


@functools.cache
def application(alpha=0.35, size=(None, None)):
    return keras.applications.MobileNetV2(
        input_shape=(*size, 3), include_top=False, alpha=alpha, weights=None
    )


@functools.cache
def dilated(output_stride, name=SMALL, **options):
    entry = deeplab.BACKBONES[name]
    network = entry.application(weights=None, input_shape=(None, None, 3))
    return atrous(network, entry.strided, output_stride, **options)


def random_weights(model, seed=0):
    """Weights under which features neither die nor explode, batch statistics included."""
    rng = np.random.default_rng(seed)
    weights = []
    for variable in model.weights:
        shape = tuple(variable.shape)
        if variable.name == "moving_variance":
            weights.append(rng.uniform(0.5, 1.5, shape))
        elif variable.name == "gamma":
            weights.append(rng.uniform(0.8, 1.6, shape))
        elif variable.name in ("beta", "moving_mean"):
            weights.append(rng.normal(0, 0.3, shape))
        else:
            taps = 9 if "depthwise" in variable.path else np.prod(shape[:-1])
            weights.append(rng.normal(0, (1.5 / taps) ** 0.5, shape))
    return weights


@pytest.fixture(scope="module")
def weights():
    return random_weights(application())


def features_of(model, weights, images):
    model.set_weights(weights)
    features = np.asarray(model(images, training=False))
    assert 0.05 < features.std() < 10
    return features


def images(*size, batch=1):
    return np.random.default_rng(1).uniform(-1, 1, (batch, *size, 3)).astype(np.float32)


@pytest.mark.parametrize("size", [(64, 96), (97, 131), (65, 100)], ids=str)
def test_output_stride_32_is_the_application(weights, size):
    batch = images(*size, batch=2)
    expected = features_of(application(size=size), weights, batch)
    np.testing.assert_allclose(features_of(dilated(32), weights, batch), expected, atol=1e-4)


def test_even_sizes_match_the_application_of_any_size(weights):
    batch = images(64, 96)
    expected = features_of(application(), weights, batch)
    np.testing.assert_allclose(features_of(dilated(32), weights, batch), expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(224, 224), (97, 131)], ids=str)
def test_imagenet_weights_give_the_features_of_the_application(shared_file, size):
    model = application(alpha=1.0, size=size)
    model.load_weights(shared_file(WEIGHTS))
    batch = images(*size)
    ours = features_of(dilated(32, "mobilenet_v2"), model.get_weights(), batch)
    np.testing.assert_allclose(ours, model(batch, training=False), atol=1e-4)


@pytest.mark.parametrize("output_stride", [8, 16])
def test_atrous_features_subsampled_are_those_of_stride_32(weights, output_stride):
    batch, step = images(225, 225), 32 // output_stride
    expected = features_of(dilated(32), weights, batch)
    finer = features_of(dilated(output_stride), weights, batch)
    assert finer.shape[1:3] == (225 // output_stride + 1,) * 2
    np.testing.assert_allclose(finer[:, ::step, ::step], expected, atol=1e-4)


@pytest.mark.parametrize("output_stride", [8, 16])
def test_atrous_features_of_an_even_size(weights, output_stride):
    """Every even level is sampled at its odd positions, as "same" padding does."""
    batch, step = images(128, 128), 32 // output_stride
    expected = features_of(dilated(32), weights, batch)
    finer = features_of(dilated(output_stride), weights, batch)
    np.testing.assert_allclose(finer[:, step - 1 :: step, step - 1 :: step], expected, atol=1e-4)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("size", [(97, 131), (64, 33)], ids=str)
def test_feature_sizes_round_up(output_stride, size):
    shape = dilated(output_stride)(images(*size, batch=3)).shape
    assert tuple(shape) == (3, *(-(-side // output_stride) for side in size), 1280)


@pytest.mark.parametrize("name, count", [("mobilenet_v2", 2_257_984), (SMALL, 410_208)])
def test_parameters_are_those_of_the_paper_network(name, count):
    assert dilated(8, name).count_params() == count


def test_weights_files_go_both_ways(weights, tmp_path):
    ours, theirs = dilated(8), application()
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


def small_model(**options):
    return DeepLabV3Plus(3, ((1, 1),), SMALL, filters=8, **options)


def assert_backbone_has_weights_of(model, network):
    backbone = model.get_layer(SMALL)
    layers = [layer for layer in backbone.layers if layer.weights]
    assert len(layers) > 90
    for layer in layers:
        theirs = network.get_layer(layer.name).get_weights()
        for one, other in zip(layer.get_weights(), theirs, strict=True):
            np.testing.assert_array_equal(one, other)


def test_model_reads_a_weights_file_of_the_application(weights, tmp_path):
    network = application()
    network.set_weights(weights)
    path = tmp_path / "backbone.weights.h5"
    network.save_weights(path)
    assert_backbone_has_weights_of(small_model(weights=path), network)


def replace_application(monkeypatch, imagenet):
    entry = deeplab.BACKBONES[SMALL]

    def build(weights, **options):
        return imagenet(**options) if weights else entry.application(weights=None, **options)

    monkeypatch.setitem(deeplab.BACKBONES, SMALL, dataclasses.replace(entry, application=build))


def test_imagenet_asks_the_application(monkeypatch, weights):
    network = application()
    network.set_weights(weights)
    replace_application(monkeypatch, lambda **_: network)
    assert_backbone_has_weights_of(small_model(weights="imagenet"), network)


def test_imagenet_without_network_says_what_to_do(monkeypatch):
    def offline(**_):
        raise Exception("URL fetch failure: no route\nto host")

    replace_application(monkeypatch, offline)
    with pytest.raises(DataError, match=r"\.weights\.h5.*URL fetch failure") as caught:
        small_model(weights="imagenet")
    assert "\n" not in str(caught.value)


def test_a_missing_weights_file_is_named(tmp_path):
    with pytest.raises(DataError, match="none.weights.h5"):
        small_model(weights=tmp_path / "none.weights.h5")


@pytest.mark.parametrize("content", [b"", b"not hdf5"])
def test_a_damaged_weights_file_is_named(tmp_path, content):
    path = tmp_path / "damaged.weights.h5"
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged.weights.h5"):
        small_model(weights=path)


def test_a_truncated_weights_file_is_named(tmp_path):
    path = tmp_path / "whole.weights.h5"
    application().save_weights(path)
    cut = tmp_path / "cut.weights.h5"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="cut.weights.h5"):
        small_model(weights=cut)


def other_network(kind):
    if kind == "another width":
        return application(alpha=0.5)
    if kind == "a part of the network":
        network = application()
        return keras.Model(network.input, network.get_layer("block_15_add").output)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])


@pytest.mark.filterwarnings("ignore:Skipping nested container")
@pytest.mark.parametrize("kind", ["another width", "another network", "a part of the network"])
def test_weights_of_another_network_are_refused(tmp_path, kind):
    path = tmp_path / "other.weights.h5"
    other_network(kind).save_weights(path)
    with pytest.raises(DataError, match="other.weights.h5") as caught:
        small_model(weights=path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("weights", ["model.keras", "Imagenet", ""])
def test_weights_of_another_kind_are_refused(weights):
    with pytest.raises(ConfigError, match="weights"):
        small_model(weights=weights)


def test_unknown_choices_are_refused():
    with pytest.raises(ConfigError, match="output_stride"):
        dilated(4)
    with pytest.raises(ConfigError, match="batch_norm"):
        dilated(16, batch_norm="none")


def test_weight_decay_is_on_kernels_of_ordinary_convolutions_only():
    network = dilated(16, weight_decay=1e-4)
    expected, kernels = 0.0, 0
    for layer in network.layers:
        if type(layer) is keras.layers.Conv2D:
            expected += 0.5 * 1e-4 * float(np.sum(np.square(layer.kernel)))
            kernels += 1
    assert kernels == 35 == len(network.losses)
    np.testing.assert_allclose(sum(map(float, network.losses)), expected, rtol=1e-5)


@pytest.mark.parametrize("batch_norm", ["sync", "local", "frozen"])
def test_batch_norm_settings_reach_every_layer(batch_norm):
    norms = [
        layer
        for layer in dilated(16, batch_norm=batch_norm, batch_norm_momentum=0.9).layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    assert len(norms) == 52
    for norm in norms:
        assert norm.momentum == 0.9
        assert norm.synchronized == (batch_norm == "sync")
        assert norm.trainable == (batch_norm != "frozen")
