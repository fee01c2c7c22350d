"""Tests of rates and of the channel order."""

import keras
import numpy as np
import pytest
from helpers import (
    reference,
    tiny,  # noqa: F401 - the backbone "tiny"
)

import dilated_affinity as da
from dilated_affinity.affinity.geometry import (
    check_rates,
    format_rates,
    neighbor_offsets,
    parse_rates,
    reach,
)
from dilated_affinity.errors import ConfigError
from dilated_affinity.inference.refiners.decoder_stride import divided_rates
from dilated_affinity.models.deeplab import affinity_rates
from dilated_affinity.visualization import affinity_accuracy_figure, affinity_picture

RATES = ((8, 8), (12, 24), (24, 12), (16, 16))


def test_parse_rates_of_the_paper():
    assert parse_rates("8,(12,24),16") == RATES


@pytest.mark.parametrize(
    "text, rates",
    [
        ("8", ((8, 8),)),
        (" 8 , ( 12 , 24 ) ", ((8, 8), (12, 24), (24, 12))),
        ("(5,5)", ((5, 5),)),
        ("16,8", ((16, 16), (8, 8))),
        ("(24,12)", ((24, 12), (12, 24))),
    ],
)
def test_parse_rates_keeps_order(text, rates):
    assert parse_rates(text) == rates


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        ",",
        "8,",
        ",8",
        "8,,16",
        "0",
        "-8",
        "8.5",
        "(0,4)",
        "(8)",
        "(1,2,3)",
        "(8,16",
        "a",
        "8 16",
        "8,8",
        "(1,2),(2,1)",
        "8;16",
        "((1,2))",
        "8,(8,8)",
    ],
)
def test_parse_rates_refuses_invalid_text(text):
    with pytest.raises(ConfigError, match="Received"):
        parse_rates(text)


@pytest.mark.parametrize("value", [None, 8, ["8"], b"8"])
def test_parse_rates_refuses_other_types(value):
    with pytest.raises(ConfigError):
        parse_rates(value)


@pytest.mark.parametrize("text", ["8", "8,(12,24),16", "(12,24)", "(24,12),3"])
def test_format_rates_round_trip(text):
    assert format_rates(parse_rates(text)) == text


@pytest.mark.parametrize("rates", [((1, 2),), ((1, 2), (3, 3), (2, 1))])
def test_format_rates_refuses_pair_without_transpose(rates):
    with pytest.raises(ConfigError):
        format_rates(rates)


def test_check_rates_returns_tuples_of_ints():
    checked = check_rates(np.array([[1, 2], [2, 1]]))
    assert checked == ((1, 2), (2, 1))
    assert all(type(distance) is int for rate in checked for distance in rate)


@pytest.mark.parametrize(
    ("written", "rates"),
    [
        ((8, 16), ((8, 8), (16, 16))),
        ([8], ((8, 8),)),
        (np.array([8, 16]), ((8, 8), (16, 16))),
        (((8, 8), (16, 16)), ((8, 8), (16, 16))),
        ((8, (12, 24), 16), ((8, 8), (12, 24), (16, 16))),
        (((8, 16),), ((8, 16),)),
        ("8,(12,24),16", RATES),
        ("8,16", ((8, 8), (16, 16))),
    ],
    ids=str,
)
def test_check_rates_accepts_text_numbers_and_pairs(written, rates):
    assert check_rates(written) == rates
    assert neighbor_offsets(written).tolist() == [list(each) for each in reference.offsets(rates)]


@pytest.mark.parametrize("written", [(2, 4), ((2, 2), (4, 4)), "2,4"], ids=str)
def test_public_functions_accept_all_forms_of_rates(written):
    """Every public function that takes rates gives the same result for all of their forms."""
    pairs = ((2, 2), (4, 4))
    labels = np.random.default_rng(0).integers(0, 3, (1, 12, 15))
    targets = np.asarray(da.affinity_targets(labels, written))
    np.testing.assert_array_equal(targets, da.affinity_targets(labels, pairs))
    statistics = da.AffinityStatistics.from_labels(labels, written)
    assert statistics == da.AffinityStatistics.from_labels(labels, pairs)
    again = da.AffinityStatistics(written, statistics.pixels, statistics.pairs)
    assert again == statistics and again.rates == pairs
    probabilities = keras.ops.softmax(np.eye(3, dtype="float32")[labels])
    affinities = da.affinities_from_targets(targets)
    refined = da.propagate(probabilities, affinities, pairs, 2)
    np.testing.assert_array_equal(da.propagate(probabilities, affinities, written, 2), refined)
    layer = da.AffinityPropagation(written, 2)
    assert layer.rates == da.AffinityAccuracy(written).rates == pairs
    model = da.DeepLabV3Plus(3, written, "tiny", weights=None, filters=4)
    assert affinity_rates(model) == pairs
    assert format_rates(written) == "2,4" and reach(written) == (4, 4)
    assert divided_rates(written, 2) == ((1, 1), (2, 2))
    assert da.Config(rates=written).affinity_rates == pairs
    assert da.Config(rates=written) == da.Config(rates=" 2 , 4 ")
    picture = affinity_picture(np.zeros((12, 15, 16), "float32"), written)
    np.testing.assert_array_equal(
        picture, affinity_picture(np.zeros((12, 15, 16), "float32"), pairs)
    )
    accuracy = np.zeros((2, 9))
    (axes,) = affinity_accuracy_figure(accuracy, written).axes
    assert len(axes.get_lines()) == 2


def test_config_without_rates():
    assert da.Config(rates=None).rates == da.Config(rates="none").rates == "none"


@pytest.mark.parametrize(
    "rates",
    [
        (),
        8,
        None,
        ((1,),),
        ((1, 2, 3),),
        ((0, 1),),
        ((-1, 1),),
        ((1.5, 1),),
        ("ab",),
        ("8", "16"),
        (8, 0),
        (8, 8.5),
        (8, (8, 8)),
        ((1, 1), (1, 1)),
    ],
)
def test_check_rates_refuses_invalid_rates(rates):
    with pytest.raises(ConfigError, match="Received"):
        check_rates(rates)


@pytest.mark.parametrize("rates", [((1, 1),), ((3, 5), (5, 3)), RATES])
def test_offsets_equal_equation_3(rates):
    found = neighbor_offsets(rates)
    assert found.dtype.kind == "i"
    assert [tuple(offset) for offset in found.tolist()] == reference.offsets(rates)


def test_first_number_of_a_rate_is_vertical():
    assert neighbor_offsets(((2, 7),))[0].tolist() == [-2, -7]
    assert neighbor_offsets(((2, 7),))[1].tolist() == [-2, 0]


def test_offsets_of_several_rates():
    both = neighbor_offsets(((3, 5), (2, 2)))
    np.testing.assert_array_equal(both[8:], neighbor_offsets(((2, 2),)))


def test_offsets_of_no_rates_are_refused():
    with pytest.raises(ConfigError):
        neighbor_offsets(())


def test_reach():
    assert reach(((8, 8), (2, 24), (12, 3))) == (12, 24)
