"""Tests of reading a whole data set once."""

import numpy as np
import pytest

from dilated_affinity.datasets.checking import check_dataset
from dilated_affinity.errors import ConfigError

SPLITS = ("train", "val")


def test_counts_sizes_and_shares(camvid_dir, write_image):
    for split in SPLITS:
        for path in (camvid_dir / f"{split}annot").iterdir():
            label = np.full((6, 8), 3, np.uint8)
            label[:3] = 11
            write_image(path, label)
    report = check_dataset("camvid", camvid_dir, SPLITS)
    assert report.problems == [] and "no problems" in report.text()
    assert report.images == {"train": 3, "val": 2}
    assert report.sizes == {(8, 6): 5}
    assert report.class_shares("train")[3] == 1 and report.void_share("val") == 0.5


def test_problems_of_files(camvid_dir, write_image):
    write_image(camvid_dir / "trainannot" / "train_0.png", np.full((6, 8), 99, np.uint8))
    (camvid_dir / "train" / "train_2.png").write_bytes(b"")
    write_image(camvid_dir / "valannot" / "val_1.png", np.zeros((5, 8), np.uint8))
    report = check_dataset("camvid", camvid_dir, SPLITS)
    assert report.images == {"train": 1, "val": 1}
    assert len(report.problems) == 3
    for name, problem in zip(("train_0", "train_2", "val_1"), report.problems, strict=True):
        assert name in problem
    assert "3 problems" in report.text()


def test_problem_of_a_whole_data_set(camvid_dir, tmp_path):
    (camvid_dir / "valannot" / "val_1.png").unlink()
    assert "val_1" in check_dataset("camvid", camvid_dir, SPLITS).problems[0]
    report = check_dataset("camvid", tmp_path / "nowhere", SPLITS)
    assert "nowhere" in report.problems[0] and "1 problem" in report.text()


def test_check_of_folder_data_set(tmp_path):
    report = check_dataset("folder", tmp_path, SPLITS)
    assert len(report.problems) == 1 and "images/" in report.problems[0]


def test_unknown_split_or_data_set(camvid_dir):
    with pytest.raises(ConfigError, match="vall"):
        check_dataset("camvid", camvid_dir, ("train", "vall"))
    with pytest.raises(ConfigError, match="camvit"):
        check_dataset("camvit", camvid_dir, SPLITS)
