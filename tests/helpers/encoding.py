"""Image files and tar archives in memory and on disk, for tests that read them."""

import io
import struct
import tarfile
import zlib

import numpy as np
from PIL import Image


def encoded(image, image_format="PNG", **options):
    """Returns the bytes of an image file of an array or a Pillow image."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def png_chunk(kind, data):
    """Returns a chunk of a PNG file with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def add_file(tar, name, data):
    """Adds a file to an open tar archive."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
