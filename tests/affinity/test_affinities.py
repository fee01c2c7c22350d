"""Tests of affinities from logits, against loops over pixels."""

import math
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import reference

from dilated_affinity.affinity import affinities
from dilated_affinity.affinity.affinities import steep_sigmoid, symmetric_logits
from dilated_affinity.affinity.geometry import neighbor_offsets
from dilated_affinity.affinity.propagation import AffinityPropagation, propagate
from dilated_affinity.errors import ConfigError

RATE_SETS = [((1, 1),), ((2, 3), (3, 2)), ((8, 8), (12, 24), (24, 12), (16, 16))]


def random_logits(rates, size, batch=3, seed=0):
    shape = (batch, *size, 8 * len(rates))
    return np.random.default_rng(seed).normal(0, 3, shape).astype("float32")


@pytest.mark.parametrize("threshold", [-1.25, 0.0, 2.0])
def test_steep_sigmoid_with_threshold(threshold):
    logits = np.array([-3.0, -0.5, 0.0, 1.0, 2.0, 40.0])
    expected = [50.0 ** (x - threshold) / (1 + 50.0 ** (x - threshold)) for x in logits]
    np.testing.assert_allclose(steep_sigmoid(logits, 50.0, threshold), expected, rtol=1e-5)
    assert float(steep_sigmoid(np.array([threshold]), 50.0, threshold)[0]) == 0.5


def test_steep_sigmoid_without_threshold_is_exact():
    logits = random_logits(((1, 1),), (9, 9))
    plain = keras.ops.sigmoid(keras.ops.convert_to_tensor(logits) * float(np.log(7.0)))
    np.testing.assert_array_equal(steep_sigmoid(logits), plain)


@pytest.mark.parametrize("threshold", [float("nan"), float("inf")])
def test_non_finite_threshold_is_refused(threshold):
    with pytest.raises(ConfigError, match="threshold must be finite. Received: threshold="):
        steep_sigmoid(np.zeros(3), 7.0, threshold)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", [(13, 17), (97, 31), (1, 1)], ids=str)
@pytest.mark.parametrize("rates", RATE_SETS, ids=str)
def test_symmetric_logits_equal_loops(rates, size, masked):
    logits = random_logits(rates, size, batch=2)
    mask = np.random.default_rng(1).uniform(size=(2, *size)) < 0.7 if masked else None
    given = logits.copy()
    if masked:
        given[~mask] = np.nan  # must not spread
    result = np.asarray(symmetric_logits(given, rates, mask))
    valid = np.ones((2, *size), bool) if mask is None else mask
    expected = reference.symmetric_logits(logits, neighbor_offsets(rates), valid)
    np.testing.assert_allclose(result[valid], expected[valid], rtol=1e-6)


def test_xla_does_not_compute_the_indices_of_symmetric_logits(monkeypatch):
    """It would do so while it compiles: seconds for a photograph, and a message like an error."""
    compiled, calls = affinities._symmetric_logits, []

    def spy(*arguments):
        calls.append(arguments)
        return compiled(*arguments)

    monkeypatch.setattr(affinities, "_symmetric_logits", spy)
    symmetric_logits(tf.zeros((1, 48, 64, 8)), ((1, 1),))
    program = compiled.experimental_get_compiler_ir(*calls[0])(stage="optimized_hlo")
    constants = re.findall(r"\w+\[([\d,]*)\]\S* constant\(", program)
    assert constants
    assert all(math.prod(map(int, shape.split(","))) <= 8 for shape in constants if shape)


@pytest.mark.parametrize("rates", RATE_SETS, ids=str)
def test_symmetric_logits_of_a_pair_are_equal(rates):
    result = np.asarray(symmetric_logits(random_logits(rates, (41, 53)), rates))
    offsets = neighbor_offsets(rates).tolist()
    for channel, (dy, dx) in enumerate(offsets):
        rate = channel // 8
        opposite = 8 * rate + offsets[8 * rate : 8 * rate + 8].index([-dy, -dx])
        here = result[:, max(0, -dy) : 41 - max(0, dy), max(0, -dx) : 53 - max(0, dx), channel]
        there = result[:, max(0, dy) : 41 + min(0, dy), max(0, dx) : 53 + min(0, dx), opposite]
        np.testing.assert_array_equal(here, there)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_symmetric_logits_of_half_precision(dtype):
    logits = tf.cast(random_logits(((2, 2),), (7, 9)), dtype)
    result = symmetric_logits(logits, ((2, 2),))
    assert result.dtype == tf.float32
    expected = symmetric_logits(tf.cast(logits, "float32"), ((2, 2),))
    np.testing.assert_array_equal(result, expected)


def test_gradients_against_finite_differences():
    rates, size = ((1, 2),), (4, 5)
    logits = tf.constant(random_logits(rates, size, batch=1))
    weights = random_logits(rates, size, batch=1, seed=1)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = tf.reduce_sum(symmetric_logits(logits, rates) * weights)
    gradient = tape.gradient(loss, logits).numpy()
    for index in np.ndindex(*logits.shape):
        moved = logits.numpy()
        moved[index] += 1.0  # it is linear
        change = np.sum(symmetric_logits(moved, rates) * weights) - loss.numpy()
        np.testing.assert_allclose(gradient[index], change, atol=1e-4)


def test_symmetric_logits_of_wrong_shape():
    with pytest.raises(ConfigError, match=r"16\), 8 channels for each rate. Received: shape"):
        symmetric_logits(np.zeros((1, 3, 3, 8), "float32"), ((1, 1), (2, 2)))
    with pytest.raises(ConfigError, match="Received: shape"):
        symmetric_logits(np.zeros((3, 3, 8), "float32"), ((1, 1),))


def test_layer_with_threshold_and_symmetry_is_saved(tmp_path):
    rates = ((1, 1), (2, 3))
    layer = AffinityPropagation(rates, 3, 4.0, 20.0, threshold=0.5, symmetric=True)
    probabilities = keras.Input((None, None, 5))
    affinity = keras.Input((None, None, 16))
    model = keras.Model([probabilities, affinity], layer([probabilities, affinity]))
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    given = reference.random_probabilities(0, (2, 9, 11, 5)), random_logits(rates, (9, 11), 2)
    affinities = steep_sigmoid(symmetric_logits(given[1], rates), 20.0, 0.5)
    expected = propagate(given[0], affinities, rates, 3, 4.0)
    np.testing.assert_allclose(restored.predict(list(given), verbose=0), expected, atol=1e-6)
