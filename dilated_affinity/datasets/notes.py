"""What is passed over, turned or read as something else, counted by kind."""

import functools
from collections.abc import Iterable

from absl import logging

_NAMES_SHOWN = 3


class Notes:
    """Files of which there is something to say, by what it is.

    Example:

    >>> notes = Notes()
    >>> for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg"):
    ...     notes.add("images turned upright", name)
    >>> notes.lines()
    ['images turned upright: 4 (a.jpg, b.jpg, c.jpg and 1 more)']
    """

    def __init__(self):
        self._names: dict[str, list[str]] = {}

    def add(self, kind: str, name: object) -> None:
        """Notes that something is to be said of one more file.

        Args:
            kind: What, as a plural noun phrase.
            name: What the file is called.
        """
        self._names.setdefault(kind, []).append(str(name))

    def merge(self, other: "Notes") -> None:
        """Adds what others have noted."""
        for kind, names in other._names.items():
            self._names.setdefault(kind, []).extend(names)

    def lines(self) -> list[str]:
        """Returns a line for each kind: how many files, and what the first of them are called."""
        return [f"{kind}: {len(names)} ({shown(names)})" for kind, names in self._names.items()]


def shown(names: Iterable[object], most=_NAMES_SHOWN) -> str:
    """Writes the first of some names, and how many more there are."""
    names = [str(name) for name in names]
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def log_once(lines: Iterable[str]) -> None:
    """Logs lines as warnings, those that this process has logged before left out.

    A run makes a builder for each of its splits, and each finds the same.
    """
    for line in lines:
        _log(line)


@functools.cache
def _log(line: str) -> None:
    logging.warning("%s", line)
