"""Errors caused by input; the command line prints them as one line."""

import difflib
from collections.abc import Iterable


class DilatedAffinityError(Exception):
    """Base class of the errors that this package raises for invalid data, files or runs."""


class DataError(DilatedAffinityError):
    """A data set, image, label or statistics file is missing, damaged or invalid."""


class MissingDataError(DataError):
    """A folder contains no part of the requested data set."""


class ConfigError(DilatedAffinityError, ValueError):
    """A setting, or a combination of settings, is invalid."""


class RunError(DilatedAffinityError):
    """A `model_dir` or checkpoint cannot be used as requested."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def printable(text: object) -> str:
    r"""Returns a text on one line, with characters that a terminal obeys rather than shows escaped.

    Names of files may contain line breaks and control sequences. What is escaped stays the same if
    it is escaped again.

    Example:

    >>> print(printable("a\nb\x1b[2J é.png"))
    a\nb\x1b[2J é.png
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in str(text)
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns a suggestion to append to an error, or an empty text without a similar name.

    Example:

    >>> did_you_mean("camvit", ("shapes", "camvid"))
    " Did you mean 'camvid'?"
    >>> did_you_mean("x", ("shapes", "camvid"))
    ''
    """
    nearest = difflib.get_close_matches(str(name).lower(), list(known), n=1)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""
