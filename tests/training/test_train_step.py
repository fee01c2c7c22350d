"""A step whose loss or gradients are not finite, on a small model of one convolution."""

import keras
import numpy as np
import pytest

from dilated_affinity.training.optimizers import MultiplierSGD
from dilated_affinity.training.train_step import SkipNonFiniteModel, heads_not_finite

INFINITE = 7.0


class Squared(keras.losses.Loss):
    """The square of the logits; infinite, without any gradient, for a target of `INFINITE`."""

    def call(self, truth, predicted):
        infinite = keras.ops.any(truth == INFINITE)
        return keras.ops.square(predicted) + keras.ops.where(infinite, float("inf"), 0.0)


class RootOfZero(keras.losses.Loss):
    """0 with an infinite gradient for a target of `INFINITE`, else 0 without."""

    def call(self, truth, predicted):
        root = keras.ops.sqrt(keras.ops.abs(predicted) * 0.0)
        return keras.ops.where(keras.ops.any(truth == INFINITE), 1.0, 0.0) * root


class Examples(keras.metrics.Metric):
    """How many examples there were, a whole number as the package's metrics have them."""

    def __init__(self):
        super().__init__()
        self.count = self.add_weight(initializer="zeros", dtype="int64")

    def update_state(self, truth, predicted, sample_weight=None):
        self.count.assign_add(keras.ops.cast(keras.ops.shape(truth)[0], "int64"))

    def result(self):
        return self.count


def make(accumulation=None, **losses):
    inputs = keras.Input((4, 4, 1))
    features = keras.layers.BatchNormalization()(keras.layers.Conv2D(2, 3)(inputs))
    outputs = {name: keras.layers.Conv2D(1, 1, name=name)(features) for name in losses}
    model = SkipNonFiniteModel(inputs, outputs)
    optimizer = MultiplierSGD(0.1, momentum=0.9, gradient_accumulation_steps=accumulation)
    optimizer.build(model.trainable_variables)
    model.compile(optimizer, losses, metrics={name: [Examples()] for name in losses})
    return model


def step(model, images=None, target=0.0, names=("a",)):
    images = np.random.default_rng(0).normal(size=(2, 4, 4, 1)) if images is None else images
    targets = {name: np.full((2, 2, 2, 1), target) for name in names}
    return model.train_on_batch(images.astype(np.float32), targets, return_dict=True)


def state(model):
    skipped = ("iterations", "iteration", "skipped_updates")
    variables = (*model.variables, *model.optimizer.variables)
    return {v.path: np.array(v) for v in variables if not v.path.endswith(skipped)}


def assert_same(first, second):
    assert list(first) == list(second)
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


@pytest.mark.parametrize("wrong", ["image", "loss", "gradient"])
def test_non_finite_step_is_undone(wrong):
    model = make(a=RootOfZero() if wrong == "gradient" else Squared())
    step(model)
    before = state(model)
    images = np.full((2, 4, 4, 1), np.nan if wrong == "image" else 1.0)
    images[0] = 0.5
    logs = step(model, images, 0.0 if wrong == "image" else INFINITE)
    assert np.isnan(logs["loss"])
    assert_same(before, state(model))
    assert not any(np.array(variable).any() for variable in model.metrics_variables)
    assert int(model.optimizer.iterations) == 2 and int(model.optimizer.skipped_updates) == 1


def test_finite_steps_equal_keras():
    model = make(a=Squared())
    step(model)
    step(model, np.full((2, 4, 4, 1), np.inf))
    assert np.isfinite(step(model)["loss"])
    first = make(a=Squared())
    plain = keras.Model(first.input, make(a=Squared())(first.input))
    plain.set_weights(first.get_weights())
    plain.compile(keras.optimizers.SGD(0.1, momentum=0.9), {"a": Squared()})
    step(first), step(first)
    step(plain), step(plain)
    for one, two in zip(first.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-7)


def test_non_finite_accumulated_step():
    model = make(accumulation=2, a=Squared())
    for _ in range(2):
        step(model)
    before = state(model)
    step(model, np.full((2, 4, 4, 1), np.nan))
    step(model)
    after = state(model)
    moving = [name for name in before if "moving" in name]
    assert moving and not np.isnan([after[name].sum() for name in moving]).any()
    assert_same(
        {name: value for name, value in before.items() if name not in moving},
        {name: value for name, value in after.items() if name not in moving},
    )
    assert int(model.optimizer.skipped_updates) == 1
    step(model), step(model)
    assert np.isfinite(sum(value.sum() for value in state(model).values()))


def test_heads_not_finite():
    images = np.ones((2, 4, 4, 1), np.float32)
    model = make(a=Squared(), b=RootOfZero())
    wrong, right = np.full((2, 2, 2, 1), INFINITE), np.zeros((2, 2, 2, 1))
    assert heads_not_finite(model, images, {"a": right, "b": right}) == []
    assert heads_not_finite(model, images, {"a": wrong, "b": right}) == ["a"]
    assert heads_not_finite(model, images, {"a": right, "b": wrong}) == ["b"]
    assert heads_not_finite(model, images * np.nan, {"a": right, "b": right}) == ["a", "b"]
