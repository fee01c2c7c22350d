"""Progress bars, quiet where nobody watches."""

import sys

from tqdm import tqdm


def progress(iterable, description, total=None):
    """Iterates with a bar of rate and time left on stderr; silently where that is no terminal."""
    return tqdm(iterable, desc=description, total=total, disable=not sys.stderr.isatty(), unit="")
