"""Tests of the affinity loss against loops, and of its gradient against finite differences."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import reference

from dilated_affinity.affinity.loss import AffinityLoss
from dilated_affinity.affinity.statistics import WEIGHTINGS, AffinityStatistics
from dilated_affinity.errors import ConfigError
from dilated_affinity.models.resize import AlignedResize

RATE_SETS = [((1, 1),), ((2, 3), (3, 2)), ((1, 1), (4, 6), (6, 4), (8, 8))]
SHAPE = (3, 13, 17)
SETTINGS = [(weighting, 2) for weighting in WEIGHTINGS]
SETTINGS += [("sqrt_neighbor", gamma) for gamma in (0, 1, 1.5)]


def statistics_of(rates, seed=9):
    """Statistics of labels other than the batch's, in which some of its categories may be empty."""
    return AffinityStatistics.from_labels([reference.random_labels(seed, (9, 12))], rates)


def batch(labels, rates, seed=0):
    """Targets computed by loops, and float32 logits."""
    logits = np.random.default_rng(seed).normal(0, 2, (*labels.shape, 8 * len(rates)))
    return reference.batch_targets(labels, rates), logits.astype(np.float32)


def expected_loss(labels, logits, statistics, weighting="sqrt_neighbor", gamma=2.0):
    return reference.affinity_loss(
        labels, logits, statistics.rates, statistics.pixels, statistics.pairs, weighting, gamma
    )


def check(labels, rates, weighting="sqrt_neighbor", gamma=2.0):
    statistics = statistics_of(rates)
    targets, logits = batch(labels, rates)
    loss = AffinityLoss(statistics, weighting, gamma)(targets, logits)
    assert loss.shape == () and loss.dtype == tf.float32
    expected = expected_loss(labels, logits, statistics, weighting, gamma)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-7)


@pytest.fixture(scope="module")
def labels():
    return reference.random_labels(1, SHAPE)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("rates", RATE_SETS, ids=str)
def test_loss_equals_loops(labels, rates, weighting):
    check(labels, rates, weighting)


@pytest.mark.parametrize("gamma", [0, 1, 1.5, 2, 5])
def test_any_gamma_equals_loops(labels, gamma):
    check(labels, RATE_SETS[1], "neighbor", gamma)


def test_one_image_all_void(labels):
    labels = labels.copy()
    labels[1] = 255
    check(labels, RATE_SETS[1])


def test_void_borders(labels):
    labels = labels.copy()
    labels[:, [0, -1]] = labels[:, :, [0, -1]] = 255
    check(labels, RATE_SETS[1])


def test_no_void():
    check(reference.random_labels(2, SHAPE, void_share=0), RATE_SETS[1])


@pytest.mark.parametrize("rates", [((8, 8), (5, 24))], ids=str)
def test_odd_image_equals_loops(rates):
    check(reference.random_labels(3, (1, 97, 131)), rates)


def test_weighting_none_is_sigmoid_cross_entropy():
    labels = reference.random_labels(2, (1, 6, 7), void_share=0)
    rates = ((1, 1),)
    targets, logits = batch(labels, rates)
    crosses = np.log1p(np.exp(np.where(targets == 1, -logits, logits)))
    expected = np.sum(np.where(targets == 255, 0, crosses)) / (8 * 6 * 7)
    for gamma in (0.0, 2.0):
        loss = AffinityLoss(statistics_of(rates), "none", gamma)(targets, logits)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_void_batch_has_zero_loss_and_gradient(weighting):
    targets = np.full((2, 3, 4, 8), 255, np.uint8)
    logits = tf.Variable(np.random.default_rng(0).normal(size=targets.shape).astype("float32"))
    with tf.GradientTape() as tape:
        loss = AffinityLoss(statistics_of(((1, 1),)), weighting)(targets, logits)
    assert float(loss) == 0
    assert not np.any(tape.gradient(loss, logits))


def test_single_pixel_has_zero_loss():
    check(np.zeros((1, 1, 1), np.uint8), ((1, 1),))


def test_pixel_without_pairs_is_not_counted():
    """Its targets equal those of a void pixel; the divisor differs from a count of labels."""
    labels = np.array([[[0, 0, 255, 1]]], np.uint8)
    targets, logits = batch(labels, ((1, 1),))
    statistics = statistics_of(((1, 1),))
    by_labels = expected_loss(labels, logits, statistics)
    loss = AffinityLoss(statistics)(targets, logits)
    np.testing.assert_allclose(loss, by_labels * 3 / 2, rtol=1e-5)


@pytest.mark.parametrize("weighting, gamma", SETTINGS)
def test_gradient_equals_finite_differences(weighting, gamma):
    rates = ((1, 1), (1, 2))
    labels = reference.random_labels(4, (1, 3, 5), num_classes=3)
    statistics = statistics_of(rates)
    targets, start = batch(labels, rates)
    logits = tf.Variable(start)
    with tf.GradientTape() as tape:
        loss = AffinityLoss(statistics, weighting, gamma)(targets, logits)
    expected = reference.finite_differences(
        lambda point: expected_loss(labels, point, statistics, weighting, gamma), start
    )
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(tape.gradient(loss, logits), expected, atol=1e-5, rtol=1e-4)


def test_gradient_of_weighted_sum_of_losses():
    """The closed form must be scaled by the upstream gradient."""
    rates = ((1, 1),)
    targets, start = batch(reference.random_labels(4, (1, 3, 5)), rates)
    logits, function = tf.Variable(start), AffinityLoss(statistics_of(rates))
    with tf.GradientTape(persistent=True) as tape:
        loss = function(targets, logits)
        scaled = 1.5 * function(targets, logits) + tf.reduce_sum(logits)
    expected = 1.5 * tape.gradient(loss, logits) + 1
    np.testing.assert_allclose(tape.gradient(scaled, logits), expected, rtol=1e-6)


@pytest.mark.parametrize("weighting, gamma", SETTINGS)
@pytest.mark.parametrize("size", [1e4, 1e30])
def test_extreme_logits_stay_finite(weighting, gamma, size):
    rates = ((1, 1), (1, 2))
    labels = reference.random_labels(5, (1, 3, 5))
    targets = reference.batch_targets(labels, rates)
    signs = np.random.default_rng(0).choice([-1, 0, 1], targets.shape)
    logits = tf.Variable((size * signs).astype(np.float32))
    with tf.GradientTape() as tape:
        loss = AffinityLoss(statistics_of(rates), weighting, gamma)(targets, logits)
    assert np.isfinite(loss) and loss > 1
    assert np.all(np.isfinite(tape.gradient(loss, logits)))


@pytest.mark.parametrize("gamma", [0, 2])
def test_loss_of_very_large_logits(gamma):
    targets = np.full((1, 1, 2, 8), 255, np.uint8)
    targets[0, 0, 0, 4] = targets[0, 0, 1, 3] = 1
    logits = np.zeros((1, 1, 2, 8), np.float32)
    logits[0, 0, 0, 4], logits[0, 0, 1, 3] = -1e4, 1e4
    statistics = statistics_of(((1, 1),))
    loss = AffinityLoss(statistics, gamma=gamma)(targets, logits)
    np.testing.assert_allclose(loss, 1e4 / 16, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_half_precision_is_computed_in_float32(dtype):
    rates = ((1, 1),)
    labels = reference.random_labels(5, (2, 6, 7))
    targets, logits = batch(labels, rates)
    logits = tf.cast(logits, dtype)
    loss = AffinityLoss(statistics_of(rates))(targets, logits)
    assert loss.dtype == tf.float32
    rounded = tf.cast(logits, "float64").numpy()
    np.testing.assert_allclose(loss, expected_loss(labels, rounded, statistics_of(rates)), 1e-5)


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_targets_of_other_types(dtype):
    rates = ((1, 1),)
    targets, logits = batch(reference.random_labels(5, (2, 6, 7)), rates)
    loss = AffinityLoss(statistics_of(rates))
    np.testing.assert_allclose(loss(targets.astype(dtype), logits), loss(targets, logits))


def test_weight_of_a_single_pixel():
    """Eq. 5 computed by hand for a pixel with 5 of 8 neighbours of its class."""
    targets = np.full((1, 1, 1, 8), 1, np.uint8)
    targets[..., :3] = 0
    pixels = np.array([[1, 1, 1, 1, 1, 4, 1, 1, 100]])
    statistics = AffinityStatistics(((1, 1),), pixels, np.array([[3, 5]]))
    at_half = 0.25 * np.log(2)
    for weighting, weight in (("neighbor", 25), ("sqrt_neighbor", 5)):
        loss = AffinityLoss(statistics, weighting)(targets, np.zeros((1, 1, 1, 8)))
        np.testing.assert_allclose(loss, weight * at_half, rtol=1e-6)
    loss = AffinityLoss(statistics, "signal")(targets, np.zeros((1, 1, 1, 8)))
    np.testing.assert_allclose(loss, (5 + 3 * 5 / 3) / 8 * at_half, rtol=1e-6)


def test_mean_of_per_pixel_losses_is_the_loss(labels):
    rates = ((2, 3), (3, 2))
    targets, logits = batch(labels, rates)
    statistics = statistics_of(rates)
    each = AffinityLoss(statistics, reduction="none")(targets, logits)
    assert each.shape == SHAPE
    assert not np.any(np.asarray(each)[labels == 255])
    np.testing.assert_allclose(np.mean(each), AffinityLoss(statistics)(targets, logits), 1e-5)


def test_sample_weight(labels):
    rates = ((2, 3), (3, 2))
    targets, logits = batch(labels, rates)
    loss, halves = AffinityLoss(statistics_of(rates)), np.full(SHAPE, 0.5, np.float32)
    np.testing.assert_allclose(
        loss(targets, logits, sample_weight=halves), loss(targets, logits) / 2, rtol=1e-5
    )


@pytest.mark.parametrize("channels", [8, 24])
def test_wrong_number_of_channels_is_refused(channels):
    loss = AffinityLoss(statistics_of(RATE_SETS[1]))
    right, wrong = np.zeros((1, 2, 2, 16)), np.zeros((1, 2, 2, channels))
    with pytest.raises(ValueError, match="y_true"):
        loss(wrong, wrong)
    with pytest.raises(ValueError, match="y_pred"):
        loss(right, wrong)


@pytest.mark.parametrize("gamma", [-1, float("nan")])
def test_negative_gamma_is_refused(gamma):
    with pytest.raises(ConfigError, match="gamma"):
        AffinityLoss(statistics_of(((1, 1),)), gamma=gamma)


def test_unknown_weighting_of_the_loss_is_refused():
    with pytest.raises(ConfigError, match="weighting"):
        AffinityLoss(statistics_of(((1, 1),)), "sqrt")


def test_serialization_of_the_loss(labels):
    rates = ((2, 3), (3, 2))
    targets, logits = batch(labels, rates)
    loss = AffinityLoss(statistics_of(rates), "neighbor", 1.5, name="mine")
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert type(again) is AffinityLoss
    assert again.get_config() == loss.get_config()
    assert (again.name, again.weighting, again.gamma) == ("mine", "neighbor", 1.5)
    assert float(again(targets, logits)) == float(loss(targets, logits))


@pytest.mark.parametrize("stride", [1, 4])
def test_affinity_reduction_sum(stride):
    rates = RATE_SETS[1]
    labels = reference.random_labels(2, (1, 17, 17))
    statistics = statistics_of(rates)
    targets = reference.batch_targets(labels, rates)
    side = -(-17 // stride)
    logits = np.random.default_rng(0).normal(size=(1, side, side, 8 * len(rates)))
    logits = tf.Variable(logits.astype(np.float32))
    found = {}
    for reduction in ("mean", "sum"):
        loss = AffinityLoss(statistics, logits_stride=stride, affinity_reduction=reduction)
        again = AffinityLoss.from_config(loss.get_config())
        assert again.affinity_reduction == reduction
        with tf.GradientTape() as tape:
            value = again(targets, logits)
        found[reduction] = float(value), tape.gradient(value, logits).numpy()
    for mean, total in zip(found["mean"], found["sum"], strict=True):
        np.testing.assert_allclose(total, 8 * len(rates) * mean, rtol=1e-5)
    if stride == 1:
        arguments = labels, logits.numpy(), rates, statistics.pixels, statistics.pairs
        mean = reference.affinity_loss(*arguments, "sqrt_neighbor", 2)
        np.testing.assert_allclose(found["sum"][0], 8 * len(rates) * mean, rtol=1e-4)


def test_unknown_affinity_reduction_is_refused():
    with pytest.raises(ConfigError, match="Received: affinity_reduction='max'"):
        AffinityLoss(statistics_of(((1, 1),)), affinity_reduction="max")


def test_from_config_reads_get_config():
    loss = AffinityLoss(statistics_of(((2, 3), (3, 2))), "signal", 1.0)
    assert AffinityLoss.from_config(loss.get_config()).get_config() == loss.get_config()


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("stride", [1, 4])
def test_loss_of_unknown_size_inside_a_function(stride, jit_compile):
    rates = ((1, 1), (2, 3))
    loss = AffinityLoss(statistics_of(rates), logits_stride=stride)

    def value_and_gradient(targets, logits):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = loss(targets, logits)
        return value, tape.gradient(value, logits)

    signature = [tf.TensorSpec((None, None, None, 16), dtype) for dtype in ("uint8", "float32")]
    traced = tf.function(value_and_gradient, signature, jit_compile=jit_compile)
    for size in ((6, 7), (1, 1), (17, 10)):
        targets = tf.constant(
            reference.batch_targets(reference.random_labels(5, (2, *size)), rates)
        )
        sides = [-(-side // stride) for side in size]
        logits = np.random.default_rng(0).normal(size=(2, *sides, 16)).astype(np.float32)
        given = targets, tf.constant(logits)
        for found, expected in zip(traced(*given), value_and_gradient(*given), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)


def resized_by_the_model(logits, stride, padding, size):
    images = np.zeros((len(logits), *size, 3), np.float32)
    return AlignedResize(stride, 1, padding)([logits, images])


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize("size", [(17, 25), (16, 22), (1, 1)], ids=str)
def test_strided_logits_equal_resized_logits(weighting, padding, size):
    rates, stride = RATE_SETS[1], 4
    statistics = statistics_of(rates)
    labels = reference.random_labels(1, (3, *size))
    labels[1] = 255
    targets, _ = batch(labels, rates)
    small = [-(-side // stride) for side in size]
    logits = tf.constant(np.random.default_rng(0).normal(0, 2, (3, *small, 16)), tf.float32)
    results = []
    for loss, resize in (
        (AffinityLoss(statistics, weighting), True),
        (AffinityLoss(statistics, weighting, logits_stride=stride, padding=padding), False),
    ):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            seen = resized_by_the_model(logits, stride, padding, size) if resize else logits
            value = 3.0 * loss(targets, seen)
        results.append((value, tape.gradient(value, logits)))
    (expected, expected_gradient), (value, gradient) = results
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-7)
    assert np.any(gradient) == (size != (1, 1))


def test_strided_logits_of_void_batch():
    loss = AffinityLoss(statistics_of(((1, 1),)), logits_stride=4)
    logits = tf.ones((2, 2, 2, 8))
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = loss(np.full((2, 7, 8, 8), 255, np.uint8), logits)
    assert float(value) == 0.0
    assert not np.any(tape.gradient(value, logits))


def test_strided_logits_with_sample_weight():
    loss = AffinityLoss(statistics_of(((1, 1),)), logits_stride=2)
    targets, _ = batch(reference.random_labels(2, (2, 5, 7)), ((1, 1),))
    logits = np.random.default_rng(3).normal(size=(2, 3, 4, 8)).astype(np.float32)
    alone = [float(loss(targets, logits, np.eye(2, dtype=np.float32)[i])) for i in range(2)]
    assert min(alone) > 0
    np.testing.assert_allclose(loss(targets, logits, np.float32([2, 3])), np.dot(alone, [2, 3]))


def test_logits_of_wrong_size_are_refused():
    loss = AffinityLoss(statistics_of(((1, 1),)), logits_stride=4)
    with pytest.raises(ValueError, match=r"1/4 .* Received: shapes \(1, 9, 9, 8\)"):
        loss(np.zeros((1, 9, 9, 8), np.uint8), np.zeros((1, 9, 9, 8), np.float32))
