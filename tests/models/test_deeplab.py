"""Tests of DeepLabv3+ with its two heads: shapes, settings, saving, training."""

import functools
import re
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import reference

from dilated_affinity.affinity.loss import AffinityLoss
from dilated_affinity.affinity.propagation import AffinityPropagation
from dilated_affinity.affinity.statistics import AffinityStatistics
from dilated_affinity.affinity.targets import affinity_targets
from dilated_affinity.errors import ConfigError
from dilated_affinity.models.deeplab import AffinityHead, DeepLabV3Plus, affinity_rates
from dilated_affinity.training.losses import SemanticLoss

SMALL = "mobilenet_v2_0.35"
RATES = ((2, 3), (3, 2), (8, 8))
CLASSES = 5
FILTERS = 8
STATISTICS = AffinityStatistics.from_labels([reference.random_labels(0, (20, 30))], RATES)


def build(rates=RATES, **options):
    settings = {"backbone": SMALL, "weights": None, "filters": FILTERS, "output_stride": 16}
    return DeepLabV3Plus(CLASSES, rates, **{**settings, **options})


built_once = functools.cache(build)
"""A cached model for tests that do not change it."""


@pytest.fixture(scope="module")
def model():
    return build(affinity_bias=STATISTICS.bias())


def images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3)).astype(np.uint8)


# Outputs.


@pytest.mark.parametrize("shape", [(3, 97, 131), (2, 64, 48), (1, 33, 65), (1, 5, 3), (1, 1, 1)])
def test_size_of_logits(model, shape):
    logits = model(images(*shape))
    assert set(logits) == {"semantic", "affinity"}
    assert tuple(logits["semantic"].shape) == (*shape, CLASSES)
    assert tuple(logits["affinity"].shape) == (*shape, 8 * len(RATES))
    for each in logits.values():
        assert each.dtype == tf.float32
        assert np.all(np.isfinite(each))


def test_static_shapes(model):
    assert model.input_shape == (None, None, None, 3)
    assert {name: each.shape for name, each in model.output.items()} == {
        "semantic": (None, None, None, CLASSES),
        "affinity": (None, None, None, 8 * len(RATES)),
    }


def test_model_without_rates():
    model = build(rates=None)
    logits = model(images(1, 33, 41))
    assert {name: tuple(each.shape) for name, each in logits.items()} == {
        "semantic": (1, 33, 41, CLASSES)
    }
    assert affinity_rates(model) is None
    assert not any(isinstance(layer, AffinityHead) for layer in model.layers)


def test_uint8_and_float_images(model):
    batch = images(1, 33, 41)
    for name, logits in model(batch).items():
        np.testing.assert_array_equal(logits, model(batch.astype(np.float32))[name])


def test_preprocessing_of_the_backbone(model):
    batch = images(1, 9, 9).astype(np.float32)
    expected = keras.applications.mobilenet_v2.preprocess_input(batch.copy())
    np.testing.assert_allclose(model.get_layer("preprocess")(batch), expected, atol=1e-6)


def test_images_of_a_batch_are_independent(model):
    batch = images(3, 33, 41)
    together = model(batch)
    for index in range(3):
        alone = model(batch[index : index + 1])
        for name in together:
            np.testing.assert_allclose(together[name][index], alone[name][0], atol=1e-5)


def test_strides_of_backbone_outputs(model):
    low, high = model.get_layer(SMALL)(images(1, 97, 131).astype(np.float32))
    assert tuple(low.shape[1:3]) == (25, 33)
    assert tuple(high.shape[1:3]) == (7, 9)


def test_logits_stay_float32_under_mixed_precision():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build()
        logits = model(images(1, 33, 41))
        layers = {layer.name: layer.compute_dtype for layer in model.layers}
    finally:
        keras.config.set_dtype_policy(before)
    assert layers["decoder_conv1"] == "bfloat16"
    for name in ("semantic_logits", "affinity_logits", "semantic", "affinity"):
        assert layers[name] == "float32"
    assert all(each.dtype == tf.float32 for each in logits.values())


# Structure.


@pytest.mark.parametrize(
    "output_stride, separable, expected",
    [(8, True, (12, 24, 36)), (16, False, (6, 12, 18)), (32, True, (3, 6, 9))],
)
def test_aspp_rates_at_each_output_stride(output_stride, separable, expected):
    found = [
        layer.dilation_rate
        for layer in built_once(output_stride=output_stride, separable=separable).layers
        if layer.name.startswith("aspp") and getattr(layer, "kernel_size", None) == (3, 3)
    ]
    assert found == [(rate, rate) for rate in expected]


@pytest.mark.parametrize("output_stride, expected", [(8, [6, 10]), (32, [1, 2])])
def test_aspp_rates_argument(output_stride, expected):
    layers = built_once(output_stride=output_stride, atrous_rates=(3, 5)).layers
    found = [layer.dilation_rate for layer in layers if re.search(r"aspp.*_depthwise$", layer.name)]
    assert found == [(rate, rate) for rate in expected]


@pytest.mark.parametrize("output_stride, separable", [(8, True), (16, False)])
def test_parameter_count(output_stride, separable):
    def norm(channels):
        return 4 * channels

    def point(before, after):
        return before * after + norm(after)

    def conv3x3(before, after):
        if separable:
            return 9 * before + norm(before) + point(before, after)
        return 9 * before * after + norm(after)

    # MobileNetV2 0.35 without classifier and the last 112 -> 1280 convolution.
    backbone, high, low = 410_208 - point(112, 1280), 112, 48
    expected = backbone + point(high, FILTERS) + 3 * conv3x3(high, FILTERS)
    expected += point(high, FILTERS) + point(5 * FILTERS, FILTERS)
    expected += point(low, 48) + conv3x3(FILTERS + 48, FILTERS) + conv3x3(FILTERS, FILTERS)
    expected += (FILTERS + 1) * CLASSES + (FILTERS + 1) * 8 * len(RATES)
    found = built_once(output_stride=output_stride, separable=separable).count_params()
    assert found == expected


def test_weights_at_other_output_strides(model):
    finer = built_once(output_stride=8, separable=True)
    finer.set_weights(model.get_weights())
    batch = images(1, 65, 65)
    close = np.corrcoef(np.ravel(model(batch)["semantic"]), np.ravel(finer(batch)["semantic"]))
    assert close[0, 1] > 0.5


def test_weight_decay_of_model():
    model = build(weight_decay=0.01)
    expected = 0.0
    for layer in (*model.layers, *model.get_layer(SMALL).layers):
        if isinstance(layer, keras.layers.Conv2D):
            expected += 0.5 * 0.01 * float(np.sum(np.square(layer.kernel)))
    np.testing.assert_allclose(sum(map(float, model.losses)), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "setting",
    [
        {"num_classes": 1},
        {"rates": ()},
        {"rates": ((0, 1),)},
        {"backbone": "resnet"},
        {"output_stride": 4},
        {"output_stride": "16"},
        {"batch_norm": "none"},
        {"atrous_rates": ()},
        {"atrous_rates": (6, 0)},
        {"atrous_rates": "6,12"},
        {"affinity_bias": np.zeros(8)},
        {"affinity_bias": np.full(24, np.inf)},
        {"affinity_bias": np.zeros(24), "rates": None},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(setting):
    settings = {"num_classes": CLASSES, "rates": RATES, "backbone": SMALL, "filters": FILTERS}
    with pytest.raises(ConfigError):
        DeepLabV3Plus(**{**settings, "weights": None, **setting})


# The affinity head.


def test_channels_of_affinity_head(model):
    head = model.get_layer("affinity_logits")
    assert isinstance(head, AffinityHead)
    assert head.filters == 8 * len(RATES)
    assert head.rates == RATES == affinity_rates(model)


def test_affinity_bias(model):
    bias = np.asarray(model.get_layer("affinity_logits").bias)
    for rate, prior in enumerate(STATISTICS.positive_frequencies):
        np.testing.assert_allclose(1 / (1 + np.exp(-bias[8 * rate : 8 * rate + 8])), prior, 1e-5)
    assert len(set(np.round(STATISTICS.positive_frequencies, 3))) == len(RATES)


def test_initial_affinity_equals_the_prior(model):
    logits = np.asarray(model(images(1, 65, 65))["affinity"])
    means = (1 / (1 + np.exp(-logits))).mean((0, 1, 2))
    np.testing.assert_allclose(means, STATISTICS.positive_frequencies.repeat(8), atol=0.05)


def test_affinity_bias_defaults_to_0():
    head = built_once(output_stride=16, separable=False).get_layer("affinity_logits")
    assert not np.any(head.bias)


def test_affinity_head_config_round_trip():
    head = AffinityHead(RATES, name="mine", use_bias=True)
    again = keras.layers.deserialize(keras.layers.serialize(head))
    assert type(again) is AffinityHead
    assert again.get_config() == head.get_config()
    assert (again.rates, again.filters, again.name) == (RATES, 24, "mine")


# Saving.


@pytest.mark.slow  # the tests of commands also load such a file
def test_saved_model_in_new_process(model, tmp_path):
    batch = images(2, 49, 65)
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "expected.npz", images=batch, **model.predict(batch, verbose=0))
    program = """
        import sys
        import keras
        import numpy as np
        import dilated_affinity
        model = keras.models.load_model(sys.argv[1])
        expected = np.load(sys.argv[2])
        logits = model.predict(expected["images"], verbose=0)
        assert set(logits) == {"semantic", "affinity"}
        for name, values in logits.items():
            np.testing.assert_array_equal(values, expected[name])
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    paths = [str(tmp_path / "model.keras"), str(tmp_path / "expected.npz")]
    done = subprocess.run([*command, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_save_compiled_model(tmp_path):
    model = build(batch_norm="frozen")
    compile_with_losses(model)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert affinity_rates(again) == RATES
    batch, labels = images(1, 33, 41), {"semantic": np.zeros((1, 33, 41), int)}
    labels["affinity"] = affinity_targets(labels["semantic"], RATES)
    logs = again.evaluate(batch, labels, verbose=0, return_dict=True)
    logits = model(batch)
    expected = SemanticLoss()(labels["semantic"], logits["semantic"])
    np.testing.assert_allclose(logs["semantic_loss"], expected, rtol=1e-5)
    expected = AffinityLoss(STATISTICS)(labels["affinity"], logits["affinity"])
    np.testing.assert_allclose(logs["affinity_loss"], expected, rtol=1e-5)
    norms = [each for each in again.get_layer(SMALL).layers if "BN" in each.name]
    assert norms and not any(each.trainable for each in norms)


# Training.


def compile_with_losses(model, learning_rate=0.01, run_eagerly=True):
    """Eager by default, since tracing takes longer than a single step."""
    model.compile(
        keras.optimizers.SGD(learning_rate, momentum=0.9),
        loss={"semantic": SemanticLoss(), "affinity": AffinityLoss(STATISTICS)},
        loss_weights={"semantic": 1.0, "affinity": 1.5},
        run_eagerly=run_eagerly,
        jit_compile=False,
    )


def lesson(batch, size, seed=0):
    """Images whose colours show the classes, labels with void, and targets."""
    labels = reference.random_labels(seed, (batch, size, size), CLASSES, void_share=0)
    labels = labels.repeat(8, axis=1).repeat(8, axis=2)[:, :size, :size]
    colours = np.random.default_rng(seed).integers(0, 256, (CLASSES, 3))
    noise = np.random.default_rng(seed).normal(0, 10, (*labels.shape, 3))
    pictures = np.clip(colours[labels] + noise, 0, 255).astype(np.uint8)
    labels[:, :, ::13] = 255
    return pictures, {"semantic": labels, "affinity": affinity_targets(labels, RATES).numpy()}


def variables_of_norms(model):
    norms = [
        layer
        for layer in model.get_layer(SMALL).layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    return [value for norm in norms for value in norm.get_weights()]


@pytest.mark.parametrize("batch_norm", ["frozen", "sync"])
def test_training_step_with_frozen_batch_norm(batch_norm):
    """With one image, the pooling branch normalises over a single position."""
    model = build(batch_norm=batch_norm)
    compile_with_losses(model)
    kernel = model.get_layer(SMALL).get_layer("Conv1").kernel.numpy()
    new_norm = model.get_layer("aspp_projection_bn").moving_mean.numpy()
    before = variables_of_norms(model)
    logs = model.train_on_batch(*lesson(1, 33), return_dict=True)
    assert np.isfinite(list(logs.values())).all()
    assert all(np.isfinite(each).all() for each in model.get_weights())
    same = [np.array_equal(*pair) for pair in zip(before, variables_of_norms(model), strict=True)]
    assert all(same) if batch_norm == "frozen" else np.mean(same) < 0.1
    assert not np.array_equal(kernel, model.get_layer(SMALL).get_layer("Conv1").kernel)
    assert not np.array_equal(new_norm, model.get_layer("aspp_projection_bn").moving_mean)


def test_frozen_batch_norm_uses_stored_statistics():
    model = built_once(batch_norm="frozen").get_layer(SMALL)
    batch = images(2, 33, 41).astype(np.float32) / 127.5 - 1
    for one, other in zip(model(batch, training=True), model(batch, training=False), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_odd_image_and_batch_of_3(model):
    batch, labels = images(3, 97, 131), reference.random_labels(1, (3, 97, 131), CLASSES)
    logits = model(batch)
    probabilities = keras.ops.softmax(logits["semantic"])
    refined = AffinityPropagation(RATES, iterations=2)([probabilities, logits["affinity"]])
    np.testing.assert_allclose(np.sum(refined, axis=-1), 1, atol=1e-5)
    semantic = SemanticLoss()(labels, logits["semantic"])
    affinity = AffinityLoss(STATISTICS)(affinity_targets(labels, RATES), logits["affinity"])
    assert np.isfinite([semantic, affinity]).all() and min(semantic, affinity) > 0


@pytest.mark.slow
def test_losses_decrease_in_twenty_steps():
    model = build(filters=32, affinity_bias=STATISTICS.bias())
    compile_with_losses(model, learning_rate=0.1, run_eagerly=False)
    pictures, labels = lesson(2, 65)
    logs = []
    for _ in range(21):
        model.reset_metrics()
        logs.append(model.train_on_batch(pictures, labels, return_dict=True))
    for name in ("semantic_loss", "affinity_loss"):
        assert logs[-1][name] < logs[0][name] / 2, [each[name] for each in logs]
