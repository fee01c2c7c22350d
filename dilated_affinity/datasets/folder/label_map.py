"""Reads `labelmap.txt`, the classes and colours that CVAT exports with segmentation masks."""

from dilated_affinity.datasets.folder.class_file import MaskClasses, read_class_file
from dilated_affinity.errors import DataError

_HEADER = "# label:color_rgb:parts:actions"


def read_label_map(data: bytes, name: str) -> MaskClasses | None:
    """Reads CVAT's `labelmap.txt`, which has a line such as `background:0,0,0::` for each class.

    Classes are numbered in the order of the lines. Masks drawn in colours, including palettes, are
    read by colour, grey ones by these numbers. Names such as void are void (see `read_class_file`).

    Args:
        data: The contents of the file.
        name: Name of the file in errors.

    Returns:
        The classes, or `None` if the file has neither CVAT's first line nor its format.

    Raises:
        DataError: If the file has CVAT's first line, but an invalid line or class.
    """
    lines = [line.strip() for line in data.decode("utf-8-sig", "replace").splitlines()]
    is_cvat = bool(lines) and lines[0].replace(" ", "") == _HEADER.replace(" ", "")
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line or line.startswith("#"):
            continue
        label, colon, rest = line.partition(":")
        color = rest.partition(":")[0].split(",")
        if not colon or len(color) != 3 or not all(c.strip().isdigit() for c in color):
            if not is_cvat:
                return None
            raise DataError(
                f"{name}, line {number}: expected name:red,green,blue and so on, as CVAT writes "
                f"it. Received: {line!r}"
            )
        quoted = label.replace('"', '""')
        rows.append(f'{len(rows)},"{quoted}",{",".join(c.strip() for c in color)}')
    if not rows:
        return None
    table = "\n".join(["index,name,r,g,b", *rows])
    return read_class_file(table.encode(), name, by_palette=True)
