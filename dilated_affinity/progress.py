"""Progress bars, quiet where nobody watches."""

import sys

from tqdm.auto import tqdm


def watched() -> bool:
    """Whether somebody sees a bar move: in a terminal or a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def progress(iterable, description, total=None):
    """Iterates with a bar of rate and time left, or silently where nobody watches."""
    return tqdm(iterable, desc=description, total=total, disable=not watched(), unit="")
