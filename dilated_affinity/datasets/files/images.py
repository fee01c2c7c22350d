"""Reads images and label maps with Pillow, and refuses files that it would misread.

Labels are never decoded by TensorFlow or OpenCV: both expand a palette to colours, but the class
is the palette index.
"""

import io
import os
import re
import stat
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps

from dilated_affinity.errors import DataError

# File name endings of images when a folder is listed.
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")

# Pillow's own `MAX_IMAGE_PIXELS`, above which it warns of a decompression bomb. Decoding an image
# of this size, rotating it and converting it to RGB takes 1.5 GB.
MAX_PIXELS = 89_478_485

# Larger than any image of at most MAX_PIXELS.
MAX_FILE_BYTES = 2**30

# Other formats of Pillow include PostScript, for which it runs another program.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")

_LOSSY_FORMATS = ("JPEG", "MPO", "WEBP")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TIFF_BITS_PER_SAMPLE = 258
_EXIF_ORIENTATION = 0x0112

# Key of `Image.info` for the orientation of a TIFF, which Pillow turns upright while decoding it.
_TURNED_FROM = "dilated_affinity: turned from"

# Errors that Pillow's decoders raise for damaged files; UnidentifiedImageError is an OSError.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    zlib.error,
)


def decode_image(data: bytes, name: str) -> np.ndarray:
    """Decodes an image to RGB.

    The EXIF orientation is applied, so that the array is upright as viewers show it. Grey images
    become RGB, palettes are resolved and alpha is dropped.

    Args:
        data: The bytes of the file: PNG, JPEG, BMP, GIF, PNM, TIFF or WebP.
        name: Name of the file in errors.

    Returns:
        A uint8 array of shape `(height, width, 3)`, RGB.

    Raises:
        DataError: If the file is empty, damaged, too large, does not have 8 bits per channel, or is
            neither grey nor RGB (such as CMYK).
    """
    return read_image(data, name)[0]


def read_image(data: bytes, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Decodes an image as `decode_image` does, and returns remarks on the conversion.

    Returns:
        The array, and remarks on changes to the image or parts of it that are ignored, as plural
        noun phrases such as `"images turned upright by their EXIF orientation 3"`.

    Raises:
        DataError: As `decode_image`.
    """
    image = _open(data, name)
    bits = _bits_per_channel(image, data)
    if bits > 8 or image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX"):
        raise DataError(
            f"{name}: an image must be grey or RGB with 8 bits per channel. "
            f"Received: {bits}-bit {image.mode}"
        )
    remarks = _remarks(image, name, "images")
    return np.asarray(_to_rgb(_upright(image, name))), remarks


def label_remarks(data: bytes, name: str) -> tuple[str, ...]:
    """Returns remarks on the conversion of a label file; see `read_image`. None for a .mat file.

    Raises:
        DataError: If the file is damaged.
    """
    return () if name.endswith(".mat") else _remarks(_open(data, name), name, "masks")


def palette_colors(data: bytes, name: str) -> dict[int, tuple[int, int, int]]:
    """Returns the palette's colours of the indices that occur in a palette image.

    Raises:
        DataError: If the file is damaged.
    """
    image = _open(data, name)
    if image.mode != "P":
        return {}
    palette = np.asarray(image.getpalette("RGB"), int).reshape(-1, 3)
    indices = [index for _, index in image.getcolors(256) if index < len(palette)]
    return {index: tuple(palette[index].tolist()) for index in sorted(indices)}


def decode_label(data: bytes, name: str) -> np.ndarray:
    """Decodes a label map to its stored values: palette indices or grey values.

    Args:
        data: The bytes of the file: PNG, BMP, GIF, PNM or TIFF.
        name: Name of the file in errors.

    Returns:
        A uint8 array of shape `(height, width)`.

    Raises:
        DataError: If the file is empty, damaged, too large, in a lossy format, or does not store
            one channel of at most 8 bits.
    """
    image = _open_lossless(data, name)
    bits = _bits_per_channel(image, data)
    if bits > 8 or image.mode not in ("1", "L", "P"):
        raise DataError(
            f"{name}: a label must hold one channel of class indices, as a grey or palette image "
            f"of at most 8 bits. Received: {bits}-bit {image.mode}"
        )
    values = np.asarray(_upright(image, name))
    if image.mode == "L" and bits < 8:
        # Pillow scales grey values of 2 and 4 bits to 0..255; restore the stored values.
        values = values // (255 // (2**bits - 1))
    return values.astype(np.uint8)


def decode_label_colors(data: bytes, name: str) -> np.ndarray:
    """Decodes a label map that is drawn in colours, including those of a palette.

    Args:
        data: The bytes of the file: PNG, BMP, GIF, PNM or TIFF.
        name: Name of the file in errors.

    Returns:
        A uint8 array of shape `(height, width, 3)`, RGB.

    Raises:
        DataError: If the file is empty, damaged, too large, in a lossy format, partly transparent,
            does not have 8 bits per channel, or is neither grey nor RGB.
    """
    image = _open_lossless(data, name)
    bits = _bits_per_channel(image, data)
    if bits > 8 or image.mode not in ("1", "L", "P", "RGB", "RGBA"):
        raise DataError(
            f"{name}: a label must be drawn in RGB or palette colours with 8 bits per channel. "
            f"Received: {bits}-bit {image.mode}"
        )
    if image.mode == "RGBA" and image.getextrema()[3] != (255, 255):
        raise DataError(
            f"{name}: a label must be opaque, since many tools change the colours of "
            "transparent pixels; save it without transparency, with the colour of void or of a "
            f"class in their place. Received: alpha {image.getextrema()[3][0]}"
        )
    return np.asarray(_to_rgb(_upright(image, name)))


def has_one_bit(data: bytes, name: str) -> bool:
    """Returns whether an image file stores one bit per pixel, so that its values are 0 and 1.

    Raises:
        DataError: If the file is empty, damaged or too large.
    """
    image = _open(data, name)
    return image.mode == "1" or _bits_per_channel(image, data) == 1


def has_colors(data: bytes, name: str, palettes=False) -> bool:
    """Returns whether an image file stores colours rather than grey values or palette indices.

    Args:
        data: The bytes of the file.
        name: Name of the file in errors.
        palettes: Whether the colours of a palette count.

    Raises:
        DataError: If the file is empty, damaged or too large.
    """
    modes = ("RGB", "RGBA", "RGBX", "P", "PA") if palettes else ("RGB", "RGBA", "RGBX")
    return _open(data, name).mode in modes


def read_bytes(path: str | os.PathLike) -> bytes:
    """Returns the contents of a file.

    Raises:
        DataError: If it cannot be read, is not a regular file, or has more than `MAX_FILE_BYTES`.
    """
    try:
        # Opening a pipe would block until it has a writer.
        with open(path, "rb", opener=_open_nonblocking) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise DataError(f"{path}: expected a file. Received: a device, pipe or folder")
            if status.st_size > MAX_FILE_BYTES:
                raise DataError(
                    f"{path}: files may have {MAX_FILE_BYTES} bytes at most. "
                    f"Received: {status.st_size}"
                )
            return file.read()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _open_nonblocking(path, flags):
    # Windows has neither such pipes nor, without O_BINARY, files as they are.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))


def stored_orientation(data: bytes) -> int:
    """Returns the EXIF orientation, 1 to 8, of a valid image file; 1 if it has none."""
    with Image.open(io.BytesIO(data)) as image:
        return image.getexif().get(_EXIF_ORIENTATION, 1)


def _open(data: bytes, name: str) -> Image.Image:
    """Opens an image and decodes its pixels, unless the header states too many of them."""
    if not data:
        raise DataError(f"{name}: expected an image file. Received: an empty file (0 bytes)")
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise _too_large(name, f"{width}x{height} pixels")
        turned_from = image.getexif().get(_EXIF_ORIENTATION, 1) if image.format == "TIFF" else 1
        image.load()
        image.info[_TURNED_FROM] = turned_from
    except Image.DecompressionBombError as error:
        raise _too_large(name, str(error)) from error
    except Image.UnidentifiedImageError as error:
        raise DataError(
            f"{name}: expected an image file: PNG, JPEG, BMP, GIF, PNM, TIFF or WebP. "
            f"Received: {len(data)} bytes of something else"
        ) from error
    except _DECODER_ERRORS as error:
        raise DataError(
            f"{name}: the image file is damaged or cut off. "
            f"Received: {len(data)} bytes, {_one_line(error)}"
        ) from error
    return image


def _open_lossless(data: bytes, name: str) -> Image.Image:
    image = _open(data, name)
    if image.format in _LOSSY_FORMATS:
        raise DataError(
            f"{name}: a label must be in a lossless format such as PNG, since others change "
            f"its values. Received: {image.format}"
        )
    if image.format == "PPM" and image.mode in ("L", "RGB"):
        # The header has format, width, height and maximum; Pillow scales unless that is 255.
        header = re.sub(rb"#[^\r\n]*", b" ", data[:4096]).split(maxsplit=4)
        if header[3:4] != [b"255"]:
            most = b" ".join(header[3:4]).decode("ascii", "replace")
            raise DataError(f"{name}: a PNM label must have the maximum 255. Received: {most}")
    return image


def _remarks(image: Image.Image, name: str, kind: str) -> tuple[str, ...]:
    texts = (_orientation_remark(image, name), _alpha_remark(image), _frames_remark(image))
    return tuple(f"{kind} {text}" for text in texts if text)


def _orientation_remark(image: Image.Image, name: str) -> str:
    orientation = _orientation(image, name)
    return f"turned upright by their EXIF orientation {orientation}" if orientation > 1 else ""


def _alpha_remark(image: Image.Image) -> str:
    """Returns a remark if some pixels, or their palette entries, are not opaque."""
    if image.mode in ("RGBA", "LA", "PA"):
        occurs = image.getextrema()[-1][0] < 255
    elif "transparency" in image.info:
        # Transparent palette entries or a transparent colour need not occur in the image.
        occurs = image.convert("RGBA").getextrema()[3][0] < 255
    else:
        return ""
    return "transparent in places, read as if they were opaque" if occurs else ""


def _frames_remark(image: Image.Image) -> str:
    try:
        several = getattr(image, "is_animated", False)
    except _DECODER_ERRORS:
        # The first frame has been decoded; only later ones can be damaged.
        several = True
    return "with several frames or pages, of which the first is read" if several else ""


def _orientation(image: Image.Image, name: str) -> int:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, image.info[_TURNED_FROM])
    except _DECODER_ERRORS as error:
        raise _unreadable_orientation(name, error) from error
    return orientation if orientation in range(2, 9) else 1


def _upright(image: Image.Image, name: str) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except _DECODER_ERRORS as error:
        raise _unreadable_orientation(name, error) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "P" and "transparency" in image.info:
        # A direct conversion makes Pillow warn.
        image = image.convert("RGBA")
    return image.convert("RGB")


def _unreadable_orientation(name: str, error: Exception) -> DataError:
    return DataError(f"{name}: its EXIF orientation cannot be read. Received: {_one_line(error)}")


def _bits_per_channel(image: Image.Image, data: bytes) -> int:
    """Returns the stored bits, which the mode may hide: Pillow opens 16-bit RGB as RGB."""
    if image.mode.startswith("I;16"):
        return 16
    if image.mode in ("I", "F"):
        # Pillow also opens 16-bit grey PNG as mode I.
        return data[24] if data.startswith(_PNG_SIGNATURE) else 32
    if data.startswith(_PNG_SIGNATURE):
        return data[24]
    if image.format == "TIFF":
        return max(np.atleast_1d(image.tag_v2.get(_TIFF_BITS_PER_SAMPLE, 1)))
    return 8


def _too_large(name: str, received: str) -> DataError:
    return DataError(f"{name}: images may have {MAX_PIXELS} pixels at most. Received: {received}")


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
