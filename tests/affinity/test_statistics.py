"""Tests of frequencies, weights and bias priors against loops over pixels."""

import json
import os
import weakref

import keras
import numpy as np
import pytest
from helpers import reference

from dilated_affinity.affinity.loss import AffinityLoss
from dilated_affinity.affinity.statistics import WEIGHTINGS, AffinityStatistics
from dilated_affinity.affinity.targets import affinity_targets
from dilated_affinity.errors import ConfigError, DataError

RATES = ((1, 1), (2, 3), (3, 2), (9, 4))


@pytest.fixture(scope="module")
def label_maps():
    """Label maps of several sizes: some void, all void, one pixel, a side shorter than a rate."""
    maps = [reference.random_labels(i, shape) for i, shape in enumerate([(13, 17), (7, 20)])]
    return [*maps, np.full((5, 4), 255, np.uint8), np.zeros((1, 1), np.uint8), maps[0][:2]]


@pytest.fixture(scope="module")
def statistics(label_maps):
    return AffinityStatistics.from_labels(label_maps, RATES)


@pytest.fixture(scope="module")
def counted(label_maps):
    return reference.count_statistics(label_maps, RATES)


def test_counts_equal_loops(statistics, counted):
    np.testing.assert_array_equal(statistics.pixels, counted[0])
    np.testing.assert_array_equal(statistics.pairs, counted[1])


def test_counts_equal_loops_at_an_odd_size():
    labels = reference.random_labels(5, (97, 131))
    statistics = AffinityStatistics.from_labels([labels], ((8, 8), (12, 24)))
    pixels, pairs = reference.count_statistics([labels], ((8, 8), (12, 24)))
    np.testing.assert_array_equal(statistics.pixels, pixels)
    np.testing.assert_array_equal(statistics.pairs, pairs)


def test_another_void_label():
    labels = reference.random_labels(5, (9, 8)).astype(np.int32)
    labels[labels == 255] = -1
    statistics = AffinityStatistics.from_labels([labels], RATES, ignore_label=-1)
    pixels, pairs = reference.count_statistics([labels], RATES, void=-1)
    np.testing.assert_array_equal(statistics.pixels, pixels)
    np.testing.assert_array_equal(statistics.pairs, pairs)


def test_frequencies(statistics, counted):
    pixels, pairs = counted
    for rate in range(len(RATES)):
        shares = [number / sum(pixels[rate]) for number in pixels[rate]]
        np.testing.assert_allclose(statistics.count_frequencies[rate], shares, rtol=1e-12)
        positive = pairs[rate, 1] / (pairs[rate, 0] + pairs[rate, 1])
        np.testing.assert_allclose(statistics.positive_frequencies[rate], positive, rtol=1e-12)


@pytest.mark.parametrize("weighting", ["none", "neighbor", "sqrt_neighbor"])
def test_pixel_weights_equal_table_1(statistics, counted, weighting):
    weights = statistics.weights(weighting)
    assert weights.shape == (len(RATES), 9)
    for rate in range(len(RATES)):
        for count in range(9):
            expected = reference.pair_weight(*counted, weighting, rate, count, 1)
            np.testing.assert_allclose(weights[rate, count], expected, rtol=1e-12)


def test_signal_weights_equal_table_1(statistics, counted):
    weights = statistics.weights("signal")
    assert weights.shape == (len(RATES), 2)
    for rate in range(len(RATES)):
        expected = [reference.pair_weight(*counted, "signal", rate, 0, t) for t in (0, 1)]
        np.testing.assert_allclose(weights[rate], expected, rtol=1e-12)


@pytest.mark.parametrize("weighting", ["none", "neighbor", "sqrt_neighbor"])
def test_weight_of_n8_is_always_1(statistics, weighting):
    np.testing.assert_array_equal(statistics.weights(weighting)[:, 8], 1)


def test_unknown_weighting_is_refused(statistics):
    with pytest.raises(ConfigError, match="Received: weighting='sqrt'"):
        statistics.weights("sqrt")


def discs(step=1):
    """Large discs, whose pixels always have at least three neighbours of their class."""
    rows, columns = np.indices((257, 257))
    radii = np.linspace(80, 110, 6)
    return [
        (np.hypot(rows - 120, columns - 130) < r).astype(np.uint8)[::step, ::step] for r in radii
    ]


@pytest.mark.parametrize("weighting", ["signal", "neighbor", "sqrt_neighbor"])
def test_weight_of_missing_count_is_bounded(weighting):
    rates = ((8, 8), (12, 24))
    statistics = AffinityStatistics.from_labels(discs(), rates)
    counts = statistics.pairs if weighting == "signal" else statistics.pixels
    weights = statistics.weights(weighting)
    if weighting != "signal":
        assert (counts == 0).any(axis=1).all()
    for rate in range(len(rates)):
        seen = counts[rate] > 0
        expected = counts[rate, -1] / counts[rate, seen]
        expected = np.sqrt(expected) if weighting == "sqrt_neighbor" else expected
        np.testing.assert_allclose(weights[rate, seen], expected)
        np.testing.assert_allclose(weights[rate, ~seen], expected.max())


def test_loss_with_counts_missing_from_the_statistics():
    rates = ((12, 24), (24, 12))
    statistics = AffinityStatistics.from_labels(discs(), rates)
    assert (
        AffinityStatistics.from_labels(discs(2), rates).pixels[statistics.pixels == 0] > 0
    ).any()
    for weighting in ("neighbor", "sqrt_neighbor"):
        loss = AffinityLoss(statistics, weighting)

        def value(labels, loss=loss):
            targets = affinity_targets(np.stack(labels), rates)
            return float(loss(targets, np.full(targets.shape, 2, "float32")))

        assert value(discs(2)) < 4 * value(discs())


@pytest.mark.parametrize("weighting", ["neighbor", "sqrt_neighbor"])
def test_weight_of_rare_count_is_bounded(weighting):
    pixels = np.array([[3, 0, 99, 101, 10**3, 10**4, 10**5, 10**6, 10**7 - 1_111_203]])
    weights = AffinityStatistics(((1, 1),), pixels, np.array([[1, 1]])).weights(weighting)[0]
    # 101 of 10^7 pixels are more than 1 in 100,000, and 99 are fewer.
    ratio = pixels[0, 8] / 101
    largest = ratio if weighting == "neighbor" else ratio**0.5
    np.testing.assert_allclose(weights[:4], largest)
    assert (weights[4:] < largest).all()


def test_weight_of_rare_negative_pairs_is_bounded():
    pixels = np.full((1, 9), 5)
    for pairs, weight in (([9, 10**6], 1), ([11, 10**6], 10**6 / 11), ([5, 0], 1), ([0, 0], 1)):
        statistics = AffinityStatistics(((1, 1),), pixels, np.array([pairs]))
        np.testing.assert_allclose(statistics.weights("signal"), [[weight, 1]])


def test_weights_of_labels_of_one_class():
    statistics = AffinityStatistics.from_labels([np.zeros((4, 5), np.uint8)], ((1, 1),))
    assert statistics.pixels.tolist() == [[0] * 8 + [20]]
    for weighting in ("neighbor", "sqrt_neighbor"):
        assert statistics.weights(weighting).tolist() == [[1.0] * 9]
    assert statistics.weights("signal").tolist() == [[1.0, 1.0]]


def test_weights_without_n8():
    checkers = (np.indices((4, 4)).sum(0) % 2).astype(np.uint8)
    statistics = AffinityStatistics.from_labels([checkers], ((1, 1),))
    pixels = statistics.pixels[0]
    assert pixels[8] == 0
    rarest = min(number for number in pixels if number)
    expected = [rarest / (number or rarest) for number in pixels]
    np.testing.assert_allclose(statistics.weights("neighbor")[0], expected)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 5)])
def test_weights_and_biases_stay_finite(size, weighting):
    statistics = AffinityStatistics.from_labels([np.zeros(size, np.uint8)], ((1, 1), (7, 7)))
    assert np.isfinite(statistics.weights(weighting)).all()
    assert np.isfinite(statistics.bias()).all()


def test_bias_is_logit_of_positive_frequency(statistics):
    bias = statistics.bias()
    assert bias.shape == (8 * len(RATES),)
    for rate, prior in enumerate(statistics.positive_frequencies):
        np.testing.assert_allclose(1 / (1 + np.exp(-bias[8 * rate : 8 * rate + 8])), prior)


def test_bias_of_frequent_positives_is_positive():
    statistics = AffinityStatistics(((1, 1),), np.ones((1, 9), int), np.array([[1, 9]]))
    np.testing.assert_allclose(statistics.bias(), np.full(8, np.log(9)))


def test_statistics_of_parts_add_up(label_maps, statistics):
    parts = [AffinityStatistics.from_labels(part, RATES) for part in (label_maps[:1], label_maps)]
    rest = AffinityStatistics.from_labels(label_maps[1:], RATES)
    total = parts[0] + rest
    np.testing.assert_array_equal(total.pixels, statistics.pixels)
    np.testing.assert_array_equal(total.pairs, statistics.pairs)
    with pytest.raises(ConfigError):
        total + AffinityStatistics.from_labels(label_maps, RATES[:1])


@pytest.mark.parametrize("labels", [[], [np.full((3, 3), 255, np.uint8)]])
def test_labels_without_pixels_are_refused(labels):
    with pytest.raises(DataError):
        AffinityStatistics.from_labels(labels, RATES)


@pytest.mark.parametrize(
    "labels", [np.zeros((3, 3), np.float32), np.zeros((1, 3, 3), np.uint8), np.zeros(3, np.uint8)]
)
def test_label_map_of_wrong_type_or_shape_is_refused(labels):
    with pytest.raises(DataError, match="Received"):
        AffinityStatistics.from_labels([labels], RATES)


def test_generator_of_label_maps(label_maps, statistics):
    read = AffinityStatistics.from_labels((each for each in label_maps), RATES)
    np.testing.assert_array_equal(read.pixels, statistics.pixels)


def test_functions_returning_label_maps(label_maps, statistics):
    read = AffinityStatistics.from_labels([lambda i=i: label_maps[i] for i in range(5)], RATES)
    np.testing.assert_array_equal(read.pixels, statistics.pixels)
    np.testing.assert_array_equal(read.pairs, statistics.pairs)


def test_more_label_maps_than_threads(label_maps, counted):
    statistics = AffinityStatistics.from_labels(label_maps * 30, RATES)
    np.testing.assert_array_equal(statistics.pixels, 30 * counted[0])


def same(one, other):
    return (
        one.rates == other.rates
        and np.array_equal(one.pixels, other.pixels)
        and np.array_equal(one.pairs, other.pairs)
        and one.pixels.dtype == other.pixels.dtype == np.int64
    )


def test_save_and_load(statistics, tmp_path):
    path = tmp_path / "folder" / "statistics.json"
    statistics.save(path)
    assert same(AffinityStatistics.load(path), statistics)
    assert same(AffinityStatistics.load(str(path)), statistics)


def test_save_counts_beyond_float_precision(tmp_path):
    big = AffinityStatistics(((1, 1),), np.full((1, 9), 2**53 + 1), np.full((1, 2), 2**60 + 1))
    big.save(tmp_path / "big.json")
    assert same(AffinityStatistics.load(tmp_path / "big.json"), big)


def test_keras_serialisation(statistics):
    config = keras.saving.serialize_keras_object(statistics)
    json.dumps(config)
    assert same(keras.saving.deserialize_keras_object(config), statistics)


GOOD = {"rates": [[1, 1]], "pixels": [[1] * 9], "pairs": [[1, 1]]}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "null",
        "[]",
        "3",
        json.dumps(GOOD)[:-9],
        json.dumps({**GOOD, "pixels": [[1] * 8]}),
        json.dumps({**GOOD, "pixels": [[-1] * 9]}),
        json.dumps({**GOOD, "pixels": [[0.5] * 9]}),
        json.dumps({**GOOD, "pixels": [["a"] * 9]}),
        json.dumps({**GOOD, "pixels": [[1] * 9, [1]]}),
        json.dumps({**GOOD, "pixels": [[10**30] * 9]}),
        json.dumps({**GOOD, "pixels": None}),
        json.dumps({**GOOD, "pixels": [[0] * 9]}),
        json.dumps({**GOOD, "pixels": [[2**63] * 9]}),
        json.dumps({**GOOD, "pairs": [[1, 1, 1]]}),
        json.dumps({**GOOD, "pairs": [[True, False]]}),
        json.dumps({**GOOD, "rates": []}),
        json.dumps({**GOOD, "rates": [[0, 1]]}),
        json.dumps({**GOOD, "rates": 8}),
        json.dumps({"rates": [[1, 1]]}),
        "[" * 100_000,
        b"\xff\xfe\x00",
    ],
    ids=range(23),
)
def test_damaged_statistics_file_is_refused(content, tmp_path):
    path = tmp_path / "statistics.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match="statistics.json"):
        AffinityStatistics.load(path)


def test_valid_statistics_file_is_read(tmp_path):
    (tmp_path / "good.json").write_text(json.dumps(GOOD))
    assert AffinityStatistics.load(tmp_path / "good.json").rates == ((1, 1),)


def test_missing_statistics_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="none.json"):
        AffinityStatistics.load(tmp_path / "none.json")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "int64", "uint64"])
@pytest.mark.parametrize("void", [-1, 255, 2**70])
def test_void_label_outside_the_dtype(dtype, void):
    labels = reference.random_labels(6, (9, 8)).astype(dtype)
    statistics = AffinityStatistics.from_labels([labels], RATES, ignore_label=void)
    targets = affinity_targets(labels, RATES, ignore_label=void).numpy()
    expected = reference.affinity_targets(labels, RATES, void)
    np.testing.assert_array_equal(targets, expected)
    pixels, pairs = reference.count_statistics([labels], RATES, void)
    np.testing.assert_array_equal(statistics.pixels, pixels)
    np.testing.assert_array_equal(statistics.pairs, pairs)


def test_label_maps_in_memory_are_limited():
    alive, most = weakref.WeakSet(), 0

    def label_maps():
        nonlocal most
        for _ in range(100 * os.cpu_count()):
            label = np.zeros((3, 3), np.uint8).view(Watched)
            alive.add(label)
            most = max(most, len(alive))
            yield label

    class Watched(np.ndarray):
        __hash__ = object.__hash__

    AffinityStatistics.from_labels(label_maps(), ((1, 1),))
    assert most < 10 * os.cpu_count()


@pytest.mark.parametrize("pixels", [[[2**62] * 9], [[2**63] + [1] * 8], [[0] * 9]])
def test_invalid_counts_are_refused(pixels):
    with pytest.raises(ConfigError, match="pixels"):
        AffinityStatistics(((1, 1),), np.array(pixels), np.array([[1, 1]]))


def test_equality_of_statistics(statistics):
    config = statistics.get_config()
    same = AffinityStatistics.from_config(config)
    assert same == statistics and len({same, statistics}) == 1
    others = [
        AffinityStatistics(statistics.rates[::-1], statistics.pixels, statistics.pairs),
        AffinityStatistics(statistics.rates, statistics.pixels + 1, statistics.pairs),
        AffinityStatistics(statistics.rates, statistics.pixels, statistics.pairs + 1),
        config,
    ]
    assert all(other != statistics for other in others)
    with pytest.raises(ValueError, match="read-only"):
        statistics.pixels[0, 0] += 1
