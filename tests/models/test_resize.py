"""Tests of `AlignedResize` against the positions of features of convolutions."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import reference

from dilated_affinity.models.resize import AlignedResize


def centre_tap(padding):
    """A strided 3x3 convolution that returns the pixel at its centre."""
    kernel = np.zeros((3, 3, 1, 1), np.float32)
    kernel[1, 1] = 1
    convolution = keras.layers.Conv2D(
        1, 3, strides=2, use_bias=False, padding="same" if padding == "same" else "valid"
    )
    convolution.build((None, None, None, 1))
    convolution.set_weights([kernel])
    return convolution


def seen_by_features(image, stride, padding):
    """The image at feature positions, from a chain of such strided convolutions."""
    features = tf.constant(image, tf.float32)
    while stride > 1:
        if padding == "symmetric":
            features = keras.ops.pad(features, [[0, 0], [1, 1], [1, 1], [0, 0]])
        features = centre_tap(padding)(features)
        stride //= 2
    return np.asarray(features)


def ramps(height, width):
    """Pixel coordinates as an image: channel 0 of one image is y, of the other x."""
    y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    return np.stack([y, x])[..., None].astype(np.float32)


SIZES = [(97, 131), (96, 128), (50, 63), (100, 34)]


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize("source, target", [(4, 1), (8, 4), (16, 4), (32, 1)])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_resize_of_ramp(size, source, target, padding):
    image = ramps(*size)
    features = seen_by_features(image, source, padding)
    wanted = seen_by_features(image, target, padding)
    resized = AlignedResize(source, target, padding)([features, image])
    # Outside the outermost features, the nearest one is repeated.
    bounds = features.min((1, 2, 3)), features.max((1, 2, 3))
    clipped = [np.clip(each, *bound) for each, *bound in zip(wanted, *bounds, strict=True)]
    np.testing.assert_allclose(resized, clipped, atol=1e-3)
    inside = np.mean(np.equal(clipped, wanted))
    assert inside > 0.5 or source == 32


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values_at_feature_positions(size, padding):
    features = np.random.default_rng(0).normal(size=(1, -(-size[0] // 8), -(-size[1] // 8), 3))
    image = ramps(*size)
    positions = seen_by_features(image, 8, padding)[..., 0].astype(int)
    resized = np.asarray(AlignedResize(8, 1, padding)([features, image[:1]]))
    found = resized[0, positions[0], positions[1]]
    inside = (positions[0] < size[0]) & (positions[1] < size[1])
    np.testing.assert_allclose(found[inside], features[0][inside], atol=1e-5)


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize("source, target", [(4, 1), (16, 1), (16, 4), (32, 8)])
def test_aligned_corners(source, target, padding):
    height, width = 3 * source + 1, 5 * source + 1
    features = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype(np.float32)
    resized = AlignedResize(source, target, padding)([features, np.zeros((2, height, width, 3))])
    size = (3 * source // target + 1, 5 * source // target + 1)
    expected = tf.compat.v1.image.resize_bilinear(features, size, align_corners=True)
    np.testing.assert_allclose(resized, expected, atol=1e-5)


@pytest.mark.parametrize("size", [(13, 17), (12, 18)])
def test_interpolation_equals_loops(size):
    """Weights decrease linearly between the centres of the strided convolutions."""
    features = np.random.default_rng(0).normal(size=(1, -(-size[0] // 4), -(-size[1] // 4), 2))
    centres = seen_by_features(ramps(*size), 4, "same")[..., 0]
    rows, columns = centres[0, :, 0], centres[1, 0, :]
    resized = AlignedResize(4)([features, np.zeros((1, *size, 1))])

    def share(position, centres, index):
        position = min(max(position, centres[0]), centres[-1])
        return max(0.0, 1 - abs(position - centres[index]) / 4)

    for y, x in np.ndindex(size):
        expected = sum(
            share(y, rows, i) * share(x, columns, j) * features[0, i, j]
            for i in range(len(rows))
            for j in range(len(columns))
        )
        np.testing.assert_allclose(resized[0, y, x], expected, atol=1e-5)


def test_resize_of_constant_features():
    resized = AlignedResize(8)([np.full((2, 5, 6, 3), 4.0), np.zeros((2, 34, 41, 3))])
    np.testing.assert_allclose(resized, np.full((2, 34, 41, 3), 4.0), rtol=1e-6)


def test_resize_of_single_feature():
    resized = AlignedResize(32)([np.full((1, 1, 1, 2), 3.0), np.zeros((1, 5, 1, 3))])
    np.testing.assert_array_equal(resized, np.full((1, 5, 1, 2), 3.0))


def test_gradient_of_resize():
    """The gradient is the transpose, since resizing is linear: <resize(f), g> = <f, gradient>."""
    features = tf.Variable(np.random.default_rng(0).normal(size=(1, 3, 4, 1)).astype("float32"))
    upstream = np.random.default_rng(1).normal(size=(1, 10, 13, 1)).astype(np.float32)
    layer, image = AlignedResize(4), np.zeros((1, 10, 13, 3), np.float32)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer([features, image]) * upstream)
    expected = reference.finite_differences(
        lambda point: float(np.sum(np.asarray(layer([point, image]), np.float64) * upstream)),
        features.numpy(),
        step=0.5,
    )
    np.testing.assert_allclose(tape.gradient(total, features), expected, atol=1e-4)


def test_dynamic_size():
    features, images = keras.Input((None, None, 2)), keras.Input((None, None, 3))
    model = keras.Model([features, images], AlignedResize(8, 4)([features, images]))
    assert model.output_shape == (None, None, None, 2)
    for height, width in ((33, 41), (16, 24)):
        shapes = (1, -(-height // 8), -(-width // 8), 2), (1, height, width, 3)
        resized = model.predict([np.zeros(shape) for shape in shapes], verbose=0)
        assert resized.shape == (1, -(-height // 4), -(-width // 4), 2)


def test_static_shape():
    resized = AlignedResize(8, 4)([keras.Input((3, 4, 2)), keras.Input((17, 30, 3))])
    assert resized.shape == (None, 5, 8, 2)


def test_keras_serialisation():
    layer = AlignedResize(16, 4, "symmetric", name="mine", dtype="float32")
    again = keras.layers.deserialize(keras.layers.serialize(layer))
    assert type(again) is AlignedResize
    assert again.get_config() == layer.get_config()
    assert (again.source_stride, again.target_stride, again.padding) == (16, 4, "symmetric")


def test_unknown_padding_is_refused():
    with pytest.raises(ValueError, match="padding"):
        AlignedResize(4, padding="valid")
