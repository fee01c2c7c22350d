"""Tests of gradients through propagation against finite differences of loops over pixels."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    reference,
    tiny,  # noqa: F401 - registers the backbone "tiny"
)

from dilated_affinity.affinity.propagation import AffinityPropagation, propagate
from dilated_affinity.models.deeplab import DeepLabV3Plus
from dilated_affinity.training.losses import SemanticLoss

RATES = ((1, 2), (2, 1))
SIZE = (5, 6)
CLASSES = 3


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def point(seed=0):
    """Logits, affinities and the weights of a scalar function of the refined probabilities."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(*SIZE, CLASSES))
    affinities = rng.uniform(0.05, 0.95, (*SIZE, 8 * len(RATES)))
    return logits, affinities, rng.normal(size=(*SIZE, CLASSES))


def gradients(logits, affinities, weights, iterations, self_weight, mask=None):
    logits, affinities = (tf.constant(each[None], tf.float32) for each in (logits, affinities))
    with tf.GradientTape() as tape:
        tape.watch([logits, affinities])
        refined = propagate(tf.nn.softmax(logits), affinities, RATES, iterations, self_weight, mask)
        value = tf.reduce_sum(refined * weights)
    return [each.numpy()[0] for each in tape.gradient(value, [logits, affinities])]


def finite_differences(function, at, count=40):
    """Central differences at some coordinates of an array, as (indices, derivatives)."""
    indices = np.random.default_rng(9).choice(at.size, min(count, at.size), replace=False)
    slopes = []
    for index in indices:
        ends = []
        for step in (1e-5, -1e-5):
            moved = at.copy()
            moved.flat[index] += step
            ends.append(function(moved))
        slopes.append((ends[0] - ends[1]) / 2e-5)
    return indices, np.array(slopes)


@pytest.mark.parametrize("iterations", [0, 1, 4])
@pytest.mark.parametrize("self_weight", [0.5, 6.0])
def test_gradients_equal_finite_differences(iterations, self_weight):
    logits, affinities, weights = point()

    def value(logits, affinities):
        refined = reference.propagate(softmax(logits), affinities, RATES, iterations, self_weight)
        return (refined * weights).sum()

    by_logits, by_affinities = gradients(logits, affinities, weights, iterations, self_weight)
    for gradient, function, at in (
        (by_logits, lambda moved: value(moved, affinities), logits),
        (by_affinities, lambda moved: value(logits, moved), affinities),
    ):
        indices, slopes = finite_differences(function, at)
        np.testing.assert_allclose(gradient.flat[indices], slopes, rtol=2e-3, atol=2e-5)
    assert np.any(by_affinities) == (iterations > 0)


def test_gradient_outside_the_mask():
    logits, affinities, weights = point()
    mask = np.zeros((1, *SIZE), bool)
    mask[:, :4, :4] = True
    by_logits, by_affinities = gradients(logits, affinities, weights, 3, 6.0, mask)
    inside = tuple(slice(0, 4) for _ in range(2))

    def value(moved):
        refined = reference.propagate(softmax(moved), affinities[inside], RATES, 3, 6.0)
        return (refined * weights[inside]).sum()

    indices, slopes = finite_differences(value, logits[inside].copy())
    np.testing.assert_allclose(by_logits[inside].flat[indices], slopes, rtol=2e-3, atol=2e-5)
    assert not np.any(by_affinities[4:]) and not np.any(by_affinities[:, 4:])
    alone, _ = gradients(logits, affinities, weights, 0, 6.0)
    np.testing.assert_allclose(by_logits[4:], alone[4:], rtol=1e-4, atol=1e-6)


def test_gradient_of_pixel_without_weights():
    logits, affinities, weights = point()
    expected, _ = gradients(logits, affinities, weights, 0, 0.0)
    by_logits, _ = gradients(logits, 0 * affinities, weights, 3, 0.0)
    np.testing.assert_allclose(by_logits, expected, rtol=1e-4, atol=1e-6)


def test_training_through_propagation():
    """The semantic loss is that of the refined probabilities and trains the affinity head."""
    model = DeepLabV3Plus(
        4, RATES, "tiny", weights=None, filters=8, separable=False, propagation_iterations=2
    )
    plain = keras.Model(
        model.input, [model.get_layer("semantic").output, model.get_layer("affinity").output]
    )
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, (2, 33, 41, 3)).astype(np.float32)
    labels = rng.integers(0, 4, (2, 33, 41))
    kernel = model.get_layer("affinity_logits").kernel
    kernel.assign(rng.normal(size=kernel.shape))
    semantic, affinity = plain(images)
    refined = AffinityPropagation(RATES, iterations=2)([keras.ops.softmax(semantic), affinity])
    outputs = model(images)
    np.testing.assert_allclose(keras.ops.softmax(outputs["semantic"]), refined, atol=1e-5)
    np.testing.assert_array_equal(outputs["affinity"], affinity)
    before = np.asarray(kernel)
    model.compile("sgd", loss={"semantic": SemanticLoss()})
    model.train_on_batch(images, {"semantic": labels})
    assert np.abs(np.asarray(kernel) - before).max() > 1e-7
