"""Section 3.1: dilation rates and the offsets of the neighbours.

`neighbor_offsets` alone defines the channel order of targets, head, loss and propagation.
"""

import re

import numpy as np

from dilated_affinity.errors import ConfigError

NEIGHBORS = 8
"""Neighbours of a pixel at one rate: the 3x3 grid without its centre (Eq. 3)."""

Rates = tuple[tuple[int, int], ...]

_RATE = re.compile(r"\(\s*(\d+)\s*,\s*(\d+)\s*\)|(\d+)")
_RATES = re.compile(rf"\s*(?:{_RATE.pattern})(?:\s*,\s*(?:{_RATE.pattern}))*\s*")


def parse_rates(text: str) -> Rates:
    """Reads dilation rates in the paper's notation.

    A bare number `r` is the square rate (r, r). A bracketed pair `(a, b)` adds both (a, b) and its
    transpose (b, a), as in the paper's Table 2.

    Args:
        text: Comma-separated rates, for example `"8,(12,24),16"`.

    Returns:
        A tuple of (vertical, horizontal) distances in pixels, in the order written.

    Raises:
        ConfigError: If the text is not of this form, or a rate is zero or given twice.

    Example:

    >>> parse_rates("8,(12,24),16")
    ((8, 8), (12, 24), (24, 12), (16, 16))
    """
    if not isinstance(text, str) or not _RATES.fullmatch(text):
        raise ConfigError(
            "rates must be numbers and bracketed pairs separated by commas, for example "
            f"'8,(12,24),16'. Received: rates={text!r}"
        )
    rates = []
    for match in _RATE.finditer(text):
        vertical, horizontal, square = match.groups()
        if square is not None:
            rates.append((int(square), int(square)))
            continue
        pair = (int(vertical), int(horizontal))
        rates.append(pair)
        if pair[0] != pair[1]:
            rates.append(pair[::-1])
    return check_rates(rates)


def format_rates(rates: Rates) -> str:
    """The shortest text that `parse_rates` reads back as `rates`.

    >>> format_rates(((8, 8), (12, 24), (24, 12), (16, 16)))
    '8,(12,24),16'
    """
    rates = check_rates(rates)
    parts, position = [], 0
    while position < len(rates):
        vertical, horizontal = rates[position]
        if vertical == horizontal:
            parts.append(str(vertical))
        elif rates[position + 1 : position + 2] == ((horizontal, vertical),):
            parts.append(f"({vertical},{horizontal})")
            position += 1
        else:
            raise ConfigError(
                "A rate that is not square must be followed by its transpose to be written as "
                f"text. Received: rates={rates}"
            )
        position += 1
    return ",".join(parts)


def check_rates(rates) -> Rates:
    """Converts rates in any accepted form to a tuple of pairs of positive ints.

    Args:
        rates: Text as `parse_rates` reads it, or a sequence of (vertical, horizontal) pairs and of
            numbers, where `r` is the square rate (r, r). In a sequence, no transpose is added to a
            pair.

    Raises:
        ConfigError: If they are none of these, or a rate is zero or given twice.

    Example:

    >>> check_rates((8, (12, 24))) == check_rates([[8, 8], [12, 24]])
    True
    >>> check_rates("8,(12,24)")
    ((8, 8), (12, 24), (24, 12))
    """
    if isinstance(rates, str):
        return parse_rates(rates)
    try:
        given = tuple((rate, rate) if np.ndim(rate) == 0 else tuple(rate) for rate in rates)
        pairs = tuple((int(vertical), int(horizontal)) for vertical, horizontal in given)
        whole = given == pairs
    except (TypeError, ValueError):
        pairs, whole = (), False
    if not pairs or not whole or any(min(pair) < 1 for pair in pairs):
        raise ConfigError(
            "rates must be text such as '8,(12,24),16', or positive whole numbers and "
            f"(vertical, horizontal) pairs of them. Received: rates={rates!r}"
        )
    if len(set(pairs)) != len(pairs):
        raise ConfigError(f"A rate is given more than once. Received: rates={pairs}")
    return pairs


def neighbor_offsets(rates) -> np.ndarray:
    """The neighbours S_r of a pixel for every rate (Eq. 2 and 3), in channel order.

    Args:
        rates: Dilation rates, see `check_rates`.

    Returns:
        int array of shape (8|R|, 2): (dy, dx) in pixels. Row 8*i + c is neighbour c of rate i; the
        neighbours of a rate are those of the 3x3 grid in row-major order, without the centre.

    Raises:
        ConfigError: If `rates` is empty or holds anything but pairs of positive ints.

    Example:

    >>> neighbor_offsets(((1, 2),)).tolist()
    [[-1, -2], [-1, 0], [-1, 2], [0, -2], [0, 2], [1, -2], [1, 0], [1, 2]]
    """
    return np.array(
        [
            (dy, dx)
            for vertical, horizontal in check_rates(rates)
            for dy in (-vertical, 0, vertical)
            for dx in (-horizontal, 0, horizontal)
            if (dy, dx) != (0, 0)
        ],
        dtype=int,
    )


def reach(rates) -> tuple[int, int]:
    """The largest vertical and horizontal distance of any neighbour, in pixels."""
    vertical, horizontal = np.abs(neighbor_offsets(rates)).max(axis=0)
    return int(vertical), int(horizontal)
