"""What somebody may have meant by a name that does not exist."""

import difflib
from collections.abc import Iterable


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
