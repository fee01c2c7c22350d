"""The HTML report of a run: what it says, and that a browser shows it."""

import html
import json
import re
from importlib import resources

import keras
import numpy as np
import pytest
from helpers.browser import chromium
from helpers.tiny import ListSource
from helpers.tiny_run import command, write_run

from dilated_affinity.affinity.geometry import neighbor_offsets
from dilated_affinity.config import Config
from dilated_affinity.datasets.classes import CAMVID, ClassTable
from dilated_affinity.errors import DataError
from dilated_affinity.inference.predictor import Prediction
from dilated_affinity.report import RunFiles, measure, report_page
from dilated_affinity.report.explorer import explorer
from dilated_affinity.report.pictures import photograph, telling_pixel
from dilated_affinity.run_dir.checkpoints import TrainingState, write_checkpoint
from dilated_affinity.run_dir.layout import BEST

LOG = "epoch,affinity_loss,semantic_loss,step,val_mean_iou\n0,0.4,2.0,2,0.1\n1,0.3,1.5,4,0.125\n"
EVALUATION = {
    "split": "val",
    "step": 0,
    "output_stride": 16,
    "scales": [0.5, 1.0],
    "flip": True,
    "window": 65,
    "refine": "propagation_early_stop",
    "images": 3,
    "self_weight": 6.0,
    "mu": 7.0,
    "iterations": [0, 10],
    "mean_iou": [0.4321, 0.5678],
    "boundary_iou": [0.1, 0.2],
    "pixel_accuracy": [0.6, 0.7],
}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report & <run>")
    _, model_dir = write_run(folder)
    (model_dir / "log.csv").write_text(LOG)
    (model_dir / "evaluation_predicted.json").write_text(json.dumps(EVALUATION))
    result = command("report_main", f"--model_dir={model_dir}", "--examples=1")
    assert result.returncode == 0, result.stderr
    assert "report of 3 images" in result.stdout
    return model_dir / "report.html"


def test_the_report_is_one_file_that_loads_nothing(report):
    page = report.read_text()
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", page)
    assert "http" not in re.sub(r"data:[^\"']*", "", page)
    for name in (*CAMVID.names, "43.21", "56.78", "dropout", "Worst images"):
        assert name in page
    views = "stride 16, scales 0.5,1, with mirror image, windows of 65"
    assert f"{views}, propagation with early stopping; columns" in page
    assert "training steps, best checkpoint" in page
    assert "The checkpoint is the best of 2 by mIoU on val, which is measured here as well" in page
    assert "eval_main --model_dir" in page and "--affinity_source=ground_truth" in page


def test_the_report_works_in_a_browser(report, tmp_path):
    with chromium(tmp_path / "profile") as browser:
        browser.get(report.as_uri())
        assert browser.get_log("browser") == []
        assert browser.execute_script(
            "return [...document.images].every(i => i.complete && i.naturalWidth > 0)"
        )
        assert len(browser.find_elements("css selector", ".compare")) == 2
        assert len(browser.find_elements("css selector", ".explore .grids td")) > 0
        slider = browser.find_element("css selector", ".compare input")
        upper = browser.find_element("css selector", ".compare img + img")
        assert "50%" in upper.value_of_css_property("clip-path")
        slider.send_keys("\ue012" * 20)  # the left arrow key
        assert "30%" in upper.value_of_css_property("clip-path")
        assert browser.get_log("browser") == []
        traffic = " ".join(entry["message"] for entry in browser.get_log("performance"))
        assert report.name in traffic and not re.search(r'"url":"(http|ws)s?:', traffic)


AFFINITY_RATES = ((4, 4), (2, 6))


@pytest.fixture
def explored(tmp_path):
    """A page with an explorer of random affinities, and these; its photograph is grey."""
    affinity = np.random.default_rng(0).random((41, 50, 16))
    page = tmp_path / "page.html"
    folder = resources.files("dilated_affinity.report")
    style, script = (folder.joinpath(f"page.{kind}").read_text() for kind in ("css", "js"))
    image = photograph(np.full((41, 50, 3), 99, np.uint8))
    figure = explorer('"a" & <b>', affinity, AFFINITY_RATES, (2, 3))
    page.write_text(
        f"<!doctype html><meta charset=utf-8><style>{style}</style>"
        f'<div class="panels"><img alt="" src="{image}"></div>{figure}<script>{script}</script>'
    )
    return page, affinity


def shown(browser):
    """What the explorer shows: the pixel, its values by rate, and the circles' number."""
    text = browser.find_element("css selector", ".explore output").text
    row, column = map(int, re.match(r"Row (\d+), column (\d+):", text).groups())
    tables = browser.find_elements("css selector", ".explore .grids table")
    cells = [[cell.text for cell in table.find_elements("css selector", "td")] for table in tables]
    circles = browser.find_elements("css selector", ".explore circle")
    return (row, column), cells, len(circles)


def expected_cells(affinity, pixel):
    values = []
    for (row, column), value in zip(
        neighbor_offsets(AFFINITY_RATES) + pixel, affinity[pixel], strict=True
    ):
        inside = 0 <= row < affinity.shape[0] and 0 <= column < affinity.shape[1]
        values.append(f"{np.rint(255 * value) / 255:.2f}" if inside else "\u2013")
    return [[*values[i : i + 4], "+", *values[i + 4 : i + 8]] for i in (0, 8)]


def test_the_explorer_shows_the_affinities_of_the_pixel_chosen(explored, tmp_path):
    page, affinity = explored
    chains = pytest.importorskip("selenium.webdriver").ActionChains
    left, right, down, enter, shift = "\ue012", "\ue014", "\ue015", "\ue007", "\ue008"
    with chromium(tmp_path / "profile") as browser:
        browser.get(page.as_uri())
        browser.implicitly_wait(10)
        figure = browser.find_element("css selector", ".explore")
        browser.find_element("css selector", ".explore td")  # waits until it is drawn
        assert not browser.find_element("css selector", ".explore .values").is_displayed()
        for keys, pixel in (
            ("", (2, 2)),
            (right + right + down + enter, (6, 10)),
            (left * 9, (6, 2)),
            (shift + down, (38, 2)),
        ):
            figure.send_keys(keys)
            found, cells, circles = shown(browser)
            assert found == pixel
            assert cells == expected_cells(affinity, pixel)
            assert circles == sum(cell != "\u2013" for row in cells for cell in row) - 2
        picture = browser.find_element("css selector", ".explore .whole img")
        chains(browser).move_to_element(picture).click().perform()
        found, cells, circles = shown(browser)
        assert abs(found[0] - 20) <= 4 and abs(found[1] - 25) <= 4 and circles == 16
        assert cells == expected_cells(affinity, found)
        assert browser.get_log("browser") == []


def test_the_explorer_of_a_large_image_keeps_fewer_pixels():
    figure = explorer("a", np.full((1024, 2048, 8), 0.5, np.float32), ((4, 4),), (1023, 2047))
    settings = json.loads(html.unescape(re.search(r'data-settings="(.*?)"', figure)[1]))
    sizes = [settings[name] for name in ("stride", "rows", "columns", "row", "column")]
    assert sizes == [8, 128, 256, 127, 255]


class Remembering:
    """A predictor that knows the answers; an image's value is its index."""

    rates = None

    def __init__(self, answers):
        self._answers = answers

    def __call__(self, image):
        before, after = self._answers[image[0, 0, 0]]
        return Prediction(np.array(after, np.uint8), np.array(before, np.uint8), None)

    def map(self, images):
        return map(self, images)


def gray_images(labels, classes):
    return ListSource(
        [
            {
                "image": np.full((*np.shape(label), 3), index, np.uint8),
                "label": np.array(label, np.uint8),
                "id": str(index),
            }
            for index, label in enumerate(labels)
        ],
        classes,
    )


def test_images_are_ranked_by_their_own_miou():
    classes = ClassTable(("a", "b"), ((0, 0, 0), (9, 9, 9)))
    labels = ([[0, 0, 1, 1]], [[255] * 4], [[0, 1, 1, 255]])
    answers = [
        ([[0, 0, 0, 0]], [[0, 1, 1, 1]]),
        ([[0, 0, 0, 0]], [[0, 0, 0, 0]]),
        ([[0, 1, 1, 0]], [[0, 1, 1, 1]]),
    ]
    found = measure(Remembering(answers), gray_images(labels, classes))
    np.testing.assert_allclose([score.before for score in found.scores], [0.25, np.nan, 1])
    np.testing.assert_allclose([score.after for score in found.scores], [7 / 12, np.nan, 1])
    assert found.confusion_before.tolist() == [[3, 0], [2, 2]]
    assert found.confusion_after.tolist() == [[2, 1], [0, 4]]
    np.testing.assert_allclose(found.iou_before, [3 / 5, 2 / 4])
    np.testing.assert_allclose(found.iou_after, [2 / 3, 4 / 5])
    assert [score.name for score in found.best(1)] == ["2"]
    assert [score.name for score in found.worst(5)] == []
    assert [score.name for score in found.worst(1)] == ["0"]
    assert found.best(0) == ()


def test_the_shown_pixel_has_neighbours_of_both_kinds():
    affinity = np.full((12, 16, 8), 0.5)
    affinity[5, 7] = [0.1, 0.9] * 4
    assert telling_pixel(affinity) == (5, 7)


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_damaged_evaluation_is_named(tmp_path, content):
    (tmp_path / "evaluation_predicted.json").write_text(content)
    with pytest.raises(DataError, match="evaluation_predicted.json: not an evaluation"):
        RunFiles.read(tmp_path)


def test_an_evaluation_of_an_earlier_model_is_not_shown(tmp_path):
    write_checkpoint(tmp_path / BEST, keras.Sequential([keras.Input((1,))]), TrainingState(step=4))
    path = tmp_path / "evaluation_predicted.json"
    for step, measured in ((4, True), (3, False), (None, False)):
        path.write_text(json.dumps({**EVALUATION, "step": step}))
        assert ("predicted" in RunFiles.read(tmp_path).evaluations) == measured


def test_before_and_after_are_means_over_the_classes_of_the_labels():
    classes = ClassTable(("a", "b", "never"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)))
    label, before, after = [[0, 1, 1, 1]], [[0, 1, 1, 2]], [[0, 1, 1, 0]]
    measurement = measure(Remembering([(before, after)]), gray_images([label], classes))
    assert measurement.mean_iou == pytest.approx(((1 + 2 / 3) / 2, (1 / 2 + 2 / 3) / 2))


def test_a_run_without_log_and_evaluations_has_none(tmp_path):
    files = RunFiles.read(tmp_path)
    assert files.log == [] and files.evaluations == {}


def test_a_model_without_affinity_is_compared_with_its_image(tmp_path):
    classes = ClassTable(("<a>", "b"), ((0, 0, 0), (9, 9, 9)))
    source = gray_images([[[0, 0, 1, 1]], [[0, 0, 0, 0]]], classes)
    predictor = Remembering([([[0, 0, 1, 0]],) * 2, ([[0, 0, 0, 1]],) * 2])
    config = Config(dataset="folder", rates="none")
    found = measure(predictor, source)
    page = report_page(config, RunFiles.read(tmp_path), found, predictor, source, examples=1)
    text = re.sub(r"data:[^\"']*", "", page)
    assert "no affinity" in text and "&lt;a&gt;" in text and "<a>" not in text
    assert text.count('class="compare"') == 2 and ">prediction</span>" in text
    apart = r"<style>.*?</style>|<table class=.settings.*?</table>"
    for word in ("refine", "Iterations", "Affinity accuracy", "after"):
        assert word not in re.sub(apart, "", text, flags=re.S)
