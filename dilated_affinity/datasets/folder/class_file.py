"""Reads `classes.csv`, the names of a folder's classes and their values or colours in masks."""

import csv
import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np

from dilated_affinity.datasets.classes import (
    IGNORE_LABEL,
    ClassTable,
    Color,
    spread_bits_color,
)
from dilated_affinity.datasets.files.images import (
    decode_label,
    decode_label_colors,
    has_colors,
    has_one_bit,
)
from dilated_affinity.datasets.files.pairs import INVALID, invalid_values_error, label_table
from dilated_affinity.datasets.notes import abbreviate, log_once
from dilated_affinity.errors import DataError

VOID_NAMES = ("void", "ignore", "ignored", "unlabelled", "unlabeled")

_COLUMNS = {"id": "index", "red": "r", "green": "g", "blue": "b", "class": "name"}
_CHANNELS = ("r", "g", "b")
_MAX_COLORS_SHOWN, _MAX_COLORS_LISTED = 5, 24

SMOOTH_COLORS = " Their number suggests anti-aliased edges, or masks resized with interpolation."


@dataclass(frozen=True)
class MaskClasses:
    """The classes of a folder and their encoding in its masks.

    Args:
        classes: The class table.
        indices: The class, or 255 for void, of each value in grey and palette masks; `None` if
            masks are read by colour.
        colors: The class, or 255 for void, of each colour; `None` if masks are read by index.
        by_palette: Whether palette masks are read by colour rather than by index if both `indices`
            and `colors` are given.
        file: The name of the file that defines the classes, for errors.
    """

    classes: ClassTable
    indices: tuple[tuple[int, int], ...] | None = None
    colors: tuple[tuple[Color, int], ...] | None = None
    by_palette: bool = False
    file: str = "classes.csv"

    @property
    def reads_indices(self) -> bool:
        """True if masks may encode classes as indices."""
        return self.indices is not None or self.colors is None

    def table(self) -> np.ndarray:
        """Returns the class of each value that `decode` returns; see `label_table`."""
        if self.indices is None:
            return label_table(self.classes.num_classes)
        table = label_table(0)
        for value, label in self.indices:
            table[value] = label
        return table

    def decode(self, data: bytes, name: str) -> np.ndarray:
        """Decodes a mask to values that `table` maps to classes.

        Args:
            data: The bytes of the file.
            name: Name of the file in errors.

        Returns:
            A uint8 array of shape `(height, width)`.

        Raises:
            DataError: If the file is damaged, or a colour is not in `classes.csv`, or a mask of one
                bit has a value that is not.
        """
        in_colors = self.colors is not None and (
            self.indices is None or has_colors(data, name, palettes=self.by_palette)
        )
        if not in_colors:
            values = decode_label(data, name)
            self._check_one_bit(values, data, name)
            return values
        hint = ""
        if not has_colors(data, name):
            hint = " If it contains indices, classes.csv must have a column index and no colours."
        values = self._values_of_colors(decode_label_colors(data, name), name, hint)
        if self.indices is not None:
            # Back to indices, so that one table serves both kinds of masks.
            back = np.full(256, IGNORE_LABEL, np.uint8)
            for value, label in reversed(self.indices):
                back[label] = value
            values = back[values]
        return values

    def _check_one_bit(self, values: np.ndarray, data: bytes, name: str) -> None:
        """Explains the values of black and white masks that were saved with one bit per pixel."""
        if values.max() != 1:
            return
        table = self.table()
        if (table[values] == INVALID).any() and has_one_bit(data, name):
            hint = (
                " The file has one bit per pixel, so that its values are 0 and 1: save the masks "
                f"with 8 bits, or write {self.file} for these values."
            )
            raise invalid_values_error(name, np.unique(values), self.classes, table, hint)

    def _values_of_colors(self, pixels: np.ndarray, name: str, hint: str) -> np.ndarray:
        packed = _pack(pixels)
        known = sorted((int(_pack(np.array(color))), label) for color, label in self.colors)
        keys = np.array([key for key, _ in known])
        labels = np.array([label for _, label in known], np.uint8)
        place = np.minimum(np.searchsorted(keys, packed), len(keys) - 1)
        wrong = keys[place] != packed
        if wrong.any():
            raise self._unknown_colors(packed[wrong], name, hint)
        return labels[place]

    def _unknown_colors(self, packed: np.ndarray, name: str, hint: str) -> DataError:
        colors, counts = np.unique(packed, return_counts=True)
        order = np.argsort(-counts, kind="stable")[:_MAX_COLORS_SHOWN]
        found = ", ".join(
            f"{_unpack(color)} in {count} pixels"
            for color, count in zip(colors[order], counts[order], strict=True)
        )
        more = f" and {len(colors) - len(order)} more colours" if len(colors) > len(order) else ""
        if len(colors) > len(self.colors):
            hint += SMOOTH_COLORS
        return DataError(
            f"{name}: the colours of a mask must be those in {self.file}.{hint} "
            f"Received: {found}{more}"
        )


class ColoredMaskError(DataError):
    """A mask is drawn in colours, but no file defines their classes.

    Attributes:
        colors: The colours in the mask.
    """

    def __init__(self, message: str, colors: frozenset[Color]):
        super().__init__(message)
        self.colors = colors


def decode_indices(data: bytes, name: str) -> np.ndarray:
    """Decodes a mask without `classes.csv`; see `decode_label`.

    Raises:
        ColoredMaskError: If it is drawn in colours.
        DataError: As `decode_label`.
    """
    try:
        return decode_label(data, name)
    except DataError:
        if not has_colors(data, name):
            raise
    pixels = decode_label_colors(data, name)
    colors = frozenset(map(_unpack, np.unique(_pack(pixels))))
    raise ColoredMaskError(
        f"{name}: {class_file_hint(colors)} Received: {format_colors(colors)}", colors
    )


def class_file_hint(colors: Collection[Color]) -> str:
    """Explains how to write the `classes.csv` that masks drawn in colours need."""
    grey = ""
    if all(len(set(color)) == 1 for color in colors):
        grey = " If these are indices that were saved as RGB, save one of the channels instead."
    many = SMOOTH_COLORS if len(colors) > IGNORE_LABEL else ""
    return (
        "masks drawn in colours need a classes.csv beside images/ and masks/, with the first line "
        "name,r,g,b and a line such as background,0,0,0 for each class, and one named void for "
        f"pixels to ignore.{grey}{many}"
    )


def format_colors(colors: Collection[Color]) -> str:
    """Formats the first of some colours and the number of the others."""
    return f"the colours {abbreviate(sorted(colors), _MAX_COLORS_LISTED)}"


def read_class_file(data: bytes, name: str, by_palette=False) -> MaskClasses:
    """Reads `classes.csv`.

    The first line names the columns: `name` and `r`, `g`, `b` for masks drawn in colours, with
    classes in the order of the rows; or `index` and `name` for masks of indices, with classes in
    the order of the indices; or all five, for both kinds of masks. Rows named void, ignore,
    unlabelled and the like are void.

    Args:
        data: The contents of the file, UTF-8.
        name: Name of the file in errors.
        by_palette: See `MaskClasses`.

    Raises:
        DataError: If the columns differ, a number is not one of 0 to 255, a name, index or colour
            occurs twice, or there is no class.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: expected text in UTF-8. Received: {error}") from error
    reader = csv.reader(io.StringIO(text))
    try:
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        raise DataError(
            f"{name}, line {reader.line_num}: expected CSV. Received: {error}"
        ) from error
    rows = [(number, row) for number, row in rows if any(row)]
    header = [cell.lower() for cell in rows[0][1]] if rows else []
    header = [_COLUMNS.get(cell, cell) for cell in header]
    has_index, has_rgb = "index" in header, all(channel in header for channel in _CHANNELS)
    if "name" not in header or not (has_index or has_rgb) or len(set(header)) != len(header):
        raise DataError(
            f"{name}: the first line must name the columns, name,r,g,b or index,name or "
            f"index,name,r,g,b. Received: {','.join(rows[0][1]) if rows else 'an empty file'!r}"
        )
    unread = [cell for cell in header if cell not in ("name", "index", *_CHANNELS)]
    if unread:
        log_once([f"{name}: columns that are not read: {', '.join(unread)}"])
    seen: set = set()
    entries = []
    for number, row in rows[1:]:
        where = f"{name}, line {number}"
        if len(row) != len(header):
            raise DataError(f"{where}: expected {len(header)} columns. Received: {','.join(row)!r}")
        cells = dict(zip(header, row, strict=True))
        index = _byte(cells["index"], where) if has_index else None
        color = tuple(_byte(cells[c], where) for c in _CHANNELS) if has_rgb else None
        is_void = cells["name"].lower() in VOID_NAMES
        for what, value in (("name", cells["name"]), ("index", index), ("colour", color)):
            if value == "":
                raise DataError(f"{where}: a class must have a name. Received: {','.join(row)!r}")
            if value is not None and (what, value) in seen:
                raise DataError(f"{where}: expected each {what} once. Received: {value!r} again")
            seen.add((what, value))
        entries.append((cells["name"], index, color, is_void))
    if has_index:
        entries.sort(key=lambda entry: entry[1])
    kept = [entry for entry in entries if not entry[3]]
    if not 0 < len(kept) <= IGNORE_LABEL:
        raise DataError(
            f"{name}: expected 1 to {IGNORE_LABEL} classes, void not counted. Received: {len(kept)}"
        )
    void_colors = [color for _, _, color, is_void in entries if is_void and color]
    classes = ClassTable(
        names=tuple(entry[0] for entry in kept),
        palette=tuple(
            entry[2] if has_rgb else spread_bits_color(label) for label, entry in enumerate(kept)
        ),
        void_color=void_colors[0] if void_colors else spread_bits_color(IGNORE_LABEL),
    )
    labels = {entry[0]: label for label, entry in enumerate(kept)}
    means = [(entry, labels.get(entry[0], IGNORE_LABEL)) for entry in entries]
    indices = {IGNORE_LABEL: IGNORE_LABEL} | {entry[1]: label for entry, label in means}
    return MaskClasses(
        classes,
        indices=tuple(indices.items()) if has_index else None,
        colors=tuple((entry[2], label) for entry, label in means) if has_rgb else None,
        by_palette=by_palette,
        file=PurePath(name).name,
    )


def classes_from_values(values: Sequence[int], name: str, mixed: Sequence[int] = ()) -> MaskClasses:
    """Returns the classes of masks without `classes.csv`: 0 to the highest value.

    Args:
        values: The values that occur in the masks, including 255 if it occurs.
        name: Name of the data set in errors.
        mixed: The values that occur mostly between a lower and a higher one.

    Raises:
        DataError: If there would be a single class, or if most values do not occur or occur only
            between others, so that they cannot be class indices.
    """
    occurring = sorted(set(values) - {IGNORE_LABEL})
    count = occurring[-1] + 1 if occurring else 0
    shown_values = ", ".join(map(str, sorted(values)[:10]))
    shown_values += ", ..." if len(values) > 10 else ""
    remedy = "a classes.csv with the columns index,name defines the class of each value"
    if count < 2:
        raise DataError(
            f"{name}: expected at least 2 classes in the masks, 255 being void; {remedy}. "
            f"Received: the values {shown_values}"
        )
    if 2 * len(mixed) > len(occurring):
        raise DataError(
            f"{name}: expected masks whose values are classes, but most values occur only between "
            "a lower and a higher one, as in masks with anti-aliased edges or resized with "
            f"interpolation. Received: the values {shown_values}"
        )
    if count > 2 * len(occurring):
        raise DataError(
            f"{name}: expected masks whose values are classes from 0 on, but most of 0 to "
            f"{count - 1} do not occur. They may be colours converted to grey without their "
            f"palette; otherwise {remedy}. Received: the values {shown_values}"
        )
    return MaskClasses(
        ClassTable(
            names=tuple(f"class_{label}" for label in range(count)),
            palette=tuple(spread_bits_color(label) for label in range(count)),
            void_color=spread_bits_color(IGNORE_LABEL),
        )
    )


def _pack(pixels: np.ndarray) -> np.ndarray:
    """Packs red, green and blue, `(..., 3)`, into one number, int32 `(...)`."""
    channels = pixels.astype(np.int32)
    return channels[..., 0] << 16 | channels[..., 1] << 8 | channels[..., 2]


def _unpack(number: np.integer) -> Color:
    return int(number >> 16), int(number >> 8 & 255), int(number & 255)


def _byte(text: str, where: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 255:
        raise DataError(f"{where}: expected a whole number from 0 to 255. Received: {text!r}")
    return int(text)
