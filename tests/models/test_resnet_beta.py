"""Tests of the "beta" ResNets against slim's definition, with checkpoints of slim's names."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.networks import dilated

from dilated_affinity.errors import ConfigError, DataError
from dilated_affinity.models.deeplab import BACKBONES, DeepLabV3Plus
from dilated_affinity.models.weights import load_backbone_weights

NAME = "resnet_v1_50_beta"
SCOPE = "resnet_v1_50"
UNITS = {"resnet_v1_50": (3, 4, 6, 3), "resnet_v1_101": (3, 4, 23, 3)}
KERNEL = f"{SCOPE}/block1/unit_2/bottleneck_v1/conv2/weights"
NORM = f"{SCOPE}/conv1_3/BatchNorm"


# slim's definition, implemented again.


def slim_convolutions(scope):
    """Scope and kernel shape of every convolution."""
    yield f"{scope}/conv1_1", (3, 3, 3, 64)
    yield f"{scope}/conv1_2", (3, 3, 64, 64)
    yield f"{scope}/conv1_3", (3, 3, 64, 128)
    depth = 128
    for block, units in enumerate(UNITS[scope], start=1):
        narrow, wide = 32 * 2**block, 128 * 2**block
        for unit in range(1, units + 1):
            place = f"{scope}/block{block}/unit_{unit}/bottleneck_v1"
            if unit == 1:
                yield f"{place}/shortcut", (1, 1, depth, wide)
            yield f"{place}/conv1", (1, 1, depth, narrow)
            yield f"{place}/conv2", (3, 3, narrow, narrow)
            yield f"{place}/conv3", (1, 1, narrow, wide)
            depth = wide


def slim_variables(scope):
    rng = np.random.default_rng(3)
    variables = {}
    for place, shape in slim_convolutions(scope):
        deviation = np.float32((1.5 / np.prod(shape[:-1])) ** 0.5)
        variables[f"{place}/weights"] = deviation * rng.standard_normal(shape, np.float32)
        ranges = {"gamma": (0.8, 1.6), "beta": (-0.5, 0.5)}
        ranges |= {"moving_mean": (-0.5, 0.5), "moving_variance": (0.5, 1.5)}
        for name, (low, high) in ranges.items():
            values = rng.uniform(low, high, shape[-1:])
            if name == "gamma" and place.endswith("conv3"):
                values *= 0.2  # keeps features from doubling with every unit
            variables[f"{place}/BatchNorm/{name}"] = values.astype(np.float32)
    return variables


def slim_features(variables, images, output_stride, multi_grid):
    """The forward pass in inference."""

    def normalized(features, place):
        mean, variance, beta, gamma = (
            variables[f"{place}/BatchNorm/{name}"]
            for name in ("moving_mean", "moving_variance", "beta", "gamma")
        )
        return tf.nn.batch_normalization(features, mean, variance, beta, gamma, 1e-5)

    def convolution(features, place, stride=1, rate=1):
        kernel = variables[f"{place}/weights"]
        before = rate * (len(kernel) - 1) // 2
        padded = tf.pad(features, [[0, 0], [before, before], [before, before], [0, 0]])
        return normalized(tf.nn.conv2d(padded, kernel, stride, "VALID", dilations=rate), place)

    features = tf.nn.relu(convolution(images, f"{SCOPE}/conv1_1", 2))
    features = tf.nn.relu(convolution(features, f"{SCOPE}/conv1_2"))
    features = tf.nn.relu(convolution(features, f"{SCOPE}/conv1_3"))
    features = tf.nn.max_pool2d(features, 3, 2, "SAME")
    low_level, reached, rate = None, 4, 1
    for block, units in enumerate(UNITS[SCOPE], start=1):
        for unit in range(1, units + 1):
            place = f"{SCOPE}/block{block}/unit_{unit}/bottleneck_v1"
            wanted = 2 if unit == units and block < 4 else 1
            stride = wanted if reached < output_stride else 1
            grid = multi_grid[unit - 1] if block == 4 and multi_grid else 1
            shortcut = features[:, ::stride, ::stride]
            if unit == 1:
                shortcut = convolution(shortcut, f"{place}/shortcut")
            features = tf.nn.relu(convolution(features, f"{place}/conv1"))
            features = tf.nn.relu(convolution(features, f"{place}/conv2", stride, rate * grid))
            features = convolution(features, f"{place}/conv3")
            if (block, unit) == (1, 2):
                low_level = features
            features = tf.nn.relu(shortcut + features)
            reached *= stride
            rate *= wanted // stride
    return low_level, features


# Checkpoints.


def write_checkpoint(path, variables):
    names = sorted(variables)
    tf.raw_ops.SaveV2(
        prefix=str(path),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tf.constant(variables[name]) for name in names],
    )
    return path


def beside_the_backbone(scope):
    """Small versions of the other variables in checkpoints of DeepLab's model zoo."""
    norm = [f"BatchNorm/{each}" for each in ("gamma", "beta", "moving_mean", "moving_variance")]
    found = {
        "aspp0": ["weights", *norm],
        "aspp1_depthwise": ["depthwise_weights", *norm],
        "aspp3_pointwise": ["weights", *norm],
        "image_pooling": ["weights", *norm],
        "concat_projection": ["weights", *norm],
        "decoder/feature_projection0": ["weights", *norm],
        "decoder/decoder_conv0_depthwise": ["depthwise_weights", *norm],
        "decoder/decoder_conv1_pointwise": ["weights", *norm],
        "decoder/decoder_conv1": ["weights", *norm],
        "logits/semantic": ["weights", "biases"],
        f"{scope}/logits": ["weights", "biases"],
    }
    names = [f"{place}/{each}" for place, all_of in found.items() for each in all_of]
    slots = [f"{place}/weights/Momentum" for place, _ in slim_convolutions(scope)]
    slots += [
        "logits/semantic/weights/Momentum",
        f"{scope}/conv1_3/BatchNorm/gamma/ExponentialMovingAverage",
    ]
    extra = {name: np.zeros(2, np.float32) for name in (*names, *slots)}
    return {**extra, "global_step": np.int64(30000)}


@pytest.fixture(scope="module")
def variables():
    return slim_variables(SCOPE)


@pytest.fixture(scope="module")
def checkpoint(variables, tmp_path_factory):
    whole = {**variables, **beside_the_backbone(SCOPE)}
    return write_checkpoint(tmp_path_factory.mktemp("slim") / "model.ckpt", whole)


def ends_of(output_stride, **options):
    network = dilated(output_stride, NAME, **options)
    entry = BACKBONES[NAME]
    ends = [network.get_layer(end).output for end in (entry.low_level, entry.high_level)]
    return keras.Model(network.input, ends, name=NAME)


@pytest.fixture(scope="module")
def model():
    return ends_of(32)


def images(height, width):
    return np.random.default_rng(1).uniform(-1, 1, (1, height, width, 3)).astype(np.float32)


@pytest.mark.parametrize("output_stride, multi_grid", [(32, None), (8, (1, 2, 4))], ids=str)
def test_features_equal_slim(variables, checkpoint, output_stride, multi_grid):
    """At a size of 4k + 1, at which slim's pooling is symmetric."""
    model = ends_of(output_stride, multi_grid=multi_grid)
    load_backbone_weights(model, BACKBONES[NAME], checkpoint)
    batch = images(97, 65)
    ours = model(batch, training=False)
    theirs = slim_features(variables, batch, output_stride, multi_grid)
    for one, other in zip(ours, theirs, strict=True):
        assert 0.05 < np.std(other) < 10
        np.testing.assert_allclose(one, other, atol=1e-4)


def loaded(model):
    """The weights of a model by slim's names."""
    names = BACKBONES[model.name].checkpoint
    return {
        names.variable(layer.name, variable.name): np.asarray(variable)
        for layer in model.layers
        for variable in layer.weights
    }


@pytest.mark.parametrize("spelling", ["model.ckpt", "model.ckpt.index"])
def test_load_checkpoint(model, variables, checkpoint, spelling):
    for variable in model.weights:
        variable.assign(np.zeros(variable.shape))
    load_backbone_weights(model, BACKBONES[NAME], checkpoint.with_name(spelling))
    found = loaded(model)
    assert set(found) == set(variables) and len(found) == 55 * 5
    for name, values in variables.items():
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize(
    "change, message",
    [
        ({KERNEL: None}, f"{KERNEL} is missing"),
        ({f"{NORM}/moving_mean": None}, f"{NORM}/moving_mean is missing"),
        (
            {KERNEL: np.zeros((3, 3, 64, 32), np.float32)},
            rf"{KERNEL} has shape \(3, 3, 64, 32\), not \(3, 3, 64, 64\)",
        ),
        ({"aspp9x/weights": np.zeros(2, np.float32)}, "aspp9x/weights is unexpected"),
        ({f"{SCOPE}/conv1/weights": np.zeros(2, np.float32)}, f"{SCOPE}/conv1/weights is unexp"),
        ({f"{KERNEL}/Momentums": np.zeros(2, np.float32)}, f"{KERNEL}/Momentums is unexpected"),
        ({KERNEL: None, f"{KERNEL}/Momentum": np.zeros(2, np.float32)}, f"{KERNEL} is missing"),
        (
            {f"{NORM}/{each}": None for each in ("gamma", "beta", "moving_mean", "moving_variance")}
            | {"strange": np.zeros(2, np.float32)},
            f"{NORM}/gamma is missing.*; and 2 more",
        ),
    ],
    ids=lambda each: each[-30:] if isinstance(each, str) else "",
)
def test_mismatched_checkpoint_is_refused(model, variables, tmp_path, change, message):
    content = {name: each for name, each in {**variables, **change}.items() if each is not None}
    path = write_checkpoint(tmp_path / "model.ckpt", content)
    before = model.get_layer("conv1_1").get_weights()[0]
    with pytest.raises(DataError, match=f"model.ckpt: not a checkpoint of {NAME}: .*{message}"):
        load_backbone_weights(model, BACKBONES[NAME], path)
    np.testing.assert_array_equal(model.get_layer("conv1_1").get_weights()[0], before)


def test_missing_checkpoint_is_refused(model, tmp_path):
    with pytest.raises(DataError, match="none.ckpt: cannot be read") as caught:
        load_backbone_weights(model, BACKBONES[NAME], tmp_path / "none.ckpt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".index", ".data-00000-of-00001"])
def test_damaged_checkpoint_is_refused(model, variables, checkpoint, tmp_path, suffix):
    """The model keeps its weights."""
    for each in (".index", ".data-00000-of-00001"):
        content = checkpoint.with_name(checkpoint.name + each).read_bytes()
        kept = len(content) // 2 if each == suffix else len(content)
        (tmp_path / f"cut.ckpt{each}").write_bytes(content[:kept])
    before = model.get_layer("conv1_1").get_weights()[0]
    with pytest.raises(DataError, match="cut.ckpt: cannot be read") as caught:
        load_backbone_weights(model, BACKBONES[NAME], tmp_path / "cut.ckpt")
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(model.get_layer("conv1_1").get_weights()[0], before)


@pytest.mark.parametrize("weights", ["imagenet", ""])
def test_unsupported_weights_are_refused(model, weights):
    with pytest.raises(ConfigError, match=f"{NAME} must be .*Received: '{weights}'"):
        load_backbone_weights(model, BACKBONES[NAME], weights)


@pytest.mark.slow
def test_load_keras_weights_file(model, tmp_path):
    original = BACKBONES[NAME].application(weights=None, input_shape=(None, None, 3))
    original.save_weights(tmp_path / "beta.weights.h5")
    load_backbone_weights(model, BACKBONES[NAME], tmp_path / "beta.weights.h5")
    expected = loaded(original)
    for name, values in loaded(model).items():
        np.testing.assert_array_equal(values, expected[name])


def test_deeplab_with_beta_checkpoint(variables, checkpoint):
    model = DeepLabV3Plus(3, None, NAME, weights=checkpoint, filters=8)
    kernel = model.get_layer(NAME).get_layer("conv1_1").kernel
    np.testing.assert_array_equal(kernel, variables[f"{SCOPE}/conv1_1/weights"])
    pixels = np.array([[[[0, 127.5, 255]]]], np.float32)
    np.testing.assert_allclose(model.get_layer("preprocess")(pixels), [[[[-1, 0, 1]]]], atol=1e-6)
    assert tuple(model(np.zeros((1, 50, 33, 3)))["semantic"].shape) == (1, 50, 33, 3)


@pytest.mark.slow
def test_load_checkpoint_of_resnet_101(tmp_path):
    name, scope = "resnet_v1_101_beta", "resnet_v1_101"
    variables = slim_variables(scope)
    path = write_checkpoint(tmp_path / "model.ckpt", {**variables, **beside_the_backbone(scope)})
    backbone = DeepLabV3Plus(3, None, name, weights=path, filters=8).get_layer(name)
    found = loaded(backbone)
    assert set(found) == set(variables) and len(found) == 106 * 5
    for name, values in variables.items():
        np.testing.assert_array_equal(found[name], values)
