"""The masks of SBD (Hariharan et al. 2011), which are MATLAB files."""

import io

import numpy as np
import scipy.io

from dilated_affinity.errors import DataError


def decode_sbd(data: bytes, name: str) -> np.ndarray:
    """Decodes the class mask of a file in SBD's `dataset/cls`.

    Args:
        data: The bytes of the file: a MATLAB 5 file with the struct `GTcls`, whose field
            `Segmentation` is the mask.
        name: What to call the file in errors.

    Returns:
        A uint8 array of shape `(height, width)`.

    Raises:
        DataError: The file is empty, damaged, or holds something else.
    """
    if not data:
        raise DataError(f"{name}: expected a MATLAB file. Received: an empty file (0 bytes)")
    try:
        variables = scipy.io.loadmat(io.BytesIO(data), variable_names=["GTcls"])
    # SciPy's reader of damaged files raises whatever the bytes happen to lead it to, from
    # zlib.error to UnboundLocalError; nothing but reading happens here.
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(
            f"{name}: the MATLAB file is damaged or cut off. Received: {len(data)} bytes, {text}"
        ) from error
    struct = variables.get("GTcls")
    if struct is None or not struct.dtype.names or "Segmentation" not in struct.dtype.names:
        raise DataError(
            f"{name}: expected SBD's struct GTcls with the field Segmentation. Received: "
            + ("no GTcls" if struct is None else f"the fields {struct.dtype.names or ()}")
        )
    mask = struct["Segmentation"].flat[0] if struct.size else np.zeros(0)
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise DataError(
            f"{name}: GTcls.Segmentation must be a uint8 matrix. "
            f"Received: {mask.dtype} of shape {mask.shape}"
        )
    return mask
