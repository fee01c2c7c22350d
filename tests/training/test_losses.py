"""The semantic loss against loops over pixels, and its gradient against finite differences."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import reference

from dilated_affinity.training.losses import SemanticLoss

CLASSES = 4


def batch(shape=(3, 13, 17), seed=1, **options):
    labels = reference.random_labels(seed, shape, CLASSES, **options)
    logits = np.random.default_rng(seed).normal(0, 3, (*shape, CLASSES)).astype(np.float32)
    return labels, logits


@pytest.mark.parametrize("void_share", [0, 0.15, 0.95])
def test_loss_equals_loops(void_share):
    labels, logits = batch(void_share=void_share)
    loss = SemanticLoss()(labels, logits)
    assert loss.shape == () and loss.dtype == tf.float32
    np.testing.assert_allclose(loss, reference.semantic_loss(labels, logits), rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 97, 131)])
def test_other_sizes_equal_loops(shape):
    labels, logits = batch(shape, void_share=0)
    loss = SemanticLoss()(labels, logits)
    np.testing.assert_allclose(loss, reference.semantic_loss(labels, logits), rtol=1e-5)


def test_mean_over_nonvoid_pixels_of_batch():
    """The mean runs over the batch's pixels, not over images."""
    labels, logits = batch()
    labels[0, :, 3:] = 255
    labels[1] = 255
    expected = reference.semantic_loss(labels, logits)
    np.testing.assert_allclose(SemanticLoss()(labels, logits), expected, rtol=1e-5)


@pytest.mark.parametrize("void", [3, -1])
def test_other_void_label(void):
    labels, logits = batch()
    labels = np.where(labels == 255, np.int32(void), labels)
    expected = reference.semantic_loss(labels, logits, void)
    loss = SemanticLoss(ignore_label=void)(labels, logits)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_all_void():
    labels, logits = np.full((2, 3, 4), 255, np.uint8), tf.Variable(batch((2, 3, 4))[1])
    with tf.GradientTape() as tape:
        loss = SemanticLoss()(labels, logits)
    assert float(loss) == 0
    assert not np.any(tape.gradient(loss, logits))


def test_gradient_equals_finite_differences():
    labels, start = batch((2, 3, 5), void_share=0.3)
    logits = tf.Variable(start)
    with tf.GradientTape() as tape:
        loss = SemanticLoss()(labels, logits)
    expected = reference.finite_differences(
        lambda point: reference.semantic_loss(labels, point), start
    )
    np.testing.assert_allclose(tape.gradient(loss, logits), expected, atol=1e-5)


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_extreme_logits(size):
    labels, logits = batch((1, 6, 7))
    logits = tf.Variable(np.sign(logits) * np.float32(size))
    with tf.GradientTape() as tape:
        loss = SemanticLoss()(labels, logits)
    assert np.isfinite(loss) and loss > 1
    assert np.all(np.isfinite(tape.gradient(loss, logits)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_half_precision_inputs(dtype):
    labels, logits = batch((2, 6, 7))
    logits = tf.cast(logits, dtype)
    loss = SemanticLoss()(labels, logits)
    assert loss.dtype == tf.float32
    expected = reference.semantic_loss(labels, tf.cast(logits, "float64").numpy())
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_per_pixel_losses():
    labels, logits = batch()
    each = SemanticLoss(reduction="none")(labels, logits)
    assert each.shape == labels.shape
    assert not np.any(np.asarray(each)[labels == 255])
    np.testing.assert_allclose(np.mean(each), SemanticLoss()(labels, logits), rtol=1e-5)


def test_sample_weight():
    labels, logits = batch()
    halves = np.full(labels.shape, 0.5, np.float32)
    loss = SemanticLoss()
    np.testing.assert_allclose(
        loss(labels, logits, sample_weight=halves), loss(labels, logits) / 2, rtol=1e-5
    )


def test_keras_serialisation():
    loss = SemanticLoss(ignore_label=7, name="mine")
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert type(again) is SemanticLoss
    assert again.get_config() == loss.get_config()
    assert (again.name, again.ignore_label) == ("mine", 7)
