"""Finds possible mistakes in images and masks, which `--check_only` reports as notes.

They do not prevent an example from being read.
"""

import hashlib
from typing import NamedTuple

import numpy as np
from PIL import Image

from dilated_affinity.datasets.classes import IGNORE_LABEL
from dilated_affinity.datasets.files.images import (
    decode_label,
    label_remarks,
    palette_colors,
    read_bytes,
    read_image,
    stored_orientation,
)
from dilated_affinity.datasets.files.pairs import REMEDY, Decoder, Pair, check_sizes
from dilated_affinity.datasets.notes import Notes, abbreviate

# The share of a value's mixed pixels from which it is taken to be a mixture of other values.
_MIXED = 0.5

# The least number of mixed pixels in a mask with smooth edges, and their least ratio to remaining
# jumps. That ratio is at most 0.06 in masks of CamVid, VOC and Cityscapes, and at least 0.5 in
# masks resized with interpolation.
_FEWEST, _SMOOTH = 16, 0.3

SMOOTH = (
    "masks whose edges have intermediate values, as after resizing with interpolation or "
    "anti-aliasing"
)

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class MaskCounts(NamedTuple):
    """Result of `count_values`.

    Attributes:
        values: Number of pixels of each value, int64 `(256,)`.
        mixed: Number of these between a lower and a higher value; see `find_mixed`.
        smooth: Whether the edges of the mask seem to be smooth.
    """

    values: np.ndarray
    mixed: np.ndarray
    smooth: bool


class Inspection(NamedTuple):
    """Result of `inspect_pair`.

    Attributes:
        size: Width and height.
        counts: The `MaskCounts` of the mask.
        digest: Hash of the image.
        image_remarks: See `read_image`.
        mask_remarks: See `label_remarks`.
        palette: See `palette_colors`.
        stored_fits: For an image that was turned upright, whether the mask fits the stored pixels
            better; `None` if that cannot be determined.
    """

    size: tuple[int, int]
    counts: MaskCounts
    digest: bytes
    image_remarks: tuple[str, ...]
    mask_remarks: tuple[str, ...]
    palette: dict[int, tuple[int, int, int]]
    stored_fits: bool | None


def inspect_pair(pair: Pair, decode: Decoder = decode_label) -> Inspection:
    """Reads and inspects an example.

    Args:
        pair: The two files and the id.
        decode: Decoder of the label file.

    Raises:
        DataError: As `read_values`.
    """
    image_data, mask_data = read_bytes(pair.image_path), read_bytes(pair.label_path)
    image, image_remarks = read_image(image_data, pair.image_path)
    values = decode(mask_data, pair.label_path)
    check_sizes(image, values, pair, image_data)
    is_mat = pair.label_path.endswith(".mat")
    turned = any("EXIF" in remark for remark in image_remarks)
    return Inspection(
        size=(values.shape[1], values.shape[0]),
        counts=count_values(values),
        digest=hashlib.blake2b(image.tobytes(), digest_size=16).digest(),
        image_remarks=image_remarks,
        mask_remarks=label_remarks(mask_data, pair.label_path),
        palette={} if is_mat else palette_colors(mask_data, pair.label_path),
        stored_fits=fits_as_stored(image, values, stored_orientation(image_data))
        if turned
        else None,
    )


def count_values(values: np.ndarray) -> MaskCounts:
    """Counts the values in a mask, uint8 `(H, W)`."""
    # 255 is void among class indices, but a grey level in masks that are not indices.
    mixed = np.count_nonzero(find_mixed(values, IGNORE_LABEL))
    return MaskCounts(
        np.bincount(values.ravel(), minlength=256),
        np.bincount(values[find_mixed(values)], minlength=256),
        mixed >= _FEWEST and mixed > _SMOOTH * _count_jumps(values, IGNORE_LABEL),
    )


def find_mixed(values: np.ndarray, void: int | None = None) -> np.ndarray:
    """Finds the pixels that have a lower value on one side and a higher one on the other.

    Masks that were resized with interpolation, or drawn with anti-aliasing, have such pixels along
    their edges, and their values are not classes.

    Args:
        values: uint8 `(H, W)`.
        void: A value to leave out of the comparison.

    Returns:
        A boolean array of shape `(H, W)`.
    """
    mixed = np.zeros(values.shape, bool)
    for source, target in ((values, mixed), (values.T, mixed.T)):
        here = source[:, 2:-2]
        # The nearest other value, at most two pixels away.
        left = np.where(source[:, 1:-3] == here, source[:, :-4], source[:, 1:-3])
        right = np.where(source[:, 3:-1] == here, source[:, 4:], source[:, 3:-1])
        between = ((left < here) & (here < right)) | ((left > here) & (here > right))
        if void is not None:
            between &= (left != void) & (right != void) & (here != void)
        target[:, 2:-2] |= between
    return mixed


def _count_jumps(values: np.ndarray, void: int) -> int:
    """Counts pairs of neighbours whose values differ by more than 1."""
    count = 0
    for source in (values, values.T):
        first, second = source[:, 1:], source[:, :-1]
        far = np.maximum(first, second) - np.minimum(first, second) > 1
        count += np.count_nonzero(far & (first != void) & (second != void))
    return count


def fits_as_stored(image: np.ndarray, values: np.ndarray, orientation: int) -> bool | None:
    """Returns whether a mask seems to be drawn on the pixels as they are stored, not upright.

    Args:
        image: Upright image, uint8 `(H, W, 3)`.
        values: The mask, uint8 `(H, W)`.
        orientation: The EXIF orientation of the image, 2 to 8.

    Returns:
        Whether the grey level changes more across the borders in the mask if the mask is turned as
        the image was; `None` if it has no borders or cannot be turned.
    """
    turned = np.asarray(Image.fromarray(values).transpose(_TURNS[orientation]))
    if turned.shape != values.shape or np.array_equal(turned, values):
        return None
    grey = image.mean(axis=-1)
    as_it_is, as_stored = _contrast(grey, values), _contrast(grey, turned)
    return None if as_it_is is None or as_stored is None else as_stored > as_it_is


def _contrast(grey: np.ndarray, values: np.ndarray) -> float | None:
    """Returns the mean change of the grey level across borders in the mask."""
    borders = [np.diff(values.astype(np.int16), axis=axis) != 0 for axis in (0, 1)]
    changes = [np.abs(np.diff(grey, axis=axis)) for axis in (0, 1)]
    count = sum(np.count_nonzero(border) for border in borders)
    total = sum(change[border].sum() for change, border in zip(changes, borders, strict=True))
    return total / count if count else None


class MaskSurvey:
    """Statistics of the values in several masks."""

    def __init__(self):
        self._holds: dict[str, np.ndarray] = {}
        self._counts, self._mixed = np.zeros(256, np.int64), np.zeros(256, np.int64)
        self._smooth: list[str] = []

    def __contains__(self, path: str) -> bool:
        return path in self._holds

    def add(self, path: str, found: MaskCounts) -> None:
        """Adds the counts of a mask."""
        self._holds[path] = found.values > 0
        self._counts += found.values
        self._mixed += found.mixed
        if found.smooth:
            self._smooth.append(path)

    def values(self) -> list[int]:
        """Returns the values that occur."""
        return np.flatnonzero(self._counts).tolist()

    def mixed_values(self) -> list[int]:
        """Returns the values of which most pixels are between a lower and a higher value."""
        return np.flatnonzero(self._mixed > _MIXED * self._counts).tolist()

    def notes(self, table: np.ndarray, by_index=True) -> Notes:
        """Returns notes on possible mistakes.

        Args:
            table: The class of each value in masks; see `label_table`.
            by_index: Whether masks are read by index rather than by colour.
        """
        notes = Notes()
        for path, holds in self._holds.items():
            if (table[holds] == IGNORE_LABEL).all():
                notes.add("masks of only void", path)
        if by_index and table[IGNORE_LABEL] == IGNORE_LABEL:
            self._note_black_and_white(notes)
        for path in self._smooth:
            notes.add(SMOOTH, path)
        return notes

    def _note_black_and_white(self, notes: Notes) -> None:
        """Notes masks of only 0 and 255, in which 255 may be an object rather than void."""
        rows = np.array(list(self._holds.values())).reshape(-1, 256)
        classes, void = rows[:, 1:IGNORE_LABEL].any(axis=1), rows[:, IGNORE_LABEL]
        kind = "masks of only 0 and 255, where 255 is void and not a class"
        if classes.any() and not (classes & void).any():
            kind += ", although no mask with other classes contains 255, so that it may be a class"
        for path, is_meant in zip(self._holds, void & ~classes & rows[:, 0], strict=True):
            if is_meant:
                notes.add(kind, path)


class Survey:
    """Possible mistakes in several examples.

    Attributes:
        masks: A `MaskSurvey` of their masks.
    """

    def __init__(self):
        self.masks = MaskSurvey()
        self._notes = Notes()
        self._turned: list[str] = []
        self._stored_fits: list[str] = []
        # The first mask with each colour of each palette index.
        self._colors: dict[int, dict[tuple[int, int, int], str]] = {}
        self._first: dict[tuple, str] = {}

    def add(self, pair: Pair, found: Inspection) -> None:
        """Adds an example; one in several splits counts once."""
        if pair.label_path in self.masks:
            return
        self.masks.add(pair.label_path, found.counts)
        for remark in found.image_remarks:
            self._notes.add(remark, pair.image_path)
        for remark in found.mask_remarks:
            self._notes.add(remark, pair.label_path)
        if found.stored_fits is not None:
            self._turned.append(pair.label_path)
            if found.stored_fits:
                self._stored_fits.append(pair.label_path)
        first = self._first.setdefault((found.digest, found.size), pair.image_path)
        if first != pair.image_path:
            same = f"{pair.image_path}: the same image as {first}"
            self._notes.add("duplicate images", same)
        for index, color in found.palette.items():
            self._colors.setdefault(index, {}).setdefault(color, pair.label_path)

    def lines(self, table: np.ndarray, by_index=True) -> list[str]:
        """Returns notes on possible mistakes, a line for each kind; see `MaskSurvey.notes`."""
        lines = self._notes.lines() + self.masks.notes(table, by_index).lines()
        if self._stored_fits:
            lines.append(
                "masks that fit the stored pixels of their images better than the upright ones: "
                f"{len(self._stored_fits)} of {len(self._turned)} "
                f"({abbreviate(self._stored_fits)}). "
                f"If they were drawn on the pixels as stored, {REMEDY}"
            )
        return lines + (self._palettes() if by_index else [])

    def _palettes(self) -> list[str]:
        differing = {index: colors for index, colors in self._colors.items() if len(colors) > 1}
        if not differing:
            return []
        index, colors = next(iter(differing.items()))
        examples = abbreviate((f"{color} in {path}" for color, path in colors.items()), 2)
        return [
            f"indices that have several colours in the palettes of masks: {len(differing)} "
            f"({index}: {examples}). Masks are read by index, not by colour"
        ]
