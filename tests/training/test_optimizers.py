"""The recipe's optimizer and schedule, their effect on a variable computed by hand."""

import keras
import numpy as np
import pytest

from dilated_affinity.training.optimizers import MultiplierSGD, WarmupPolynomialDecay


def variable(value, name):
    return keras.Variable(np.float32(value), name=name)


def test_schedule_by_hand():
    schedule = WarmupPolynomialDecay(0.007, 100, 0.9, warmup_steps=10, warmup_learning_rate=1e-4)
    for step in (0, 3, 9):
        risen = 1e-4 + (0.007 - 1e-4) * step / 10
        decayed = 0.007 * (1 - step / 100) ** 0.9
        assert float(schedule(step)) == pytest.approx(min(risen, decayed), rel=1e-5)
    for step in (10, 50, 99, 100, 120):
        decayed = 0.007 * max(1 - step / 100, 0) ** 0.9
        assert float(schedule(step)) == pytest.approx(decayed, rel=1e-5)


def test_schedule_without_warmup_equals_keras():
    ours = WarmupPolynomialDecay(0.02, 70, 0.9)
    theirs = keras.optimizers.schedules.PolynomialDecay(0.02, 70, 0.0, power=0.9)
    for step in (0, 1, 35, 69, 70, 80):
        np.testing.assert_allclose(ours(step), theirs(step), rtol=1e-6)


def test_multiplier_momentum_and_schedule_by_hand():
    first, second = variable([1.0, -2.0], "first"), variable([3.0], "second")
    optimizer = MultiplierSGD(
        WarmupPolynomialDecay(0.1, 4, 1.0), momentum=0.9, multipliers={second.path: 5.0}
    )
    optimizer.build([first, second])
    expected, velocity = [np.array([1.0, -2.0]), np.array([3.0])], [0.0, 0.0]
    for step in range(3):
        gradients = [np.array([0.5, 1.0]) * (step + 1), np.array([-2.0])]
        optimizer.apply([keras.ops.convert_to_tensor(g, "float32") for g in gradients])
        rate = 0.1 * (1 - step / 4)
        for index, factor in enumerate((1.0, 5.0)):
            velocity[index] = 0.9 * velocity[index] - rate * factor * gradients[index]
            expected[index] = expected[index] + velocity[index]
    np.testing.assert_allclose(first, expected[0], rtol=1e-5)
    np.testing.assert_allclose(second, expected[1], rtol=1e-5)


def test_accumulation_by_hand():
    """Three batches make a step of their mean gradient, at the learning rate of that step."""
    weight = variable([1.0], "weight")
    optimizer = MultiplierSGD(
        WarmupPolynomialDecay(0.1, 4, 1.0, accumulation=3),
        momentum=0.9,
        multipliers={weight.path: 2.0},
        gradient_accumulation_steps=3,
    )
    optimizer.build([weight])
    expected, velocity = 1.0, 0.0
    for step in range(2):
        gradients = [1.0 + step, 2.0, 6.0]
        for count, gradient in enumerate(gradients):
            np.testing.assert_allclose(weight, [expected], rtol=1e-5, err_msg=f"{step} {count}")
            optimizer.apply([keras.ops.convert_to_tensor([gradient], "float32")])
        velocity = 0.9 * velocity - 0.1 * (1 - step / 4) * 2.0 * np.mean(gradients)
        expected += velocity
    np.testing.assert_allclose(weight, [expected], rtol=1e-5)
    assert int(optimizer.iterations) == 2


@pytest.mark.parametrize(
    "each",
    [
        WarmupPolynomialDecay(0.1, 30, 0.5, 7, 0.01, 2),
        MultiplierSGD(0.1, momentum=0.5, multipliers={"w": 3.0}),
    ],
    ids=lambda each: type(each).__name__,
)
def test_keras_serialisation(each):
    copy = type(each).from_config(each.get_config())
    assert copy.get_config() == each.get_config()


def test_unknown_variable_in_multipliers():
    optimizer = MultiplierSGD(0.1, multipliers={"other": 2.0})
    with pytest.raises(ValueError, match="other"):
        optimizer.build([variable([1.0], "weight")])
