"""The views of an image over which predictions are averaged. Needs no TensorFlow."""

import dataclasses
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


@dataclasses.dataclass(frozen=True)
class Views:
    """Views of an image over which predictions are averaged, before refinement.

    Attributes:
        scales: Scales of the image, see `MultiScale`. Defaults to the original size alone.
        flip: Whether to include the mirror image. Defaults to False.
        window: Side in pixels of the windows in which larger images are predicted, see
            `SlidingWindow`. Defaults to 0: whole images.

    Raises:
        ConfigError: For a value out of its range.

    Example:

    >>> Views(scales=(0.75, 1), flip=True)
    Views(scales=(0.75, 1.0), flip=True, window=0)
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: int = 0

    def __post_init__(self):
        object.__setattr__(self, "scales", check_scales(self.scales))
        if not isinstance(self.flip, bool):
            raise ConfigError(f"flip must be True or False. Received: flip={self.flip!r}")
        if type(self.window) is not int or self.window < 0:
            raise ConfigError(
                "window must be a whole number of pixels, or 0 for whole images. "
                f"Received: window={self.window!r}"
            )
