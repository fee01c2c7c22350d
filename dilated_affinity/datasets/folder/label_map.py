"""Reads `labelmap.txt`, the classes and colours that CVAT exports with segmentation masks."""

import codecs

from dilated_affinity.datasets.folder.class_file import MaskClasses, read_class_file
from dilated_affinity.errors import DataError

_HEADER = "# label:color_rgb:parts:actions"


def read_label_map(data: bytes, name: str) -> MaskClasses | None:
    """Reads CVAT's `labelmap.txt`, which has a line such as `background:0,0,0::` for each class.

    Classes are numbered in the order of the lines. Masks drawn in colours, including palettes, are
    read by colour, grey ones by these numbers. Names such as void are void (see `read_class_file`).
    A name may contain colons.

    Args:
        data: The contents of the file, UTF-8 or, with a byte order mark, UTF-16.
        name: Name of the file in errors.

    Returns:
        The classes, or `None` if the file has neither CVAT's first line nor its format.

    Raises:
        DataError: If the file has CVAT's first line, but an invalid line or class.
    """
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = data.decode("utf-16" if is_utf16 else "utf-8-sig", "replace")
    lines = [line.strip() for line in text.splitlines()]
    is_cvat = bool(lines) and lines[0].replace(" ", "") == _HEADER.replace(" ", "")
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line or line.startswith("#"):
            continue
        label, color = _label_and_color(line)
        if not color:
            if not is_cvat:
                return None
            raise DataError(
                f"{name}, line {number}: expected name:red,green,blue and so on, as CVAT writes "
                f"it. Received: {line!r}"
            )
        quoted = label.replace('"', '""')
        rows.append(f'{len(rows)},"{quoted}",{",".join(color)}')
    if not rows:
        return None
    table = "\n".join(["index,name,r,g,b", *rows])
    return read_class_file(table.encode(), name, by_palette=True)


def _label_and_color(line: str) -> tuple[str, list[str]]:
    """Returns the name and the three numbers of a line; none if it has another format."""
    # The last fields first, since the name may contain colons; files written by hand may lack them.
    for fields in (line.rsplit(":", 3), line.split(":"), line.rsplit(":", 1)):
        color = [number.strip() for number in fields[1].split(",")] if len(fields) > 1 else []
        if len(color) == 3 and all(number.isdigit() for number in color):
            return fields[0], color
    return "", []
