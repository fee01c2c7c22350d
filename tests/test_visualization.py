import warnings

import numpy as np
import pytest
from PIL import Image

from dilated_affinity.affinity.statistics import AffinityStatistics
from dilated_affinity.datasets.classes import CAMVID
from dilated_affinity.visualization import (
    affinity_picture,
    agreeing_neighbors,
    colorize,
    count_frequency_figure,
    overlay,
    side_by_side,
)


def test_labels_take_the_data_sets_colours():
    picture = colorize(np.array([[0, 3, 255]], np.uint8), CAMVID)
    assert picture.tolist() == [[[128, 128, 128], [128, 64, 128], [0, 0, 0]]]


def test_the_overlay_mixes_colours_and_marks_boundaries():
    image = np.full((4, 6, 3), 100, np.uint8)
    labels = np.zeros((4, 6), np.uint8)
    labels[:, 3:] = 1
    mixed = overlay(image, labels, CAMVID, opacity=0.5)
    assert mixed[0, 0].tolist() == [114, 114, 114]
    assert (mixed[:, 3] == 255).all() and (mixed[:, 4] != 255).any()


def test_agreeing_neighbors_counts_per_rate():
    affinity = np.zeros((1, 2, 16), np.float32)
    affinity[0, 0, :3] = 0.9
    affinity[0, 0, 3] = 0.4
    affinity[0, 1, 8:] = 0.6
    assert agreeing_neighbors(affinity).tolist() == [[[3, 0], [0, 8]]]
    targets = np.array([[[1, 0, 255, 1, 1, 1, 1, 1]]], np.uint8)
    assert agreeing_neighbors(targets).tolist() == [[[6]]]


def test_the_affinity_picture_has_a_panel_for_each_rate_brighter_where_more_agree():
    affinity = np.zeros((30, 90, 16), np.float32)
    affinity[..., 8:] = 1
    picture = affinity_picture(affinity, ((1, 1), (2, 2)))
    assert picture.shape == (52, 184, 3)
    left, right = picture[30:, :90], picture[30:, 94:]
    assert right.mean() > left.mean() + 50


def test_panels_stand_in_a_row_under_their_captions():
    panel = np.zeros((10, 60, 3), np.uint8)
    picture = side_by_side([("one", panel), ("two", panel)])
    assert picture.shape == (32, 124, 3)
    assert (picture[:22] == 255).any() and (picture[:22] < 128).any()


def count_statistics(pixels, rates):
    return AffinityStatistics(rates, np.array(pixels), np.ones((len(rates), 2), int))


def test_the_figure_draws_each_share_in_percent_in_the_order_of_the_rates():
    rates = ((16, 16), (4, 12), (8, 8))
    pixels = [[*range(1, 9), 64], [*range(2, 10), 56], [*range(3, 11), 48]]
    figure = count_frequency_figure(count_statistics(pixels, rates))
    upper, lower = figure.axes
    assert lower.get_yscale() == "log"
    assert [text.get_text() for text in lower.get_xticklabels()] == ["(4,12)", "8", "16"]
    assert "pixels" in lower.get_xlabel() and "%" in lower.get_ylabel()
    in_order = [pixels[1], pixels[2], pixels[0]]
    lines = {line.get_label(): line.get_ydata() for line in (*upper.lines, *lower.lines)}
    assert set(lines) == {f"n{k}" for k in range(9)}
    for k in range(9):
        expected = [100 * row[k] / sum(row) for row in in_order]
        np.testing.assert_allclose(lines[f"n{k}"], expected)
    markers = {line.get_marker() for line in lower.lines}
    colors = {tuple(line.get_color()) for line in lower.lines}
    assert len(markers) == len(colors) == 8


@pytest.mark.parametrize("pixels", [[0] * 8 + [5], [5] + [0] * 8, [0, 3] * 4 + [1]])
def test_the_figure_leaves_out_what_does_not_occur(pixels, tmp_path):
    figure = count_frequency_figure(count_statistics([pixels], ((2, 2),)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as image:
        assert np.asarray(image.convert("L")).min() < 128
