"""Tests of propagation against loops over pixels, and of the channel order from end to end."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import reference

from dilated_affinity.affinity import targets
from dilated_affinity.affinity.affinities import affinities_from_targets, steep_sigmoid
from dilated_affinity.affinity.forms import lanes_grid
from dilated_affinity.affinity.geometry import neighbor_offsets
from dilated_affinity.affinity.loss import AffinityLoss
from dilated_affinity.affinity.propagation import AffinityPropagation, propagate
from dilated_affinity.affinity.statistics import AffinityStatistics
from dilated_affinity.affinity.targets import affinity_targets
from dilated_affinity.errors import ConfigError
from dilated_affinity.models.deeplab import AffinityHead

RATE_SETS = [((1, 1),), ((2, 3), (3, 2)), ((8, 8), (12, 24), (24, 12), (16, 16))]
SHAPE = (3, 13, 17)
CLASSES = 5


def inputs(rates, shape=SHAPE, classes=CLASSES, seed=0):
    """Probabilities and affinities, some of the latter exactly 0 or 1."""
    probabilities = reference.random_probabilities(seed, (*shape, classes))
    affinities = np.random.default_rng(seed).normal(0.5, 0.6, (*shape, 8 * len(rates)))
    return probabilities, affinities.clip(0, 1).astype(np.float32)


def loops(probabilities, affinities, rates, iterations, self_weight=6.0):
    return np.stack(
        [
            reference.propagate(p, a, rates, iterations, self_weight)
            for p, a in zip(probabilities, affinities, strict=True)
        ]
    )


def check(rates, iterations=10, self_weight=6.0, **options):
    probabilities, affinities = inputs(rates, **options)
    refined = propagate(probabilities, affinities, rates, iterations, self_weight)
    assert refined.dtype == tf.float32
    expected = loops(probabilities, affinities, rates, iterations, self_weight)
    np.testing.assert_allclose(refined, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rates", RATE_SETS, ids=str)
def test_propagation_equals_loops(rates):
    check(rates)


@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_iterations(iterations):
    check(RATE_SETS[1], iterations)


@pytest.mark.parametrize("self_weight", [0, 0.5, 100])
def test_self_weights(self_weight):
    check(RATE_SETS[1], 3, self_weight)


@pytest.mark.parametrize("classes", [1, 2, 8, 9])
def test_class_numbers(classes):
    check(RATE_SETS[0], 2, classes=classes, shape=(1, 4, 5))


def test_odd_image_equals_loops():
    check(((5, 24),), 2, shape=(1, 97, 131))


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 6), (1, 6, 1)])
def test_tiny_images(shape):
    check(RATE_SETS[1], 3, shape=shape)


def test_zero_iterations_return_the_input():
    probabilities, affinities = inputs(RATE_SETS[0])
    refined = propagate(probabilities, affinities, RATE_SETS[0], iterations=0)
    np.testing.assert_array_equal(refined, probabilities)


@pytest.mark.parametrize("self_weight", [0, 6])
def test_pixel_without_weights_is_unchanged(self_weight):
    probabilities, affinities = inputs(RATE_SETS[0])
    affinities[:, 4, 6] = 0
    refined = propagate(probabilities, affinities, RATE_SETS[0], 10, self_weight)
    np.testing.assert_allclose(refined[:, 4, 6], probabilities[:, 4, 6], atol=1e-6)


@pytest.mark.parametrize("self_weight", [0, 6])
def test_neighbors_outside_the_image_are_ignored(self_weight):
    probabilities, affinities = inputs(((20, 20),))
    refined = propagate(probabilities, affinities, ((20, 20),), 10, self_weight)
    np.testing.assert_allclose(refined, probabilities, atol=1e-6)


def test_one_sided_affinity():
    """Eq. 6 computed by hand for one pair: only the left pixel has an affinity."""
    probabilities = np.array([[[[0.6, 0.4], [0.0, 1.0]]]], np.float32)
    affinities = np.zeros((1, 1, 2, 8), np.float32)
    affinities[0, 0, 0, 4] = 0.5
    refined = propagate(probabilities, affinities, ((1, 1),), 1)
    total = 6 * 0.6 + 0.5
    np.testing.assert_allclose(
        refined[0, 0, 0], [6 * 0.6 * 0.6 / total, (6 * 0.6 * 0.4 + 0.5) / total], rtol=1e-6
    )
    np.testing.assert_allclose(refined[0, 0, 1], [0, 1], atol=1e-7)


@pytest.mark.parametrize("iterations", [1, 10, 100])
@pytest.mark.parametrize("self_weight", [0, 6])
def test_probabilities_sum_to_1(iterations, self_weight):
    probabilities, affinities = inputs(RATE_SETS[1])
    refined = propagate(probabilities, affinities, RATE_SETS[1], iterations, self_weight)
    np.testing.assert_allclose(np.sum(refined, axis=-1), 1, atol=1e-5)
    assert np.min(refined) >= 0


def test_probabilities_of_0_and_1_stay_finite():
    probabilities = np.eye(3, dtype=np.float32)[np.zeros((1, 4, 4), int)]
    for affinity in (0.0, 1.0):
        refined = propagate(probabilities, np.full((1, 4, 4, 8), affinity), ((1, 1),), 5, 0)
        np.testing.assert_allclose(refined, probabilities, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_half_precision_is_computed_in_float32(dtype):
    probabilities, affinities = (tf.cast(each, dtype) for each in inputs(RATE_SETS[0]))
    refined = propagate(probabilities, affinities, RATE_SETS[0], 2)
    assert refined.dtype == tf.float32
    same = [tf.cast(each, "float32") for each in (probabilities, affinities)]
    np.testing.assert_allclose(refined, propagate(*same, RATE_SETS[0], 2), atol=1e-6)


# valid_mask.


def padded_inputs(rates, corner):
    """Inputs, and the same inputs inside a larger frame of other values with its mask."""
    small = inputs(rates)
    large = inputs(rates, shape=(3, 20, 22), seed=1)
    mask = np.zeros((3, 20, 22), bool)
    inner = (slice(None), slice(corner, corner + 13), slice(corner, corner + 17))
    mask[inner] = True
    for frame, values in zip(large, small, strict=True):
        frame[inner] = values
    return small, large, mask, inner


@pytest.mark.parametrize("corner", [0, 4])
@pytest.mark.parametrize("self_weight", [0, 6])
def test_padded_and_masked_equals_unpadded(corner, self_weight):
    rates = RATE_SETS[1]
    small, large, mask, inner = padded_inputs(rates, corner)
    refined = propagate(*large, rates, 10, self_weight, valid_mask=mask)
    alone = propagate(*small, rates, 10, self_weight)
    np.testing.assert_allclose(np.asarray(refined)[inner], alone, atol=1e-6, rtol=0)


def test_pixels_outside_the_mask_keep_their_probabilities():
    rates = RATE_SETS[1]
    _, large, mask, _ = padded_inputs(rates, 4)
    refined = propagate(*large, rates, 10, valid_mask=mask)
    np.testing.assert_array_equal(np.asarray(refined)[~mask], large[0][~mask])


def test_each_image_has_its_own_mask():
    rates = RATE_SETS[0]
    probabilities, affinities = inputs(rates)
    mask = np.zeros(SHAPE, bool)
    for index, (height, width) in enumerate([(13, 17), (7, 9), (2, 17)]):
        mask[index, :height, :width] = True
    refined = np.asarray(propagate(probabilities, affinities, rates, 3, valid_mask=mask))
    for index, (height, width) in enumerate([(13, 17), (7, 9), (2, 17)]):
        crop = (index, slice(height), slice(width))
        expected = reference.propagate(probabilities[crop], affinities[crop], rates, 3)
        np.testing.assert_allclose(refined[crop], expected, atol=1e-5)


def test_mask_with_a_hole():
    rates = RATE_SETS[0]
    probabilities, affinities = inputs(rates)
    mask = np.ones(SHAPE, bool)
    mask[:, 5, 6] = False
    silent = affinities.copy()
    for channel, (s, t) in enumerate(reference.offsets(rates)):
        silent[:, 5 - s, 6 - t, channel] = 0
    refined = np.asarray(propagate(probabilities, affinities, rates, 3, valid_mask=mask))
    expected = loops(probabilities, silent, rates, 3)
    np.testing.assert_allclose(refined[mask], expected[mask], atol=1e-5)


def test_full_and_empty_masks():
    probabilities, affinities = inputs(RATE_SETS[0])
    everything = propagate(probabilities, affinities, RATE_SETS[0], valid_mask=np.ones(SHAPE, bool))
    plain = propagate(probabilities, affinities, RATE_SETS[0])
    np.testing.assert_allclose(everything, plain, atol=1e-6)
    nothing = propagate(probabilities, affinities, RATE_SETS[0], valid_mask=np.zeros(SHAPE, bool))
    np.testing.assert_array_equal(nothing, probabilities)


def test_non_finite_values_outside_the_mask():
    rates = RATE_SETS[1]
    small, large, mask, inner = padded_inputs(rates, 4)
    for frame in large:
        frame[~mask] = np.nan
    refined = propagate(*large, rates, 10, valid_mask=mask)
    np.testing.assert_allclose(
        np.asarray(refined)[inner], propagate(*small, rates, 10), atol=1e-6, rtol=0
    )


# Errors.


def zeros(*shape):
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    "probabilities, affinities, mask",
    [
        ((4, 4, 2), (4, 4, 8), None),
        ((1, 4, 4, 2), (4, 4, 8), None),
        ((1, 4, 4, 2), (1, 4, 4, 16), None),
        ((1, 4, 4, 2), (1, 4, 4, 7), None),
        ((1, 4, 4, 2), (1, 5, 4, 8), None),
        ((1, 4, 4, 2), (1, 4, 1, 8), None),
        ((2, 4, 4, 2), (1, 4, 4, 8), None),
        ((1, 4, 4, 2), (1, 4, 4, 8), (1, 4, 4, 1)),
        ((1, 4, 4, 2), (1, 4, 4, 8), (1, 4, 5)),
        ((1, 4, 4, 2), (1, 4, 4, 8), (4, 4)),
    ],
)
def test_mismatched_shapes_are_refused(probabilities, affinities, mask):
    with pytest.raises(ValueError, match="Received"):
        propagate(
            zeros(*probabilities),
            zeros(*affinities),
            ((1, 1),),
            valid_mask=None if mask is None else np.ones(mask, bool),
        )


@pytest.mark.parametrize(
    "setting",
    [
        {"iterations": -1},
        {"iterations": 1.5},
        {"self_weight": -1},
        {"self_weight": float("nan")},
        {"rates": ()},
        {"rates": ((0, 1),)},
    ],
    ids=str,
)
def test_invalid_settings_are_refused(setting):
    with pytest.raises(ConfigError, match="Received"):
        propagate(zeros(1, 4, 4, 2), zeros(1, 4, 4, 8), **{"rates": ((1, 1),), **setting})


# Eq. 7, the layer, ground truth.


@pytest.mark.parametrize("mu", [1.5, np.e, 7.0])
def test_steep_sigmoid_is_equation_7(mu):
    logits = np.linspace(-6, 6, 25)
    expected = [reference.steep_sigmoid(x, mu) for x in logits]
    np.testing.assert_allclose(steep_sigmoid(logits, mu), expected, rtol=1e-5)


def test_steep_sigmoid_defaults_to_7():
    np.testing.assert_allclose(steep_sigmoid(np.array([1.0, -1.0, 0.0])), [7 / 8, 1 / 8, 1 / 2])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_steep_sigmoid_is_float32_and_stable(dtype):
    affinities = steep_sigmoid(tf.constant([-1e4, 0, 1e4], dtype))
    assert affinities.dtype == tf.float32
    assert np.asarray(affinities).tolist() == [0, 0.5, 1]


@pytest.mark.parametrize("mu", [1, 0.5, -7, float("nan")])
def test_mu_of_at_most_1_is_refused(mu):
    with pytest.raises(ConfigError, match="mu"):
        steep_sigmoid(np.zeros(3), mu)


def test_targets_as_affinities():
    affinities = affinities_from_targets(np.array([0, 1, 255], np.uint8))
    assert affinities.dtype == tf.float32
    assert np.asarray(affinities).tolist() == [0, 1, 0]


def test_layer_equals_propagate():
    probabilities, _ = inputs(RATE_SETS[1])
    logits = np.random.default_rng(0).normal(0, 2, (*SHAPE, 16)).astype(np.float32)
    layer = AffinityPropagation(RATE_SETS[1], iterations=3, self_weight=4.0, mu=5.0)
    affinities = 1 / (1 + np.exp(-logits * np.log(5.0)))
    expected = loops(probabilities, affinities, RATE_SETS[1], 3, 4.0)
    np.testing.assert_allclose(layer([probabilities, logits]), expected, atol=1e-5)


def test_layer_config_round_trip():
    layer = AffinityPropagation(RATE_SETS[1], iterations=3, self_weight=4.0, mu=5.0, name="mine")
    again = keras.layers.deserialize(keras.layers.serialize(layer))
    assert type(again) is AffinityPropagation
    assert again.get_config() == layer.get_config()
    assert (again.rates, again.iterations, again.self_weight, again.mu) == (RATE_SETS[1], 3, 4, 5)


def test_layer_keeps_float32_under_mixed_precision():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        layer = AffinityPropagation(((1, 1),), iterations=2)
        probabilities, affinities = inputs(((1, 1),))
        refined = layer([probabilities, affinities])
    finally:
        keras.config.set_dtype_policy(before)
    assert refined.dtype == tf.float32
    assert np.array_equal(refined, AffinityPropagation(((1, 1),), 2)([probabilities, affinities]))


def test_layer_in_a_functional_model_of_any_size():
    semantic, affinity = keras.Input((None, None, 3)), keras.Input((None, None, 8))
    model = keras.Model(
        [semantic, affinity], AffinityPropagation(((1, 1),), 2)([semantic, affinity])
    )
    assert model.output_shape == (None, None, None, 3)
    for shape in ((1, 5, 6), (2, 7, 4)):
        batch = inputs(((1, 1),), shape, classes=3)
        np.testing.assert_allclose(
            model.predict(list(batch), verbose=0),
            propagate(batch[0], steep_sigmoid(batch[1]), ((1, 1),), 2),
            atol=1e-6,
        )


@pytest.mark.parametrize(
    "setting", [{"iterations": -1}, {"self_weight": -1.0}, {"mu": 1.0}, {"rates": ()}], ids=str
)
def test_layer_refuses_invalid_settings(setting):
    with pytest.raises(ConfigError):
        AffinityPropagation(**{"rates": ((1, 1),), **setting})


def noisy_prediction(labels, seed=0):
    """Probabilities that are correct at most pixels of the label maps."""
    scores = np.random.default_rng(seed).normal(0, 1, (*labels.shape, CLASSES))
    scores += 1.5 * np.eye(CLASSES)[labels]
    exponentials = np.exp(scores)
    return (exponentials / exponentials.sum(-1, keepdims=True)).astype(np.float32)


def test_ground_truth_affinity_corrects_noise():
    labels = reference.random_labels(0, SHAPE, CLASSES, void_share=0)
    noisy = noisy_prediction(labels)
    affinities = affinities_from_targets(affinity_targets(labels, ((1, 1), (2, 2))))
    errors = [
        np.mean(np.argmax(propagate(noisy, affinities, ((1, 1), (2, 2)), n), -1) != labels)
        for n in (0, 1, 10)
    ]
    assert errors[0] > 0.1
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < errors[0] / 4


# One channel order: targets, head and propagation.

ORDER_RATES = ((1, 2), (3, 1))
"""Neither square nor transposes of each other, so that no channel permutation is a symmetry."""


class PermutedHead:
    """A trained head with reordered channels."""

    def __init__(self, head, order):
        self.rates, self.head, self.order = head.rates, head, order

    def __call__(self, features):
        return tf.gather(self.head(features), self.order, axis=-1)


def refine_end_to_end(order_of_head=None):
    """Labels -> targets -> a head trained on them for one step -> propagation with its logits.

    Features are one-hot positions, so a linear head can learn any target; the sign of the gradient
    after one step gives "same" or "different" for every pair.
    """
    labels = reference.random_labels(12, (1, 9, 11), CLASSES, void_share=0)
    features = np.eye(9 * 11, dtype=np.float32).reshape(1, 9, 11, 99)
    head = AffinityHead(ORDER_RATES)
    head.build(features.shape)
    head.kernel.assign(tf.zeros_like(head.kernel))
    statistics = AffinityStatistics.from_labels(labels, ORDER_RATES)
    with tf.GradientTape() as tape:
        loss = AffinityLoss(statistics)(affinity_targets(labels, ORDER_RATES), head(features))
    head.kernel.assign_sub(1e6 * tape.gradient(loss, head.kernel))
    if order_of_head is not None:
        head = PermutedHead(head, order_of_head)
    refined = AffinityPropagation(head.rates, iterations=3)(
        [noisy_prediction(labels), head(features)]
    )
    truth = reference.affinity_targets(labels[0], ORDER_RATES) == 1
    expected = reference.propagate(noisy_prediction(labels)[0], truth, ORDER_RATES, 3)
    return np.abs(refined[0] - expected).max()


@pytest.fixture
def uncompiled():
    """Disables compilation, since functions compiled before or under a patch must not be reused."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


PERMUTATIONS = {
    "two neighbours swapped": [0, 2, 1, *range(3, 16)],
    "rates swapped": [*range(8, 16), *range(8)],
    "column by column": [0, 3, 5, 1, 6, 2, 4, 7, *range(8, 16)],
    "mirrored": [2, 1, 0, 4, 3, 7, 6, 5, *range(8, 16)],
    "reversed": [*range(7, -1, -1), *range(8, 16)],
}
permutations = pytest.mark.parametrize("order", PERMUTATIONS.values(), ids=PERMUTATIONS)


def test_channel_order_from_targets_to_propagation():
    assert refine_end_to_end() < 1e-4


def test_channel_order_uncompiled(uncompiled):
    assert refine_end_to_end() < 1e-4


@permutations
@pytest.mark.parametrize("user", [targets, lanes_grid], ids=["targets", "propagation"])
def test_different_channel_order_in_one_module_is_detected(user, order, uncompiled, monkeypatch):
    monkeypatch.setattr(user, "neighbor_offsets", lambda rates: neighbor_offsets(rates)[order])
    assert refine_end_to_end() > 1e-2


@permutations
def test_different_channel_order_of_the_head_is_detected(order):
    assert refine_end_to_end(order_of_head=order) > 1e-2


@permutations
@pytest.mark.parametrize("user", [targets, lanes_grid], ids=["targets", "propagation"])
def test_channel_order_of_ground_truth_refinement(user, order, uncompiled, monkeypatch):
    labels = reference.random_labels(12, (1, 9, 11), CLASSES, void_share=0)
    truth = reference.affinity_targets(labels[0], ORDER_RATES) == 1
    expected = reference.propagate(noisy_prediction(labels)[0], truth, ORDER_RATES, 3)

    def error():
        affinities = affinities_from_targets(affinity_targets(labels, ORDER_RATES))
        refined = propagate(noisy_prediction(labels), affinities, ORDER_RATES, 3)
        return np.abs(refined[0] - expected).max()

    assert error() < 1e-5
    monkeypatch.setattr(user, "neighbor_offsets", lambda rates: neighbor_offsets(rates)[order])
    assert error() > 1e-2
