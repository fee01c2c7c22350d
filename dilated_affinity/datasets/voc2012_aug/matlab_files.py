"""Reads one field of a struct in a MATLAB 5 file.

`scipy.io.loadmat` is not used because it trusts the sizes that a file states: of 1,500 SBD files
damaged as in `tests/helpers/mutation.py`, SciPy 1.17.1 ended the process with a signal
on 229. This reader returns an array or raises an exception for any bytes, and unpacks no more
memory than the caller allows.

The format is "MAT-File Format", The MathWorks, level 5.
"""

import struct
import zlib
from collections.abc import Iterator

import numpy as np

_HEADER = 128
_BYTES, _INT32, _UINT32, _MATRIX, _COMPRESSED = (1, 2), 5, 6, 14, 15
_STRUCT = 2
# By array class; the other classes are not numeric.
_TYPES = {6: "float64", 7: "float32", 8: "int8", 9: "uint8", 10: "int16", 11: "uint16"}
_TYPES |= {12: "int32", 13: "uint32", 14: "int64", 15: "uint64"}


def read_field(data: bytes, variable: str, field: str, most: int) -> np.ndarray:
    """Reads a byte matrix that is a field of a struct.

    Args:
        data: The bytes of the file.
        variable: Name of the struct.
        field: Name of the field.
        most: Limit of the bytes that a compressed array unpacks to.

    Returns:
        A uint8 array of shape `(rows, columns)`.

    Raises:
        ValueError: If the file is damaged or an array too large.
        zlib.error: If a compressed array is damaged.
        LookupError: If it has no such struct, or the struct has no such field.
        TypeError: If the field is not a byte matrix.
    """
    if len(data) < _HEADER or data[126:128] not in (b"IM", b"MI"):
        raise ValueError("it is truncated or not a MATLAB 5 file")
    order = "<" if data[126:128] == b"IM" else ">"
    for kind, content in _elements(data[_HEADER:], order):
        if kind == _COMPRESSED:
            kind, content = next(_elements(_unpacked(content, most), order), (0, b""))
        if kind != _MATRIX:
            continue
        parts = _elements(content, order)
        array_class, shape, name = _head(parts, order)
        if name == variable.encode():
            if array_class != _STRUCT or shape != [1, 1]:
                raise LookupError("the fields ()")
            return _field(parts, order, field)
    raise LookupError(f"no {variable}")


def _field(parts, order, wanted):
    (length,) = struct.unpack(f"{order}i", _next(parts, _INT32)[:4].ljust(4, b"\0"))
    names = _next(parts, 1)
    if not 0 < length <= len(names):
        raise ValueError("the names of the fields are damaged")
    fields = [
        names[start : start + length].split(b"\0")[0].decode("latin-1")
        for start in range(0, len(names), length)
    ]
    if wanted not in fields:
        raise LookupError(f"the fields {tuple(fields)}")
    for _ in range(fields.index(wanted)):
        _next(parts, _MATRIX)
    inner = _elements(_next(parts, _MATRIX), order)
    array_class, shape, _ = _head(inner, order)
    dtype = _TYPES.get(array_class, "no numbers")
    if dtype != "uint8" or len(shape) != 2:
        raise TypeError(f"{dtype} of shape {tuple(shape)}")
    kind, values = next(inner, (0, b""))
    if kind not in _BYTES or len(values) != shape[0] * shape[1]:
        raise ValueError(f"a matrix of {shape} entries has {len(values)} bytes")
    return np.frombuffer(values, np.uint8).reshape(shape, order="F")


def _head(parts, order):
    """Class, shape and name of an array, from its first parts."""
    flags = _next(parts, _UINT32)
    if len(flags) < 4:
        raise ValueError("an array has no class")
    sides = _next(parts, _INT32)
    shape = np.frombuffer(sides[: len(sides) // 4 * 4], f"{order}i4").tolist()
    name = _next(parts, 1)
    return struct.unpack_from(f"{order}I", flags)[0] & 0xFF, shape, name


def _next(parts, kind):
    found, content = next(parts, (0, b""))
    if found != kind:
        raise ValueError("the parts of an array are damaged")
    return content


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Yields kind and content of each element."""
    position = 0
    while position + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, position)
        start, padded = position + 8, kind != _COMPRESSED
        if kind >> 16:  # small format: kind and size in four bytes, data in the next four
            kind, size, start = kind & 0xFFFF, kind >> 16, position + 4
        content = data[start : start + size]
        if len(content) < size or (start == position + 4 and size > 4):
            raise ValueError("an element is truncated")
        yield kind, content
        position = start + size + (-(start + size - position) % 8 if padded else 0)


def _unpacked(content, most):
    unpacking = zlib.decompressobj()
    unpacked = unpacking.decompress(content, most + 1)
    if len(unpacked) > most:
        raise ValueError(f"it unpacks to more than {most} bytes")
    if not unpacking.eof:
        raise ValueError("a compressed array is truncated")
    return unpacked
