"""Notes on files that are ignored, turned or converted, counted by kind."""

import functools
from collections.abc import Iterable

from absl import logging

from dilated_affinity.errors import printable

_NAMES_SHOWN = 3


class Notes:
    """Files by the kind of note on them.

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
        """Adds a note on a file.

        Args:
            kind: Kind of the note, a plural noun phrase.
            name: Name of the file.
        """
        self._names.setdefault(kind, []).append(str(name))

    def merge(self, other: "Notes") -> None:
        """Adds other notes."""
        for kind, names in other._names.items():
            self._names.setdefault(kind, []).extend(names)

    def names(self, kind: str) -> list[str]:
        """Returns the names of the files with a note of some kind."""
        return list(self._names.get(kind, ()))

    def lines(self) -> list[str]:
        """Returns a line for each kind with the number of files and the first names."""
        return [
            printable(f"{kind}: {len(names)} ({abbreviate(names)})")
            for kind, names in self._names.items()
        ]


def abbreviate(names: Iterable[object], most=_NAMES_SHOWN) -> str:
    """Formats the first of some names and the number of the others."""
    names = [str(name) for name in names]
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def log_once(lines: Iterable[str]) -> None:
    """Logs lines as warnings, except those that this process has logged before.

    A run makes a builder for each of its splits, all of which have the same notes.
    """
    for line in lines:
        _log(line)


@functools.cache
def _log(line: str) -> None:
    logging.warning("%s", printable(line))
