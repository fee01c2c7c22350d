"""Tests of masks without images, from folders and archives."""

import tarfile

import numpy as np
import pytest
from absl import logging
from helpers.encoding import add_file, encoded
from PIL import Image

from dilated_affinity.affinity.statistics import AffinityStatistics
from dilated_affinity.datasets.files.masks import MaskFiles
from dilated_affinity.errors import DataError

MASKS = {
    "a/one.png": np.array([[0, 1, 255], [20, 20, 3]], np.uint8),
    "a/two.png": np.full((1, 4), 7, np.uint8),
    "three.PNG": np.zeros((3, 2), np.uint8),
}


def png(values, palette=False):
    image = Image.fromarray(values)
    if palette:
        image = Image.frombytes("P", values.shape[::-1], values.tobytes())
        image.putpalette(list(range(255, -1, -1)) * 3)
    return encoded(image)


FILES = {
    **{name: png(values, palette=name == "a/one.png") for name, values in MASKS.items()},
    "a/notes.txt": b"not a mask",
    "a/._one.png": b"what macOS puts beside each file",
}


def write_tar(path, files, mode):
    with tarfile.open(path, mode) as tar:
        for name, data in files.items():
            add_file(tar, name, data)
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    return path


@pytest.fixture(params=["folder", "masks.tar", "masks.tar.gz", "masks.tgz"])
def masks(request, tmp_path):
    path = tmp_path / request.param
    if path.suffix:
        return write_tar(path, FILES, "w" if path.suffix == ".tar" else "w:gz")
    for name, data in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def test_masks_from_folders_and_archives(masks):
    files = MaskFiles(masks)
    assert files.count == (None if masks.suffix in (".gz", ".tgz") else 3)
    read = [read() for read in files]
    assert files.count == 3
    for expected in MASKS.values():
        assert any(np.array_equal(expected, values) for values in read)
    assert sorted(path.name for path in masks.parent.iterdir()) == [masks.name]


def test_statistics_of_masks(masks):
    counted = AffinityStatistics.from_labels(MaskFiles(masks), ((1, 1),))
    expected = AffinityStatistics.from_labels(MASKS.values(), ((1, 1),))
    np.testing.assert_array_equal(counted.pixels, expected.pixels)


def test_mask_values_outside_the_classes_are_refused(masks):
    for read in MaskFiles(masks, num_classes=21):
        read()
    with pytest.raises(DataError, match="one.png: .* 0 to 19 or 255. Received: the values 20$"):
        for read in MaskFiles(masks, num_classes=20):
            read()
    with pytest.raises(DataError, match="one.png: .* or 20. Received: the values 255$"):
        for read in MaskFiles(masks, num_classes=20, ignore_label=20):
            read()


@pytest.mark.parametrize("name", ["../outside.png", "/outside.png", "a/../../outside.png"])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_path_outside_the_archive_is_refused(tmp_path, name, mode):
    path = write_tar(tmp_path / "masks.tar", {name: FILES["a/one.png"]}, mode)
    with pytest.raises(DataError, match="outside.png"):
        list(MaskFiles(path))


@pytest.mark.parametrize("name", ["masks.tar", "masks.tgz"])
def test_damaged_archive_is_refused(tmp_path, name):
    rng = np.random.default_rng(0)
    files = {f"{i}.png": png(rng.integers(0, 9, (99, 99), np.uint8)) for i in range(9)}
    path = write_tar(tmp_path / name, files, "w" if name.endswith("tar") else "w:gz")
    data = path.read_bytes()
    for damaged in (b"", b"no archive", data[: len(data) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=name):
            list(MaskFiles(path))


def test_missing_masks_are_refused(tmp_path):
    with pytest.raises(DataError, match="none.tar.*no such file"):
        MaskFiles(tmp_path / "none.tar")
    with pytest.raises(DataError, match="Received: none"):
        MaskFiles(tmp_path)
    for mode in ("w", "w:gz"):
        path = write_tar(tmp_path / "empty.tar", {"notes.txt": b""}, mode)
        with pytest.raises(DataError, match="Received: none"):
            list(MaskFiles(path))


def test_ignored_files_are_logged(masks, monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "warning", lambda text, *given: lines.append(text % given))
    list(MaskFiles(masks))
    expected = ["_one.png", "notes.txt"] if masks.is_dir() else ["_one.png", "notes.txt", "link"]
    assert len(lines) == len(expected)
    for name in expected:
        assert any(": 1 (" in line and name in line for line in lines)
