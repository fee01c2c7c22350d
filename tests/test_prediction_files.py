"""Predictions written beside each other into a folder."""

import keras
import numpy as np
import pytest
from PIL import Image
from tiny import ListSource

from dilated_affinity.datasets.classes import VOC2012
from dilated_affinity.errors import ConfigError, DataError
from dilated_affinity.inference import Predictor
from dilated_affinity.models.deeplab import DeepLabV3Plus
from dilated_affinity.prediction_files import palette_image, predict_examples, predict_files

RATES = ((2, 2), (2, 4), (4, 2))


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    model = DeepLabV3Plus(21, RATES, "mobilenet_v2_0.35", weights=None, filters=16)
    for name in ("semantic_logits", "affinity_logits"):  # logits of some size, not all near 0
        model.get_layer(name).kernel.assign(model.get_layer(name).kernel * 100)
    return model


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 97, 131, 3)).astype("uint8")


def test_palette_images_read_back_as_indices(tmp_path):
    labels = np.arange(255, dtype=np.uint8).reshape(15, 17)
    palette_image(labels, VOC2012).save(tmp_path / "labels.png")
    with Image.open(tmp_path / "labels.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), labels)
        assert tuple(image.getpalette()[45:48]) == (192, 128, 128)


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_predicts_a_folder_and_mirrors_it(model, images, tmp_path):
    write(tmp_path / "in" / "a.png", images[0, :40, :50])
    write(tmp_path / "in" / "deep" / "er" / "b.jpg", images[1, :33, :41])
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    written = predict_files(
        Predictor(model, iterations=1), VOC2012, tmp_path / "in", tmp_path / "out"
    )
    assert written == [
        tmp_path / "out" / "a_labels.png",
        tmp_path / "out" / "deep" / "er" / "b_labels.png",
    ]
    for stem, size in (("a", (50, 40)), ("deep/er/b", (41, 33))):
        with Image.open(tmp_path / "out" / f"{stem}_labels.png") as image:
            assert image.size == size
        with Image.open(tmp_path / "out" / f"{stem}_overlay.png") as image:
            assert image.width >= size[0] and image.height > size[1]  # the legend is below
        assert (tmp_path / "out" / f"{stem}_affinity.png").is_file()
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) == 6


class Unused:
    """A predictor that must not be reached."""

    rates = RATES

    def __call__(self, image):
        raise AssertionError("predicted before checking")


def test_never_overwrites_unasked(model, images, tmp_path):
    write(tmp_path / "in" / "a.png", images[0, :33, :33])
    write(tmp_path / "in" / "b.png", images[0, :33, :33])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b_overlay.png").write_text("mine")
    with pytest.raises(DataError, match="b_overlay.png: exists already"):
        predict_files(Unused(), VOC2012, tmp_path / "in", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b_overlay.png"]
    predict_files(Predictor(model, 1), VOC2012, tmp_path / "in", tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "b_overlay.png").read_bytes().startswith(b"\x89PNG")


def test_two_images_of_one_stem_are_refused(images, tmp_path):
    write(tmp_path / "in" / "a.png", images[0, :33, :33])
    write(tmp_path / "in" / "a.jpg", images[0, :33, :33])
    with pytest.raises(DataError, match="a.jpg.*same files"):
        predict_files(Unused(), VOC2012, tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize("make", [True, False])
def test_an_empty_or_missing_input_is_refused(tmp_path, make):
    if make:
        (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match="in: no"):
        predict_files(Unused(), VOC2012, tmp_path / "in", tmp_path / "out")


def test_an_output_folder_inside_the_input_is_refused(images, tmp_path):
    write(tmp_path / "a.png", images[0, :33, :33])
    with pytest.raises(ConfigError, match="output_dir must not lie inside"):
        predict_files(Unused(), VOC2012, tmp_path, tmp_path / "out")


def test_a_damaged_image_is_refused_by_name(model, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    with pytest.raises(DataError, match="broken.png"):
        predict_files(Predictor(model, 1), VOC2012, tmp_path / "in", tmp_path / "out")


def test_examples_are_compared_with_their_ground_truth(model, images, tmp_path):
    label = np.zeros((40, 50), np.uint8)
    examples = [
        {"image": images[0, :40, :50], "label": label, "id": name} for name in ("a/b", "c", "d")
    ]
    source = ListSource(examples, VOC2012)
    written = predict_examples(Predictor(model, 1), source, tmp_path, limit=2)
    assert written == [tmp_path / "a" / "b_labels.png", tmp_path / "c_labels.png"]
    with Image.open(tmp_path / "a" / "b_comparison.png") as picture:
        assert picture.width == 5 * 50 + 4 * 4 and picture.height > 40 + 22
    assert (tmp_path / "a" / "b_errors.png").is_file()
    assert not (tmp_path / "d_labels.png").exists()


def test_an_example_whose_id_leads_outside_is_refused(images, tmp_path):
    example = {"image": images[0], "label": images[0, ..., 0], "id": "../outside"}
    with pytest.raises(DataError, match="outside"):
        predict_examples(Unused(), ListSource([example], VOC2012), tmp_path / "out")


def test_a_link_that_leads_outside_is_refused(images, tmp_path):
    write(tmp_path / "in" / "a" / "b.png", images[0, :33, :33])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="outside .*elsewhere"):
        predict_files(Unused(), VOC2012, tmp_path / "in", tmp_path / "out")
