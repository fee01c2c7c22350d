import struct
import zlib

import numpy as np
import pytest
from helpers.encoding import encoded, png_chunk
from PIL import Image

from dilated_affinity.datasets.files import images
from dilated_affinity.datasets.files.images import (
    decode_image,
    decode_label,
    decode_label_colors,
    has_colors,
    label_remarks,
    read_bytes,
    read_image,
    stored_orientation,
)
from dilated_affinity.errors import DataError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3), np.uint8)
GREY = RNG.integers(0, 256, (5, 7), np.uint8)


def png(width, height, bits, color_type, rows):
    """Encodes a PNG from raw rows with filter bytes, also in formats that Pillow cannot write."""
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b"")
    )


def test_images_become_rgb():
    np.testing.assert_array_equal(decode_image(encoded(RGB), "a"), RGB)
    np.testing.assert_array_equal(decode_image(encoded(GREY), "a"), np.stack([GREY] * 3, -1))
    rgba = np.concatenate([RGB, GREY[..., None]], -1)
    np.testing.assert_array_equal(decode_image(encoded(rgba), "a"), RGB)
    palette = Image.fromarray(GREY % 4)
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 1, 2, 3])
    colors = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [1, 2, 3]], np.uint8)
    np.testing.assert_array_equal(decode_image(encoded(palette), "a"), colors[GREY % 4])


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, format):
    stored = np.zeros((16, 24, 3), np.uint8)
    stored[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, format, exif=exif)
    upright, remarks = read_image(data, "a")
    remark = f"turned upright by their EXIF orientation {orientation}"
    assert remarks == ((f"images {remark}",) if orientation > 1 else ())
    assert label_remarks(data, "a") == ((f"masks {remark}",) if orientation > 1 else ())
    assert stored_orientation(data) == orientation
    expected = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(stored),
    }[orientation]
    np.testing.assert_array_equal(upright, expected)


@pytest.mark.parametrize(
    ("data", "received"),
    [
        (encoded(Image.new("CMYK", (4, 4)), "JPEG"), "8-bit CMYK"),
        (encoded(np.zeros((4, 4), np.uint16)), "16-bit I;16"),
        (png(1, 1, 16, 2, b"\0" + bytes(6)), "16-bit RGB"),
        (encoded(Image.new("F", (4, 4)), "TIFF"), "32-bit F"),
        (encoded(Image.new("LAB", (4, 4)), "TIFF"), "8-bit LAB"),
    ],
)
def test_unsupported_images_are_refused(data, received):
    with pytest.raises(DataError, match=f"^x.png: an image must .* Received: {received}$"):
        decode_image(data, "x.png")


def test_labels_keep_the_stored_values():
    np.testing.assert_array_equal(decode_label(encoded(GREY), "a"), GREY)
    palette = Image.fromarray(GREY)
    palette.putpalette(RNG.integers(0, 256, 768, np.uint8).tolist())
    np.testing.assert_array_equal(decode_label(encoded(palette), "a"), GREY)
    small = Image.fromarray(GREY % 3)
    small.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    np.testing.assert_array_equal(decode_label(encoded(small, bits=2), "a"), GREY % 3)
    binary = Image.fromarray(GREY > 99)
    assert binary.mode == "1"
    np.testing.assert_array_equal(decode_label(encoded(binary), "a"), GREY > 99)


def test_pgm_label():
    data = b"P5\n# classes\n2 2 255\n" + bytes([0, 1, 1, 7])
    assert decode_label(data, "a").tolist() == [[0, 1], [1, 7]]
    with pytest.raises(DataError, match="maximum 255. Received: 11"):
        decode_label(data.replace(b"255", b"11"), "a")


@pytest.mark.parametrize(
    ("bits", "row", "expected"),
    [(2, 0b00011011, [0, 1, 2, 3]), (4, 0x0F, [0, 15]), (1, 0b01000000, [0, 1])],
)
def test_grey_labels_of_few_bits(bits, row, expected):
    data = png(len(expected), 1, bits, 0, bytes([0, row]))
    assert decode_label(data, "a").tolist() == [expected]


@pytest.mark.parametrize(
    ("data", "received"),
    [
        (encoded(RGB), "8-bit RGB"),
        (encoded(np.zeros((4, 4), np.uint16)), "16-bit I;16"),
        (encoded(GREY, "JPEG"), "JPEG"),
        (encoded(RGB, "WEBP", lossless=True), "WEBP"),
    ],
)
def test_unsupported_labels_are_refused(data, received):
    with pytest.raises(DataError, match=f"^x.png: a label must .* Received: {received}$"):
        decode_label(data, "x.png")


def test_labels_in_colors():
    np.testing.assert_array_equal(decode_label_colors(encoded(RGB), "a"), RGB)
    palette = Image.fromarray(GREY % 2)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    colors = np.array([[10, 20, 30], [40, 50, 60]], np.uint8)
    np.testing.assert_array_equal(decode_label_colors(encoded(palette), "a"), colors[GREY % 2])
    np.testing.assert_array_equal(
        decode_label_colors(encoded(GREY), "a"), np.stack([GREY] * 3, axis=-1)
    )
    assert has_colors(encoded(RGB), "a")
    assert not has_colors(encoded(GREY), "a") and not has_colors(encoded(palette), "a")


@pytest.mark.parametrize(
    ("data", "received"),
    [
        (encoded(RGB, "JPEG"), "JPEG"),
        (encoded(Image.new("CMYK", (4, 4)), "TIFF"), "8-bit CMYK"),
        (png(1, 1, 16, 2, b"\0" + bytes(6)), "16-bit RGB"),
        (encoded(Image.new("RGBA", (4, 4), (1, 2, 3, 9))), "alpha 9"),
    ],
)
def test_unsupported_colored_labels_are_refused(data, received):
    with pytest.raises(DataError, match=f"^x.png: a label must .* Received: {received}$"):
        decode_label_colors(data, "x.png")


def test_transparency_of_labels():
    """With an alpha channel colours may have been changed; a transparent entry keeps its colour."""
    rgba = np.dstack([RGB, np.full(GREY.shape, 255, np.uint8)])
    np.testing.assert_array_equal(decode_label_colors(encoded(rgba), "a"), RGB)
    rgba[2, 3] = 0
    remedy = "x.png: .* opaque.*save it without transparency, with the colour of void"
    with pytest.raises(DataError, match=remedy):
        decode_label_colors(encoded(rgba), "x.png")
    with pytest.raises(DataError, match="one channel .* Received: 8-bit LA$"):
        decode_label(encoded(np.dstack([GREY, GREY])), "x.png")
    key = tuple(map(int, RGB[0, 0]))
    for data, decode, expected in (
        (encoded(RGB, transparency=key), decode_label_colors, RGB),
        (encoded(GREY, transparency=int(GREY[0, 0])), decode_label, GREY),
    ):
        np.testing.assert_array_equal(decode(data, "a"), expected)
        (remark,) = label_remarks(data, "a")
        assert remark == "masks transparent in places, read as if they were opaque"


@pytest.mark.parametrize("decode", [decode_image, decode_label, decode_label_colors])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not an image",
        encoded(RGB)[:20],
        encoded(np.tile(GREY, (20, 20)))[:-2000],
        encoded(GREY).replace(b"IDAT", b"XDAT"),
        encoded(RGB, "JPEG")[:-60],
        encoded(RGB, "GIF")[:30],
        encoded(RGB, "BMP")[:60],
        encoded(GREY, "TIFF")[:40],
    ],
)
def test_damaged_files_are_refused(decode, data):
    with pytest.raises(DataError, match="^folder/x.png: .* Received: ") as caught:
        decode(data, "folder/x.png")
    assert "\n" not in str(caught.value)


def test_truncated_png():
    data = encoded(GREY)
    for size in range(len(data)):
        try:
            values = decode_label(data[:size], "x.png")
        except DataError:
            continue
        np.testing.assert_array_equal(values, GREY)


def test_too_many_pixels_are_refused_before_decoding(monkeypatch):
    # The header states 60,000 x 60,000 pixels, but the file contains none.
    with pytest.raises(DataError, match="^x.png: images may have 89478485 pixels at most"):
        decode_image(png(60_000, 60_000, 8, 0, b""), "x.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 34)
    with pytest.raises(DataError, match="Received: 7x5 pixels"):
        decode_image(encoded(RGB), "x.png")


def test_unreadable_files(tmp_path):
    with pytest.raises(DataError, match="none.png: cannot be read .No such file"):
        read_bytes(tmp_path / "none.png")
    with pytest.raises(DataError, match="cannot be read"):
        read_bytes(tmp_path)
