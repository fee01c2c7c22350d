"""Tests of malicious files: small on disk and large in memory, blocking, or running code."""

import io
import os
import struct
import tarfile
import zlib

import numpy as np
import pytest
import scipy.io
from helpers.encoding import png_chunk
from PIL import Image

from dilated_affinity.config import Config
from dilated_affinity.datasets.files import images
from dilated_affinity.datasets.files.images import MAX_FILE_BYTES, decode_image, read_bytes
from dilated_affinity.datasets.files.masks import MaskFiles
from dilated_affinity.datasets.folder.class_file import read_class_file
from dilated_affinity.datasets.voc2012_aug.sbd import decode_sbd
from dilated_affinity.errors import DataError


def test_decompression_bomb(monkeypatch):
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    png = (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(bytes(99)))
    )
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(DataError, match="pixels at most"):
        decode_image(png + png_chunk(b"IEND", b""), "x.png")


def test_postscript_is_refused():
    picture = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    assert Image.open(io.BytesIO(picture)).format == "EPS"
    with pytest.raises(DataError, match="x.eps: expected an image file"):
        decode_image(picture, "x.eps")


def test_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DataError, match="a device, pipe or folder"):
        read_bytes(tmp_path / "a.png")


def test_device_is_refused():
    with pytest.raises(DataError, match="a device, pipe or folder"):
        read_bytes("/dev/zero")


def test_large_file_is_refused(tmp_path):
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(DataError, match=f"{MAX_FILE_BYTES} bytes at most"):
        read_bytes(tmp_path / "a.png")


def test_archive_with_large_member_is_refused(tmp_path):
    member = tarfile.TarInfo("a.png")
    member.size = 2**40
    (tmp_path / "masks.tar").write_bytes(member.tobuf() + bytes(1024))
    with pytest.raises(DataError, match=f"a.png: files may have {MAX_FILE_BYTES} bytes at most"):
        list(MaskFiles(tmp_path / "masks.tar"))


def test_large_matlab_file_is_refused(monkeypatch):
    file = io.BytesIO()
    mask = np.zeros((2000, 2000), np.uint8)
    scipy.io.savemat(file, {"GTcls": {"Segmentation": mask}}, do_compression=True)
    assert len(file.getvalue()) < 10_000
    np.testing.assert_array_equal(decode_sbd(file.getvalue(), "x.mat"), mask)
    monkeypatch.setattr("dilated_affinity.datasets.voc2012_aug.sbd.MAX_PIXELS", 3_000_000)
    with pytest.raises(DataError, match="unpacks to more than 3000000 bytes"):
        decode_sbd(file.getvalue(), "x.mat")


@pytest.mark.parametrize("sides", [(2**31 - 1, 2**31 - 1), (-2, -3), (2, 4)])
def test_matlab_array_of_wrong_size_is_refused(sides):
    """The first of these, and flipped bits elsewhere, crashed Python in SciPy's reader."""
    file = io.BytesIO()
    scipy.io.savemat(file, {"GTcls": {"Segmentation": np.ones((2, 3), np.uint8)}})
    data = file.getvalue()
    assert data.count(struct.pack("<ii", 2, 3)) == 1
    damaged = data.replace(struct.pack("<ii", 2, 3), struct.pack("<ii", *sides))
    with pytest.raises(DataError, match="x.mat: the MATLAB file is damaged"):
        decode_sbd(damaged, "x.mat")


@pytest.mark.parametrize("field", [b'"' + b"x" * 200_000 + b'"', b"a\rb\0"])
def test_invalid_csv_is_refused(field):
    with pytest.raises(DataError, match=r"classes\.csv"):
        read_class_file(b"index,name\n0," + field + b"\n", "classes.csv")


def test_setting_beyond_float_range_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(f'{{"config": {{"beta": 1{"0" * 400}}}}}')
    with pytest.raises(DataError, match=r"config\.json: not the configuration of a run"):
        Config.load(tmp_path / "config.json")


def test_memory_of_decoding_the_largest_image():
    """RGBA, rotated, converted to RGB of four bytes in Pillow, and to an array of three."""
    assert images.MAX_PIXELS * (4 + 4 + 4 + 3) < 2e9
