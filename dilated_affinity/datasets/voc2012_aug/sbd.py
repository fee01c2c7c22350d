"""The masks of SBD (Hariharan et al. 2011), which are MATLAB files."""

import zlib

import numpy as np

from dilated_affinity.datasets.files.images import MAX_PIXELS
from dilated_affinity.datasets.voc2012_aug.matlab_files import read_field
from dilated_affinity.errors import DataError


def decode_sbd(data: bytes, name: str) -> np.ndarray:
    """Decodes the class mask of a file from SBD's `dataset/cls`.

    Args:
        data: The bytes of the file: a MATLAB 5 file with the struct `GTcls`, whose field
            `Segmentation` is the mask.
        name: Name of the file in errors.

    Returns:
        A uint8 array of shape `(height, width)`.

    Raises:
        DataError: If the file is empty, damaged, or has other contents.
    """
    if not data:
        raise DataError(f"{name}: expected a MATLAB file. Received: an empty file (0 bytes)")
    try:
        return read_field(data, "GTcls", "Segmentation", MAX_PIXELS)
    except LookupError as error:
        raise DataError(
            f"{name}: expected SBD's struct GTcls with the field Segmentation. "
            f"Received: {error.args[0]}"
        ) from error
    except TypeError as error:
        raise DataError(
            f"{name}: GTcls.Segmentation must be a uint8 matrix. Received: {error}"
        ) from error
    except (ValueError, zlib.error) as error:
        raise DataError(
            f"{name}: the MATLAB file is damaged or cut off. Received: {len(data)} bytes, {error}"
        ) from error
