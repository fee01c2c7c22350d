import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.backend_bases import MouseButton, MouseEvent
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from dilated_affinity.affinity.statistics import AffinityStatistics
from dilated_affinity.datasets.classes import CAMVID, VOC2012
from dilated_affinity.errors import ConfigError
from dilated_affinity.inference.predictor import Prediction
from dilated_affinity.visualization import (
    REFINEMENT_ENTRIES,
    affinity_accuracy_figure,
    affinity_picture,
    agreeing_neighbors,
    class_entries,
    class_iou_figure,
    colorize,
    comparison,
    confusion_matrix_figure,
    count_frequency_figure,
    error_map,
    error_picture,
    explore_affinity,
    figure_array,
    learning_curves_figure,
    overlay,
    overlay_entries,
    pixel_affinity_figure,
    refinement_map,
    side_by_side,
    with_legend,
)


def test_colorize():
    picture = colorize(np.array([[0, 3, 255]], np.uint8), CAMVID)
    assert picture.tolist() == [[[128, 128, 128], [128, 64, 128], [0, 0, 0]]]


def test_overlay():
    image = np.full((4, 6, 3), 100, np.uint8)
    labels = np.zeros((4, 6), np.uint8)
    labels[:, 3:] = 1
    mixed = overlay(image, labels, CAMVID, opacity=0.5)
    assert mixed[0, 0].tolist() == [114, 114, 114]
    assert (mixed[:, 3] == 255).all() and (mixed[:, 4] != 255).any()


def test_overlay_of_background():
    image = np.zeros((4, 6, 3), np.uint8)
    image[...] = (200, 30, 90)
    labels = np.zeros((4, 6), np.uint8)
    labels[:, 3:] = 9
    mixed = overlay(image, labels, VOC2012)
    assert mixed[0, 0].tolist() == [200, 30, 90]
    red, green, blue = mixed[0, 5].tolist()  # of (192, 0, 0) over grey
    assert red > green + 100 and green == blue
    assert overlay_entries(labels, VOC2012) == [
        ("background (not coloured)", (255, 255, 255)),
        ("chair", (192, 0, 0)),
    ]
    assert overlay_entries(labels, CAMVID) == class_entries(labels, CAMVID)


def test_agreeing_neighbors():
    affinity = np.zeros((1, 2, 16), np.float32)
    affinity[0, 0, :3] = 0.9
    affinity[0, 0, 3] = 0.4
    affinity[0, 1, 8:] = 0.6
    assert agreeing_neighbors(affinity).tolist() == [[[3, 0], [0, 8]]]
    targets = np.array([[[1, 0, 255, 1, 1, 1, 1, 1]]], np.uint8)
    assert agreeing_neighbors(targets).tolist() == [[[6]]]


def test_affinity_picture():
    affinity = np.zeros((30, 90, 16), np.float32)
    affinity[..., 8:] = 1
    picture = affinity_picture(affinity, ((1, 1), (2, 2)))
    assert picture.shape[0] > 52 and picture.shape[1] == 184
    left, right = picture[30:52, :90], picture[30:52, 94:]
    assert right.mean() > left.mean() + 50
    legend = picture[52:].reshape(-1, 3).tolist()
    assert picture[40, 10].tolist() in legend and picture[40, 100].tolist() in legend


def test_side_by_side():
    panel = np.zeros((10, 60, 3), np.uint8)
    picture = side_by_side([("one", panel), ("two", panel)])
    assert picture.shape == (32, 124, 3)
    assert (picture[:22] == 255).any() and (picture[:22] < 128).any()


def count_statistics(pixels, rates):
    return AffinityStatistics(rates, np.array(pixels), np.ones((len(rates), 2), int))


def test_count_frequency_figure():
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
def test_count_frequency_figure_without_some_counts(pixels, tmp_path):
    figure = count_frequency_figure(count_statistics([pixels], ((2, 2),)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as image:
        assert np.asarray(image.convert("L")).min() < 128


def test_with_legend():
    picture = np.full((20, 200, 3), 7, np.uint8)
    shown = with_legend(picture, [("road", (128, 64, 128)), ("sky", (70, 130, 180))])
    assert shown.shape[1] == 200 and shown.shape[0] > 20
    assert (shown[:20] == 7).all()
    legend = shown[20:].reshape(-1, 3).tolist()
    assert [128, 64, 128] in legend and [70, 130, 180] in legend and [0, 0, 0] in legend


def test_legend_of_narrow_picture():
    names = [("a long name of a class", (1, 2, 3))] * 3
    wide = with_legend(np.zeros((10, 900, 3), np.uint8), names)
    narrow = with_legend(np.zeros((10, 60, 3), np.uint8), names)
    assert narrow.shape[0] > wide.shape[0] and narrow.shape[1] > 60
    assert (narrow[:10, 60:] == 255).all()


def test_class_entries():
    labels = np.array([[3, 255], [0, 200]], np.uint8)
    names = [name for name, _ in class_entries(labels, CAMVID)]
    assert names == ["sky", "road", "void"]


def test_error_map():
    label = np.array([[1, 1, 255, 255]], np.uint8)
    predicted = np.array([[1, 0, 0, 255]], np.uint8)
    right, wrong, void, also_void = error_map(label, predicted)[0].tolist()
    assert wrong == [213, 94, 0] and right != wrong and void == also_void == [255] * 3


def test_legends_of_prediction_pictures():
    label = np.full((30, 200), 3, np.uint8)
    unrefined, labels = np.full_like(label, 9), np.full_like(label, 3)
    example = {"image": np.zeros((30, 200, 3), np.uint8), "label": label}
    prediction = Prediction(labels, unrefined, np.ones((30, 200, 8), np.float32))
    picture = comparison(example, prediction, ((2, 2),), CAMVID)
    legend = picture[-20:].reshape(-1, 3).tolist()
    assert all(list(CAMVID.palette[value]) in legend for value in (3, 9))
    assert picture.shape[1] == 5 * 200 + 4 * 4

    changed = error_picture(label, prediction)
    expected = refinement_map(label, unrefined, labels)
    np.testing.assert_array_equal(changed, with_legend(expected, REFINEMENT_ENTRIES))
    plain = error_picture(label, Prediction(unrefined, unrefined, None))
    np.testing.assert_array_equal(plain[:30], error_map(label, unrefined))
    assert [0, 114, 178] not in plain.reshape(-1, 3).tolist()


def test_refinement_map_equals_loops():
    rng = np.random.default_rng(3)
    label, before, after = rng.integers(0, 3, (3, 9, 11)).astype(np.uint8)
    label[0] = 255
    picture = refinement_map(label, before, after)
    colors = dict(REFINEMENT_ENTRIES)
    for place in np.ndindex(label.shape):
        kind = {
            (True, True): "right",
            (False, True): "repaired",
            (True, False): "harmed",
            (False, False): "wrong before and after",
        }[label[place] == before[place], label[place] == after[place]]
        kind = "void" if label[place] == 255 else kind
        assert tuple(picture[place]) == colors[kind]


def test_colors_of_pixel_affinity_figure():
    affinity = np.zeros((20, 30, 8))
    affinity[10, 15] = [1, 1, 1, 1, 0, 0, 0, 0]
    figure = pixel_affinity_figure(np.zeros((20, 30, 3), np.uint8), affinity, ((2, 4),), (10, 15))
    points = figure.axes[0].collections[0]
    figure.canvas.draw()
    assert points.get_offsets().tolist() == [
        [11, 8], [15, 8], [19, 8], [11, 10], [19, 10], [11, 12], [15, 12], [19, 12]
    ]  # fmt: skip
    red, _, blue, _ = points.get_facecolors().T
    assert (red[:4] > blue[:4]).all() and (blue[4:] > red[4:]).all()


def test_pixel_affinity_figure_without_missing_pairs():
    targets = np.full((9, 9, 8), 1, np.uint8)
    targets[4, 4, 0] = 255
    figure = pixel_affinity_figure(np.zeros((9, 9, 3), np.uint8), targets, ((1, 1),), (4, 4))
    assert len(figure.axes[0].collections[0].get_offsets()) == 7


@pytest.mark.parametrize("pixel", [(-1, 0), (0, 9), (9, 0)])
def test_pixel_outside_the_image_is_refused(pixel):
    with pytest.raises(ConfigError, match="inside the image of 9x9"):
        pixel_affinity_figure(np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9, 8)), ((1, 1),), pixel)


def click(axes, row, column):
    """Sends Matplotlib's event for a click on a pixel in `axes`."""
    canvas = axes.figure.get_figure(root=True).canvas
    x, y = axes.transData.transform((column, row))
    event = MouseEvent("button_press_event", canvas, x, y, MouseButton.LEFT)
    canvas.callbacks.process("button_press_event", event)


@pytest.fixture
def explored():
    """A figure to click on, with a different affinity at each pixel."""
    affinity = np.arange(20 * 30).reshape(20, 30, 1) / 600 * np.ones(8)
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    explore_affinity(figure, np.zeros((20, 30, 3), np.uint8), affinity, ((2, 2),))
    figure.canvas.draw()
    return figure


def pixel_shown(figure):
    """The title of the pixel's panel, and the probabilities of its points."""
    axes = figure.subfigs[1].axes[0]
    return axes.get_title(), set(axes.collections[0].get_array().tolist())


def test_click_on_explored_image(explored):
    whole = explored.subfigs[0].axes[0]
    assert pixel_shown(explored) == ("row 10, column 15", {315 / 600})
    for row, column in ((5, 7), (17, 28)):
        click(whole, row, column)
        assert pixel_shown(explored) == (f"row {row}, column {column}", {(row * 30 + column) / 600})
        assert [line.get_xydata().tolist() for line in whole.lines] == [[[column, row]]]
        explored.canvas.draw()


def test_ignored_clicks(explored):
    before = pixel_shown(explored)
    click(explored.subfigs[1].axes[0], 10, 14)
    click(explored.subfigs[0].axes[0], -50, -50)
    explored.subfigs[0].axes[0].set_xlim(-10, 50)  # panned beyond the image
    click(explored.subfigs[0].axes[0], 5, 40)
    explored.canvas.toolbar = SimpleNamespace(mode="zoom rect")
    click(explored.subfigs[0].axes[0], 5, 7)
    assert pixel_shown(explored) == before


def test_confusion_matrix_figure():
    figure = confusion_matrix_figure([[8, 2, 0], [0, 0, 0], [1, 0, 3]], ("a", "b", "c"))
    shares = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(shares[[0, 2]], [[80, 20, 0], [25, 0, 75]])
    assert np.isnan(np.ma.filled(shares[1], np.nan)).all()
    assert [text.get_text() for text in figure.axes[0].texts] == ["80", "20", "25", "75"]


def test_learning_curves_with_missing_values():
    log = [
        {"step": "5", "semantic_loss": "2.0", "affinity_loss": "0.5", "val_mean_iou": ""},
        {"step": "9", "semantic_loss": "1.0", "affinity_loss": "0.25", "val_mean_iou": "0.5"},
    ]
    losses, scores = learning_curves_figure(log).axes
    lines = {line.get_label(): line for line in (*losses.lines, *scores.lines)}
    assert lines["semantic"].get_xdata().tolist() == [5, 9]
    assert lines["affinity"].get_ydata().tolist() == [0.5, 0.25]
    np.testing.assert_array_equal(lines["validation"].get_ydata(), [np.nan, 50])


def test_learning_curves_of_history():
    history = {"semantic_loss": [3.0, 2.0], "semantic_mean_iou": [0.1, 0.2]}
    losses, scores = learning_curves_figure(history).axes
    assert losses.get_xlabel() == "epoch" and losses.lines[0].get_xdata().tolist() == [1, 2]
    assert scores.lines[0].get_ydata().tolist() == [10, 20]


def test_class_iou_and_affinity_accuracy_figures():
    axes = class_iou_figure(("a", "b"), [0.5, np.nan], [0.25, 0.75]).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [50, 0, 25, 75]
    axes = affinity_accuracy_figure(np.full((2, 9), 0.5), ((1, 1), (2, 4))).axes[0]
    assert [line.get_label() for line in axes.lines] == ["(1,1)", "(2,4)"]
    assert set(axes.lines[0].get_ydata()) == {50}


def test_figure_array():
    picture = figure_array(class_iou_figure(("a", "b"), [0.5, 0.6]))
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    assert picture.min() < 128 and picture.max() == 255
