"""Networks rewritten for inference: batch norm folded away, computation in bfloat16."""

import keras
import numpy as np
import pytest
from helpers import (
    networks,
    tiny,  # noqa: F401 - the backbone "tiny"
)
from keras import layers

from dilated_affinity.errors import ConfigError
from dilated_affinity.export.graph_transforms import fold_batch_norm, in_mixed_precision
from dilated_affinity.inference.model import inference_model
from dilated_affinity.models.deeplab import DeepLabV3Plus

RATES = ((4, 8),)


def all_layers(model):
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from all_layers(layer)
        else:
            yield layer


def batch_norms(model):
    return sum(isinstance(layer, layers.BatchNormalization) for layer in all_layers(model))


def build(backbone="tiny", rates=RATES, **options):
    model = DeepLabV3Plus(5, rates, backbone, weights=None, filters=16, **options)
    model.set_weights(networks.random_weights(model))
    return model


def images(*shape):
    return np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype("float32")


def assert_same(received, expected):
    assert set(received) == set(expected)
    for name, logits in expected.items():
        assert np.std(logits) > 0.1
        atol = 1e-4 * max(1.0, np.std(logits))
        np.testing.assert_allclose(received[name], logits, rtol=0, atol=atol)


# Folding whole networks.


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("tiny", {"separable": False}),
        ("mobilenet_v2_0.35", {"batch_norm": "frozen"}),
        pytest.param("resnet50", {"batch_norm": "local"}, marks=pytest.mark.slow),
        pytest.param("resnet101", {"output_stride": 8}, marks=pytest.mark.slow),
        pytest.param("resnet_v1_50_beta", {}, marks=pytest.mark.slow),
    ],
)
def test_all_batch_norm_is_folded_with_equal_logits(backbone, options):
    model = build(backbone, **options)
    folded = fold_batch_norm(model)
    assert batch_norms(model) > 10 and batch_norms(folded) == 0
    batch = images(2, 65, 49)
    assert_same(folded(batch), model(batch))


def test_a_folded_model_keeps_names_and_can_be_saved(tmp_path):
    model = build()
    folded = fold_batch_norm(model)
    assert folded.name == model.name and folded.output_names == model.output_names
    names = [[layer.name for layer in all_layers(each)] for each in (model, folded)]
    assert names[0] == names[1]
    folded.save(tmp_path / "folded.keras")
    loaded = keras.models.load_model(tmp_path / "folded.keras")
    assert batch_norms(loaded) == 0
    batch = images(1, 40, 50)
    assert_same(loaded(batch), model(batch))


def test_a_folded_model_has_its_own_weights():
    model = build()
    folded = fold_batch_norm(model)
    batch = images(1, 40, 50)
    before = {name: np.asarray(logits) for name, logits in folded(batch).items()}
    model.set_weights([weight + 1 for weight in model.get_weights()])
    assert_same(folded(batch), before)


def test_folding_a_compiled_model_gives_an_uncompiled_one():
    model = build()
    model.compile("sgd", {"semantic": "mse", "affinity": "mse"})
    assert not fold_batch_norm(model).compiled


def test_folding_with_propagation_inside_or_outside():
    model = build(propagation_iterations=2)
    folded = fold_batch_norm(model)
    batch = images(1, 40, 50)
    assert_same(folded(batch), model(batch))
    whole = inference_model(model, iterations=2)
    around = fold_batch_norm(whole)
    assert batch_norms(around) == 0
    batch = batch.astype("uint8")
    np.testing.assert_allclose(
        around(batch)["probabilities"], whole(batch)["probabilities"], atol=1e-4
    )


# Folding single layers.


def normalized(features, **options):
    return layers.BatchNormalization(epsilon=0.5, name="batch_norm", **options)(features)


def small(build, channels=4):
    inputs = keras.Input((None, None, channels))
    model = keras.Model(inputs, build(inputs))
    model.set_weights(networks.random_weights(model))
    return model


def assert_folds(model, left):
    folded = fold_batch_norm(model)
    assert batch_norms(folded) == left
    batch = np.random.default_rng(1).normal(size=(2, 9, 7, 4)).astype("float32")
    for received, expected in zip(
        keras.tree.flatten(folded(batch)), keras.tree.flatten(model(batch)), strict=True
    ):
        np.testing.assert_allclose(received, expected, atol=1e-5)


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize(
    "convolution",
    [
        lambda use_bias: layers.Conv2D(6, 3, dilation_rate=2, use_bias=use_bias),
        lambda use_bias: layers.Conv2D(6, 3, groups=2, strides=2, use_bias=use_bias),
        lambda use_bias: layers.DepthwiseConv2D(3, depth_multiplier=3, use_bias=use_bias),
        lambda use_bias: layers.SeparableConv2D(6, 3, padding="same", use_bias=use_bias),
    ],
    ids=["dilated", "grouped", "depthwise", "separable"],
)
def test_convolutions(convolution, use_bias):
    assert_folds(small(lambda inputs: normalized(convolution(use_bias)(inputs))), left=0)


@pytest.mark.parametrize("options", [{"center": False}, {"scale": False}], ids=str)
def test_batch_norm_without_a_parameter(options):
    assert_folds(small(lambda inputs: normalized(layers.Conv2D(6, 3)(inputs), **options)), left=0)


def activated(inputs):
    return normalized(layers.Conv2D(4, 3, activation="relu")(inputs))


def behind_an_activation(inputs):
    return normalized(layers.ReLU()(layers.Conv2D(4, 3)(inputs)))


def behind_an_operation(inputs):
    return normalized(keras.ops.abs(layers.Conv2D(4, 3)(inputs)))


def read_by_another(inputs):
    features = layers.Conv2D(4, 3)(inputs)
    return layers.Add()([features, normalized(features)])


def read_by_an_operation(inputs):
    features = layers.Conv2D(4, 3)(inputs)
    return keras.ops.add(features, normalized(features))


def an_output(inputs):
    features = layers.Conv2D(4, 3)(inputs)
    return {"features": features, "normalized": normalized(features)}


def a_shared_convolution(inputs):
    convolution = layers.Conv2D(4, 3, padding="same")
    return convolution(normalized(convolution(inputs)))


def a_shared_batch_norm(inputs):
    batch_norm = layers.BatchNormalization(epsilon=0.5)
    return batch_norm(layers.Conv2D(4, 1)(batch_norm(layers.Conv2D(4, 1)(inputs))))


def over_another_axis(inputs):
    inputs = layers.Conv2D(9, 1)(layers.Resizing(7, 9)(inputs))
    return normalized(inputs, axis=2)


class Halved(layers.Conv2D):
    def call(self, inputs):
        return super().call(inputs) ** 2


def of_a_subclass(inputs):
    return normalized(Halved(4, 3)(inputs))


def alone(inputs):
    return normalized(inputs)


@pytest.mark.parametrize(
    "build",
    [
        activated,
        behind_an_activation,
        behind_an_operation,
        read_by_another,
        read_by_an_operation,
        an_output,
        a_shared_convolution,
        a_shared_batch_norm,
        over_another_axis,
        of_a_subclass,
        alone,
    ],
)
def test_other_batch_norm_is_kept(build):
    assert_folds(small(build), left=1)


# Mixed precision.


@pytest.mark.parametrize("mixed_precision", ["bfloat16", "float16"])
def test_only_the_network_computes_in_mixed_precision(mixed_precision):
    model = build()
    mixed = in_mixed_precision(model, mixed_precision)
    computed = {
        layer.name: layer.compute_dtype
        for layer in all_layers(mixed)
        if not isinstance(layer, layers.InputLayer)
    }
    (preprocessing,) = [name for name in computed if name.startswith("rescaling")]
    for name in (preprocessing, "semantic_logits", "affinity_logits", "semantic", "affinity"):
        assert computed.pop(name) == "float32"
    assert {"conv0", "bn0", "aspp_conv1x1", "decoder_conv1"} < set(computed)
    assert set(computed.values()) == {mixed_precision}
    for received, expected in zip(mixed.get_weights(), model.get_weights(), strict=True):
        assert received.dtype == expected.dtype == np.float32
        np.testing.assert_array_equal(received, expected)


def test_bfloat16_rounds_and_float32_does_not():
    model = build()
    batch = images(1, 65, 49)
    expected = {name: np.asarray(logits) for name, logits in model(batch).items()}
    mixed = in_mixed_precision(model, "bfloat16")
    for name, logits in mixed(batch).items():
        assert logits.dtype == "float32"
        difference = np.abs(logits - expected[name]).mean() / np.std(expected[name])
        assert 1e-4 < difference < 0.05
    restored = in_mixed_precision(mixed, "none")
    assert_same(restored(batch), expected)
    assert {layer.compute_dtype for layer in all_layers(restored)} == {"float32"}


def test_a_mixed_model_without_affinity_can_be_saved(tmp_path):
    mixed = in_mixed_precision(fold_batch_norm(build(rates=None)), "bfloat16")
    mixed.save(tmp_path / "mixed.keras")
    loaded = keras.models.load_model(tmp_path / "mixed.keras")
    assert loaded.get_layer("aspp_conv1x1").compute_dtype == "bfloat16"
    batch = images(1, 40, 50)
    assert_same(loaded(batch), mixed(batch))


@pytest.mark.parametrize(
    ("model", "mixed_precision", "message"),
    [
        (build, "int8", "mixed_precision must be one of none, bfloat16, float16. .*'int8'"),
        (lambda: small(activated), "bfloat16", "a model of DeepLabV3Plus. Received: the model"),
    ],
    ids=["precision", "model"],
)
def test_refusals(model, mixed_precision, message):
    with pytest.raises(ConfigError, match=message):
        in_mixed_precision(model(), mixed_precision)
