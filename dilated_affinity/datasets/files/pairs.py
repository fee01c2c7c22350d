"""Finds, reads and checks pairs of an image file and a label file."""

import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dilated_affinity.datasets.classes import IGNORE_LABEL, ClassTable
from dilated_affinity.datasets.files.images import (
    decode_label,
    read_bytes,
    read_image,
    stored_orientation,
)
from dilated_affinity.datasets.files.listing import LINKED_AGAIN, find_images
from dilated_affinity.datasets.notes import Notes, log_once
from dilated_affinity.errors import DataError

REMEDY = "remove the orientation from the images (exiftool -Orientation= *.jpg)"

UNICODE_FORM = "images whose label's name has another Unicode form, paired anyway"

# The entry of a label table for values that may not occur.
INVALID = -1


class Pair(NamedTuple):
    """One example on disk."""

    id: str
    image_path: str
    label_path: str


def label_table(num_classes: int, others: Mapping[int, int] | None = None) -> np.ndarray:
    """Returns the table that maps values in label files to classes.

    Args:
        num_classes: Values 0 to `num_classes - 1` are the classes themselves, 255 is void.
        others: Classes of further values, such as `{11: 255}`.

    Returns:
        An int16 array of shape `(256,)`: a class, 255 for void, or `INVALID`.
    """
    table = np.full(256, INVALID, np.int16)
    table[:num_classes] = np.arange(num_classes)
    table[IGNORE_LABEL] = IGNORE_LABEL
    for value, meaning in (others or {}).items():
        table[value] = meaning
    return table


# Converts the bytes of a label file, and its name for errors, to its values, uint8 (H, W).
Decoder = Callable[[bytes, str], np.ndarray]


# Called with a remark on the conversion of a file (see `read_image`) and the file's name.
OnRemark = Callable[[str, str], None]


def read_pair(
    pair: Pair,
    classes: ClassTable,
    table: np.ndarray,
    decode: Decoder = decode_label,
    on_remark: OnRemark | None = None,
) -> dict:
    """Reads and checks one example.

    Args:
        pair: The two files and the id.
        classes: The class table, used to recognise labels that have lost their palette.
        table: See `label_table`.
        decode: Decoder of the label file.
        on_remark: Called with remarks on the conversion of the image, see `read_image`.

    Returns:
        `{"image": uint8 (H, W, 3) RGB, "label": uint8 (H, W), "id": str}`.

    Raises:
        DataError: If a file is missing, damaged or refused by its decoder, the sizes differ, or the
            label contains a value that is invalid by the table.
    """
    image, values = read_values(pair, decode, on_remark)
    return {
        "image": image,
        "label": classes_of_values(values, pair.label_path, classes, table),
        "id": pair.id,
    }


def read_label(
    pair: Pair, classes: ClassTable, table: np.ndarray, decode: Decoder = decode_label
) -> np.ndarray:
    """Reads only the label of an example, uint8 (H, W), as `read_pair` returns it.

    The image is not read, so its size is not compared.

    Raises:
        DataError: As `read_pair`, for the label.
    """
    values = decode(read_bytes(pair.label_path), pair.label_path)
    return classes_of_values(values, pair.label_path, classes, table)


def read_values(
    pair: Pair, decode: Decoder = decode_label, on_remark: OnRemark | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Reads the two files of an example, the label as its file stores it.

    Args:
        pair: The two files and the id.
        decode: Decoder of the label file.
        on_remark: See `read_pair`.

    Returns:
        The image, uint8 `(H, W, 3)`, and the label values, uint8 `(H, W)`.

    Raises:
        DataError: If a file is missing, damaged or refused by its decoder, or the sizes differ.
    """
    image_data = read_bytes(pair.image_path)
    image, remarks = read_image(image_data, pair.image_path)
    for remark in remarks if on_remark else ():
        on_remark(remark, pair.image_path)
    values = decode(read_bytes(pair.label_path), pair.label_path)
    check_sizes(image, values, pair, image_data)
    return image, values


def check_sizes(image: np.ndarray, values: np.ndarray, pair: Pair, image_data: bytes) -> None:
    """Raises `DataError` unless an image and its label have the same size.

    Args:
        image: `(H, W, 3)`, upright.
        values: `(H, W)`.
        pair: The files, for the message.
        image_data: The bytes of the image file, whose EXIF orientation is part of the message.
    """
    if image.shape[:2] != values.shape:
        orientation = stored_orientation(image_data)  # decodes a PNG again
        turned = f" after its EXIF orientation {orientation}" if orientation > 1 else ""
        remedy = ""
        if orientation > 4 and image.shape[1::-1] == values.shape:
            remedy = f" It seems to be drawn on the pixels as stored; if so, {REMEDY}."
        raise DataError(
            f"{pair.label_path}: a label must have the size of its image, which is "
            f"{image.shape[1]}x{image.shape[0]}{turned} ({pair.image_path}).{remedy} "
            f"Received: {values.shape[1]}x{values.shape[0]}"
        )


def classes_of_values(
    values: np.ndarray, name: str, classes: ClassTable, table: np.ndarray
) -> np.ndarray:
    """Converts the values of a label file to classes.

    Args:
        values: uint8 `(H, W)`.
        name: Name of the file in errors.
        classes: The class table, used to recognise labels that have lost their palette.
        table: See `label_table`.

    Returns:
        uint8 `(H, W)`, classes and 255.

    Raises:
        DataError: If a value is invalid by the table.
    """
    label = table[values]
    if (label == INVALID).any():
        raise invalid_values_error(name, np.unique(values), classes, table)
    return label.astype(np.uint8)


def invalid_values_error(
    name: str, values: np.ndarray, classes: ClassTable, table: np.ndarray, hint=""
) -> DataError:
    """Returns the error for a label file with values that are invalid by its table.

    Args:
        name: Name of the file.
        values: The distinct values in the file, sorted.
        classes: The class table, used to recognise labels that have lost their palette.
        table: See `label_table`.
        hint: A sentence on the cause, with a space before it, where it is known.
    """
    wrong = [int(value) for value in values if table[value] == INVALID]
    shown = ", ".join(map(str, wrong[:10])) + (", ..." if len(wrong) > 10 else "")
    # The weights of Pillow's and TensorFlow's conversion to grey.
    grey = np.rint(classes.color_map() @ np.array([0.299, 0.587, 0.114]))
    if not hint and np.isin(values, [*grey[: classes.num_classes], grey[IGNORE_LABEL]]).all():
        hint = " These are the palette's colours converted to grey; its indices have been lost."
    valid = [int(value) for value in np.flatnonzero(table != INVALID)]
    return DataError(
        f"{name}: label values must be {_ranges(valid)}.{hint} Received: the values {shown}"
    )


class PairsFound(NamedTuple):
    """Result of `find_pairs`.

    Attributes:
        pairs: The complete pairs, sorted by id.
        problems: Problems, one line each.
        notes: Ignored files, and names that were paired in spite of a difference.
    """

    pairs: tuple[Pair, ...]
    problems: list[str]
    notes: Notes


def match_pairs(
    image_dir: str | os.PathLike, label_dir: str | os.PathLike, notes: Notes | None = None
) -> tuple[Pair, ...]:
    """Pairs the images below one folder with the labels below another.

    An image and its label have the same path below their folders, apart from the ending. That path
    is the example's id. Different Unicode forms of a letter, such as an umlaut written by macOS,
    are equal.

    Args:
        image_dir: Folder of images, with or without sub-folders.
        label_dir: Folder of label maps.
        notes: Collects notes on ignored files. If None, they are logged.

    Returns:
        The pairs, sorted by id.

    Raises:
        DataError: If a folder is missing or contains no image, two files have the same id, an image
            has no label, or a label no image.
    """
    found = find_pairs(image_dir, label_dir)
    raise_first(found.problems)
    if notes is None:
        log_once(found.notes.lines())
    else:
        notes.merge(found.notes)
    return found.pairs


def find_pairs(image_dir: str | os.PathLike, label_dir: str | os.PathLike) -> PairsFound:
    """Does the same as `match_pairs`, but returns problems instead of raising an error.

    Raises:
        DataError: If a folder is missing or contains no image.
    """
    images, labels = images_by_id(image_dir), images_by_id(label_dir)
    found = PairsFound((), images.problems + labels.problems, Notes())
    found.notes.merge(images.notes)
    found.notes.merge(labels.notes)
    label_of = match_names(images.files, labels.files, found.notes)
    without_label = images.files.keys() - label_of.keys()
    without_image = labels.files.keys() - set(label_of.values())
    image_side, label_side = (images, image_dir, without_label), (labels, label_dir, without_image)
    for (first, first_dir, left), (second, second_dir, others), what in (
        (image_side, label_side, "an image without a label"),
        (label_side, image_side, "a label without an image"),
    ):
        found.problems.extend(
            f"{first.files[key]}: expected a file of the same name in {second_dir} for each "
            f"in {first_dir}. Received: {what}{_similar_name(key, others)}"
            f"{not_read_again(key, second_dir, second.notes)}"
            for key in sorted(left)
        )
    pairs = (
        Pair(key, str(images.files[key]), str(labels.files[label]))
        for key, label in sorted(label_of.items())
    )
    return found._replace(pairs=tuple(pairs))


def match_names(
    first: Mapping[str, Path], second: Mapping[str, Path], notes: Notes | None = None
) -> dict[str, str]:
    """Pairs names that are equal, if necessary after normalisation to Unicode's form NFC.

    Args:
        first: Files by name.
        second: Other files by name.
        notes: Collects notes on names that differ in their Unicode form.

    Returns:
        The name in `second` for each name in `first` that has one.
    """
    found = {name: name for name in first if name in second}
    forms: dict[str, tuple[list[str], list[str]]] = {}
    for side, (names, taken) in enumerate(((first, found), (second, found))):
        for name in names:
            if name not in taken:
                forms.setdefault(unicodedata.normalize("NFC", name), ([], []))[side].append(name)
    for ones, others in forms.values():
        # Names that look the same on one side are ambiguous and only paired if equal.
        if len(ones) == len(others) == 1:
            found[ones[0]] = others[0]
            if notes is not None:
                notes.add(UNICODE_FORM, first[ones[0]])
    return found


def _similar_name(key: str, names: Iterable[str]) -> str:
    """Returns a hint if a name differs only in Unicode form, case or spaces; else an empty text."""
    for name in sorted(names):
        if unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", key):
            return f"; {name!r} there looks the same, in another Unicode form, and so do others"
        if name.casefold() == key.casefold():
            return f"; {name!r} there differs in upper and lower case"
        if name.strip() == key.strip():
            return f"; {name!r} there differs in spaces"
    return ""


def not_read_again(key: str, folder: str | os.PathLike, notes: Notes) -> str:
    """Returns a hint if a missing file is behind a link to a folder already read; else no text.

    Args:
        key: The path of the file below the folder.
        folder: The folder in which it is missing.
        notes: The notes on listing that folder, see `list_images`.
    """
    for link in notes.names(LINKED_AGAIN):
        if Path(folder, key).is_relative_to(link):
            return f"; {link} leads to a folder already read, and no folder is read twice"
    return ""


def raise_first(problems: Sequence[str]) -> None:
    """Raises `DataError` with the first problem, if any, and the number of the others."""
    if problems:
        more = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
        raise DataError(problems[0] + more)


class Files(NamedTuple):
    """Result of `images_by_id`.

    Attributes:
        files: The files by their path below the folder without the ending.
        problems: Problems, one line each.
        notes: Ignored files.
    """

    files: dict[str, Path]
    problems: list[str]
    notes: Notes


def images_by_id(folder: str | os.PathLike) -> Files:
    """Finds the image files below a folder by their names; see `list_images`.

    Args:
        folder: A folder, with or without sub-folders.

    Raises:
        DataError: If the folder is missing or contains no image.
    """
    folder, listing = Path(folder), find_images(folder)
    files: dict[str, Path] = {}
    problems = listing.problems
    for path in listing.images:
        key = path.relative_to(folder).with_suffix("").as_posix()
        if key in files:
            problems.append(
                f"{path}: expected one file per name, whatever the ending. "
                f"Received: also {files[key].name}"
            )
        else:
            files[key] = path
    return Files(files, problems, listing.notes)


def _ranges(values: Sequence[int]) -> str:
    """Formats sorted numbers as `0 to 11 or 255`."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return " or ".join(f"{a}" if a == b else f"{a} to {b}" for a, b in runs)
