"""Finds a data set in `data_dir` itself or in the folder of its name there."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dilated_affinity.errors import MissingDataError

Opened = TypeVar("Opened")


def open_data_dir(name: str, data_dir: str | os.PathLike, open: Callable[[Path], Opened]) -> Opened:
    """Opens a data set in `data_dir` or, if it is not there, in `data_dir/name`.

    Both `data` and `data/camvid` thus find CamVid where `data/README.md` puts it.

    Args:
        name: Name of the data set.
        data_dir: The given folder.
        open: Opens the data set in a folder; raises `MissingDataError` if it is not there.

    Raises:
        MissingDataError: If it is in neither folder. The message names both.
    """
    root = Path(data_dir).expanduser()
    try:
        return open(root)
    except MissingDataError as error:
        below = root / name
        if not below.is_dir():
            raise MissingDataError(
                f"{error} (Looked in {root} and {below}; --data_dir names another folder."
                f"{_other_case(root, name)})"
            ) from None
    try:
        return open(below)
    except MissingDataError as error:
        raise MissingDataError(
            f"{error} (Looked in {below} and {root}; --data_dir names another folder.)"
        ) from None


def _other_case(root: Path, name: str) -> str:
    """Returns a hint if a folder's name differs from the data set's only in case, or no text."""
    try:
        folders = [path for path in sorted(root.iterdir()) if path.is_dir()]
    except OSError:
        return ""
    for path in folders:
        if path.name.casefold() == name.casefold():
            return f" {path} differs in upper and lower case: --data_dir={path} reads it."
    return ""
