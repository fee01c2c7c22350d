"""Tests of propagation with early stopping, against a loop that compares labels."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import reference

from dilated_affinity.affinity import early_stopping
from dilated_affinity.affinity.affinities import steep_sigmoid, symmetric_logits
from dilated_affinity.affinity.early_stopping import (
    EarlyStop,
    EarlyStoppingPropagation,
    propagate_until_stable,
)
from dilated_affinity.errors import ConfigError

RATES = ((1, 2), (2, 1))
SHAPE = (3, 7, 9)
CLASSES = 4


@pytest.fixture(scope="module")
def inputs():
    """Three images with increasing affinities, whose labels converge after different times."""
    rng = np.random.default_rng(0)
    exponentials = np.exp(rng.normal(0, 3, (*SHAPE, CLASSES)))
    probabilities = exponentials / exponentials.sum(-1, keepdims=True)
    affinities = rng.uniform(0, 1, (*SHAPE, 16)) ** 2 * [[[[0.02]]], [[[0.3]]], [[[1]]]]
    return probabilities.astype(np.float32), affinities.astype(np.float32)


def loop(probabilities, affinities, iterations, patience, tolerance):
    """The refined probabilities of one image, and the number of iterations."""
    unchanged = done = 0
    while done < iterations and unchanged < patience:
        refined = reference.propagate(probabilities, affinities, RATES, 1, 6.0)
        changed = np.mean(refined.argmax(-1) != probabilities.argmax(-1))
        unchanged = unchanged + 1 if changed <= tolerance else 0
        probabilities, done = refined, done + 1
    return probabilities, done


@pytest.mark.parametrize(
    ("iterations", "patience", "tolerance"),
    [(12, 1, 0.0), (12, 2, 0.0), (12, 1, 0.03), (12, 3, 0.03), (2, 1, 0.0), (0, 1, 0.0)],
)
def test_early_stop_equals_loops(inputs, iterations, patience, tolerance):
    stop = EarlyStop(patience, tolerance)
    refined = propagate_until_stable(*inputs, RATES, iterations, stop=stop)
    expected = [
        loop(*image, iterations, patience, tolerance) for image in zip(*inputs, strict=True)
    ]
    np.testing.assert_allclose(refined, [image for image, _ in expected], atol=1e-5)
    if iterations == 12:
        done = [count for _, count in expected]
        assert len(set(done)) > 1, "all images stop at the same iteration"


def test_early_stop_has_no_gradient(inputs):
    """The gradient is None rather than an error, so that models with this output can be trained."""
    probabilities, affinities = map(tf.constant, inputs)
    with tf.GradientTape() as tape:
        tape.watch([probabilities, affinities])
        refined = propagate_until_stable(probabilities, affinities, RATES, 2)
    assert tape.gradient(refined, [probabilities, affinities]) == [None, None]


def test_number_of_iterations(inputs, monkeypatch):
    taken = []
    compute = early_stopping._propagate_until_stable

    def watched(*arguments):
        refined, steps = compute(*arguments)
        taken.append(int(steps))
        return refined, steps

    monkeypatch.setattr(early_stopping, "_propagate_until_stable", watched)
    propagate_until_stable(*inputs, RATES, 50, stop=EarlyStop(2, 0.03))
    assert taken == [max(loop(*image, 50, 2, 0.03)[1] for image in zip(*inputs, strict=True))]
    assert taken[0] < 50


def test_images_of_a_batch_are_independent(inputs):
    together = propagate_until_stable(*inputs, RATES, 10, stop=EarlyStop(1, 0.03))
    for index in range(3):
        image = [each[index : index + 1] for each in inputs]
        alone = propagate_until_stable(*image, RATES, 10, stop=EarlyStop(1, 0.03))
        np.testing.assert_allclose(together[index], alone[0], atol=1e-6)


def test_masked_pixels_do_not_count(inputs):
    """Masked pixels that converge at once, or are NaN, do not count."""
    stop = EarlyStop(1, 0.03)
    alone = propagate_until_stable(*inputs, RATES, 10, stop=stop)
    for filling in (0.25, np.nan):
        wide = [np.full((3, 30, 40, each.shape[-1]), filling, np.float32) for each in inputs]
        mask = np.zeros((3, 30, 40), bool)
        mask[:, :7, :9] = True
        for frame, values in zip(wide, inputs, strict=True):
            frame[:, :7, :9] = values
        refined = propagate_until_stable(*wide, RATES, 10, valid_mask=mask, stop=stop)
        np.testing.assert_allclose(refined[:, :7, :9], alone, atol=1e-6)


@pytest.mark.parametrize(
    "setting",
    [{"patience": 0}, {"patience": 1.5}, {"patience": True}, {"tolerance": -0.1}]
    + [{"tolerance": 1.0}, {"tolerance": float("nan")}],
    ids=str,
)
def test_invalid_stop_settings_are_refused(setting):
    with pytest.raises(ConfigError, match="Received"):
        EarlyStop(**setting)
    with pytest.raises(ConfigError, match="Received"):
        EarlyStoppingPropagation(RATES, **setting)


@pytest.mark.parametrize("setting", [{"iterations": -1}, {"self_weight": -1.0}], ids=str)
def test_invalid_propagation_settings_are_refused(inputs, setting):
    with pytest.raises(ConfigError, match="Received"):
        propagate_until_stable(*inputs, RATES, **setting)


def test_layer_equals_function(inputs):
    probabilities, affinities = inputs
    layer = EarlyStoppingPropagation(RATES, 9, 4.0, 5.0, 0.4, True, patience=2, tolerance=0.03)
    expected = propagate_until_stable(
        probabilities,
        steep_sigmoid(symmetric_logits(affinities, RATES), 5.0, 0.4),
        RATES,
        9,
        4.0,
        stop=EarlyStop(2, 0.03),
    )
    np.testing.assert_allclose(layer([probabilities, affinities]), expected, atol=1e-6)
    again = keras.layers.deserialize(keras.layers.serialize(layer))
    assert type(again) is EarlyStoppingPropagation
    assert again.get_config() == layer.get_config()
    assert again.stop == EarlyStop(2, 0.03)


def test_layer_in_a_graph_of_unknown_size(inputs):
    layer = EarlyStoppingPropagation(RATES, 9, tolerance=0.03)
    graph = tf.function(
        lambda *given: layer(given),
        input_signature=[tf.TensorSpec((None, None, None, size)) for size in (CLASSES, 16)],
    )
    for batch in (inputs, [each[:1, :5, :6] for each in inputs]):
        np.testing.assert_allclose(graph(*batch), layer(list(batch)), atol=1e-6)
