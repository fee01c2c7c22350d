"""Scales of an image to predict it at, as text and as numbers. Needs no TensorFlow."""

from collections.abc import Iterable

from dilated_affinity.errors import ConfigError

SMALLEST, LARGEST = 0.05, 20.0


def parse_scales(text: str) -> tuple[float, ...]:
    """Reads scales separated by commas.

    Args:
        text: For example `"0.5,0.75,1.0,1.25"`.

    Returns:
        The scales in the order written.

    Raises:
        ConfigError: If the text is not of this form, or `check_scales` refuses the scales.

    Example:

    >>> parse_scales("0.75,1,1.25")
    (0.75, 1.0, 1.25)
    """
    try:
        scales = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"scales must be numbers separated by commas. Received: scales={text!r}"
        ) from None
    return check_scales(scales)


def check_scales(scales: Iterable[float]) -> tuple[float, ...]:
    """Returns `scales` as a tuple of floats, or raises `ConfigError`."""
    try:
        checked = tuple(float(scale) for scale in scales)
    except (TypeError, ValueError):
        checked = ()
    in_range = all(SMALLEST <= scale <= LARGEST for scale in checked)
    if not checked or not in_range or len(set(checked)) != len(checked):
        raise ConfigError(
            f"scales must be different numbers between {SMALLEST} and {LARGEST:g}, at least one. "
            f"Received: scales={scales!r}"
        )
    return checked
