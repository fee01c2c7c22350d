"""The errors that a user can cause; the command line prints them as one line."""

import difflib
from collections.abc import Iterable


class DilatedAffinityError(Exception):
    """Base class of every error that this package raises for bad data, files or runs."""


class DataError(DilatedAffinityError):
    """A data set, image, label or statistics file is missing, damaged or not what it should be."""


class MissingDataError(DataError):
    """A folder holds nothing of the data set that was looked for."""


class ConfigError(DilatedAffinityError, ValueError):
    """A setting, or a combination of settings, makes no sense."""


class RunError(DilatedAffinityError):
    """A `model_dir` or checkpoint cannot be used as asked."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question to append to an error, with a space before it; empty where nothing is near.

    Example:

    >>> did_you_mean("camvit", ("shapes", "camvid"))
    " Did you mean 'camvid'?"
    >>> did_you_mean("x", ("shapes", "camvid"))
    ''
    """
    nearest = difflib.get_close_matches(str(name).lower(), list(known), n=1)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""
