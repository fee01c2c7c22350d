import keras
import numpy as np
import pytest

from dilated_affinity.affinity.learned import LearnedPropagation
from dilated_affinity.affinity.propagation import AffinityPropagation
from dilated_affinity.errors import ConfigError

RATES = ((1, 2), (2, 1))


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(2, 7, 6, 3)).astype("float32")
    logits = rng.normal(size=(2, 7, 6, 16)).astype("float32")
    return [keras.ops.softmax(scores), keras.ops.convert_to_tensor(logits)]


@pytest.mark.parametrize("symmetric", [False, True])
def test_equals_propagation_with_the_learned_settings(inputs, symmetric):
    learned = {"self_weight": 2.5, "mu": 40.0, "threshold": 0.6}
    layer = LearnedPropagation(RATES, 3, symmetric=symmetric)
    start = AffinityPropagation(RATES, 3, symmetric=symmetric)
    np.testing.assert_allclose(layer(inputs), start(inputs), atol=1e-6)
    layer.log_self_weight.assign(np.log(2.5))
    layer.log_steepness.assign(np.log(np.log(40.0)))
    layer.tau.assign(0.6)
    assert layer.settings() == pytest.approx(learned, rel=1e-5)
    expected = AffinityPropagation(RATES, 3, **learned, symmetric=symmetric)(inputs)
    np.testing.assert_allclose(layer(inputs), expected, atol=2e-6)
    assert np.abs(expected - np.asarray(start(inputs))).max() > 1e-3


def test_gradients_equal_finite_differences(inputs):
    import tensorflow as tf

    layer = LearnedPropagation(RATES, 2)
    mask = np.random.default_rng(1).normal(size=(2, 7, 6, 3)).astype("float32")
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer(inputs) * mask)
    gradients = tape.gradient(total, [each.value for each in layer.trainable_variables])
    for variable, gradient in zip(layer.trainable_variables, gradients, strict=True):
        value, ends = float(variable.numpy()), []
        for step in (0.05, -0.05):
            variable.assign(value + step)
            ends.append(float(tf.reduce_sum(tf.cast(layer(inputs), "float64") * mask)))
        variable.assign(value)
        assert float(gradient) == pytest.approx((ends[0] - ends[1]) / 0.1, rel=0.02, abs=1e-3)
        assert abs(float(gradient)) > 1e-3


def test_is_saved_with_its_weights(inputs, tmp_path):
    places = [keras.Input((None, None, 3)), keras.Input((None, None, 16))]
    layer = LearnedPropagation(RATES, 2, self_weight=4.0)
    model = keras.Model(places, layer(places))
    layer.tau.assign(0.25)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(inputs), model(inputs))
    assert again.layers[-1].settings() == layer.settings()


def test_lambda_of_zero_is_refused():
    with pytest.raises(ConfigError, match=r"above 0 to be learned. Received: self_weight=0"):
        LearnedPropagation(RATES, self_weight=0)
