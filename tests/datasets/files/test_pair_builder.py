from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dilated_affinity.datasets.classes import VOC2012
from dilated_affinity.datasets.files import pairs
from dilated_affinity.datasets.files.pair_builder import PairedFilesSource
from dilated_affinity.datasets.files.pairs import INVALID, Pair, label_table, match_pairs, read_pair
from dilated_affinity.datasets.notes import Notes
from dilated_affinity.errors import DataError

VOC_TABLE = label_table(21)


@pytest.fixture
def pair(tmp_path, write_image):
    """A valid 4x3 image and label; tests overwrite one of them."""
    write_image(tmp_path / "a.png", np.zeros((3, 4, 3), np.uint8))
    write_image(tmp_path / "b.png", np.full((3, 4), 20, np.uint8))
    return Pair("a", str(tmp_path / "a.png"), str(tmp_path / "b.png"))


def test_label_table():
    table = label_table(3, {9: 255})
    assert table.shape == (256,)
    assert {int(v): int(table[v]) for v in np.flatnonzero(table != INVALID)} == {
        0: 0,
        1: 1,
        2: 2,
        9: 255,
        255: 255,
    }


def test_images_are_decoded_once(pair, monkeypatch):
    # Pillow decodes a whole PNG to find its orientation, which is needed for an error message only.
    monkeypatch.setattr(pairs, "stored_orientation", lambda _: pytest.fail("decoded again"))
    read_pair(pair, VOC2012, VOC_TABLE)


def test_read_pair(pair, write_image):
    write_image(Path(pair.label_path), np.eye(3, 4, dtype=np.uint8) * 255)
    example = read_pair(pair, VOC2012, VOC_TABLE)
    assert example["id"] == "a"
    assert example["image"].dtype == example["label"].dtype == np.uint8
    np.testing.assert_array_equal(example["label"], np.eye(3, 4) * 255)


def test_different_sizes_are_refused(pair, tmp_path, write_image):
    write_image(tmp_path / "b.png", np.zeros((4, 3), np.uint8))
    with pytest.raises(DataError, match="b.png: .* which is 4x3 .*a.png.* Received: 3x4$"):
        read_pair(pair, VOC2012, VOC_TABLE)


def test_label_of_rotated_image(pair, tmp_path, write_image):
    exif = Image.Exif()
    exif[0x0112] = 6
    write_image(tmp_path / "a.png", np.zeros((3, 4, 3), np.uint8), exif=exif)
    with pytest.raises(DataError, match="3x4 after its EXIF orientation 6 .* Received: 4x3$"):
        read_pair(pair, VOC2012, VOC_TABLE)
    write_image(tmp_path / "b.png", np.zeros((4, 3), np.uint8))
    assert read_pair(pair, VOC2012, VOC_TABLE)["image"].shape == (4, 3, 3)


def test_values_outside_the_classes(pair, tmp_path, write_image):
    write_image(
        tmp_path / "b.png", np.array([[0, 1, 21, 200], [20, 255, 21, 21], [0] * 4], np.uint8)
    )
    with pytest.raises(
        DataError,
        match="b.png: label values must be 0 to 20 or 255. Received: the values 21, 200$",
    ):
        read_pair(pair, VOC2012, VOC_TABLE)


def test_label_without_its_palette(pair, tmp_path):
    palette = Image.fromarray(np.array([[0, 1, 2, 15]] * 3, np.uint8))
    palette.putpalette(VOC2012.color_map().ravel().tolist())
    palette.save(tmp_path / "b.png")
    assert read_pair(pair, VOC2012, VOC_TABLE)["label"][0].tolist() == [0, 1, 2, 15]
    palette.convert("RGB").convert("L").save(tmp_path / "b.png")
    with pytest.raises(
        DataError, match="palette's colours converted to grey; its indices have been lost"
    ):
        read_pair(pair, VOC2012, VOC_TABLE)


def test_match_pairs(tmp_path, write_image):
    for name in ("images/b/2.jpg", "images/1.png", "labels/1.png", "labels/b/2.png"):
        write_image(tmp_path / name, np.zeros((2, 2), np.uint8))
    (tmp_path / "images" / "Thumbs.db").touch()
    (tmp_path / "images" / ".hidden.png").touch()
    pairs = match_pairs(tmp_path / "images", tmp_path / "labels")
    assert [pair.id for pair in pairs] == ["1", "b/2"]
    assert pairs[1].image_path.endswith("2.jpg") and pairs[1].label_path.endswith("2.png")
    assert [e["id"] for e in PairedFilesSource(pairs, VOC2012, VOC_TABLE)] == ["1", "b/2"]


def test_duplicate_names_are_refused(tmp_path, write_image):
    for name in ("images/1.png", "images/1.jpg", "labels/1.png"):
        write_image(tmp_path / name, np.zeros((2, 2), np.uint8))
    with pytest.raises(DataError, match="1.png: expected one file per name.* also 1.jpg"):
        match_pairs(tmp_path / "images", tmp_path / "labels")


def test_ignored_files_are_noted_or_logged(tmp_path, write_image, caplog):
    for name in ("images/1.png", "labels/1.png"):
        write_image(tmp_path / name, np.zeros((2, 2), np.uint8))
    (tmp_path / "images" / "._1.png").touch()
    notes = Notes()
    match_pairs(tmp_path / "images", tmp_path / "labels", notes)
    (line,) = notes.lines()
    assert "macOS" in line and caplog.text == ""
    match_pairs(tmp_path / "images", tmp_path / "labels")
    assert line in caplog.text
