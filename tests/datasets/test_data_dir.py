"""Tests that every data set is found in `data_dir` and in the folder of its name there."""

import shutil

import numpy as np
import pytest

from dilated_affinity.datasets.checking import check_dataset
from dilated_affinity.datasets.registry import load_source
from dilated_affinity.errors import DataError, MissingDataError


def write_folder(root, write_image):
    for split in ("train", "val"):
        write_image(root / "images" / split / "a.png", np.zeros((4, 6, 3), np.uint8))
        write_image(
            root / "masks" / split / "a.png",
            np.array([[0, 1]], np.uint8).repeat(6, 0)[:4].repeat(3, 1),
        )
    return root


def write_cityscapes(root, write_image):
    for split in ("train", "val"):
        stem = f"{split}/ulm/ulm_0"
        write_image(root / "leftImg8bit" / f"{stem}_leftImg8bit.png", np.zeros((4, 6, 3), np.uint8))
        write_image(root / "gtFine" / f"{stem}_gtFine_labelIds.png", np.full((4, 6), 7, np.uint8))
    return root


def write_voc(root, write_image):
    devkit = root / "VOCdevkit" / "VOC2012"
    lists = devkit / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split in ("train", "val"):
        name = f"2007_{split}"
        (lists / f"{split}.txt").write_text(f"{name}\n")
        write_image(devkit / "JPEGImages" / f"{name}.jpg", np.zeros((4, 6, 3), np.uint8))
        write_image(devkit / "SegmentationClass" / f"{name}.png", np.zeros((4, 6), np.uint8))
    return root


def write_camvid(root, write_image):
    for split in ("train", "val"):
        write_image(root / split / "a.png", np.zeros((4, 6, 3), np.uint8))
        write_image(root / f"{split}annot" / "a.png", np.zeros((4, 6), np.uint8))
    return root


WRITERS = {
    "camvid": write_camvid,
    "cityscapes": write_cityscapes,
    "voc2012_aug": write_voc,
    "folder": write_folder,
}


@pytest.mark.parametrize("name", WRITERS)
def test_folder_of_the_data_sets_name(name, tmp_path, write_image):
    data = tmp_path / "data"
    home = WRITERS[name](data / name, write_image)
    (home / "README.md").write_text("What it is.")
    for place in (data, home):
        source = load_source(name, "val", place)
        assert len(source) == 1 and source[0]["image"].shape == (4, 6, 3)
        report = check_dataset(name, place, ("train", "val"))
        assert report.problems == [] and report.images == {"train": 1, "val": 1}


@pytest.mark.parametrize("name", WRITERS)
def test_data_dir_itself_takes_precedence(name, tmp_path, write_image):
    WRITERS[name](tmp_path, write_image)
    (tmp_path / name).mkdir()
    assert len(load_source(name, "val", tmp_path)) == 1


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("empty", ["nothing", "data", "below"])
def test_message_names_both_folders(name, empty, tmp_path):
    data = tmp_path / "data"
    if empty != "nothing":
        (data / name if empty == "below" else data).mkdir(parents=True)
    with pytest.raises(MissingDataError) as missing:
        load_source(name, "val", data)
    for place in (data, data / name):
        assert f" {place} " in str(missing.value) or f" {place};" in str(missing.value)
    (problem,) = check_dataset(name, data, ("train", "val")).problems
    assert "--data_dir" in problem and str(data / name) in problem


@pytest.mark.parametrize("name", WRITERS)
def test_message_names_a_folder_in_another_case(name, tmp_path, write_image):
    home = WRITERS[name](tmp_path / name.title(), write_image)
    with pytest.raises(MissingDataError, match=f"{home} differs in upper and lower case"):
        load_source(name, "val", tmp_path)
    (problem,) = check_dataset(name, tmp_path, ("train", "val")).problems
    assert f"--data_dir={home} reads it" in problem


@pytest.mark.parametrize("name", ["camvid", "folder"])
def test_damaged_data_set_is_not_searched_elsewhere(name, tmp_path, write_image):
    """Otherwise the message would be about the other folder."""
    WRITERS[name](tmp_path, write_image)
    WRITERS[name](tmp_path / name, write_image)
    folder = "trainannot" if name == "camvid" else "masks"
    shutil.rmtree(tmp_path / folder)
    with pytest.raises(DataError, match=f"{folder}|no folder masks") as broken:
        load_source(name, "val", tmp_path)
    assert "Looked in" not in str(broken.value)
