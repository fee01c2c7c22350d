"""TFDS builder of a user's own folder of images and masks, read in place."""

import functools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from absl import logging

from dilated_affinity.datasets.classes import ClassTable
from dilated_affinity.datasets.files.images import read_bytes
from dilated_affinity.datasets.files.pair_builder import PairedFilesBuilder
from dilated_affinity.datasets.files.pairs import Decoder, Pair, raise_first
from dilated_affinity.datasets.folder.class_file import (
    MaskClasses,
    classes_from_values,
    decode_indices,
    read_class_file,
)
from dilated_affinity.datasets.folder.label_map import read_label_map
from dilated_affinity.datasets.folder.layout import (
    CLASS_FILE,
    LABEL_MAP,
    OTHER_NAMES,
    find_splits,
)
from dilated_affinity.datasets.inspection import MaskCounts, MaskSurvey, count_values
from dilated_affinity.datasets.notes import Notes
from dilated_affinity.errors import DataError
from dilated_affinity.runtime.progress import progress


class Folder(PairedFilesBuilder):
    """Images and masks in a folder.

    `data_dir` contains `images/<split>/` and `masks/<split>/`, or `images/`, `masks/` and lists
    such as `train.txt` and `val.txt`. An image and its mask have the same path apart from the
    ending; there may be sub-folders. Masks are index or palette PNG (or another lossless format),
    or are drawn in the colours that `classes.csv` or CVAT's `labelmap.txt` defines. Without these
    files the classes are the values 0 to the highest that occurs in any mask, 255 is void, and all
    masks are read once to find the highest. See `read_class_file`, `read_label_map`.

    Raises:
        DataError: If the files do not pair up, `classes.csv` is invalid, or without it a mask is
            damaged; `check_folder` reports all problems at once.
    """

    def __init__(self, *, data_dir: str | os.PathLike, **kwargs):
        root = Path(data_dir).expanduser()
        self._layout = find_splits(root)
        raise_first(self._layout.problems)
        # TFDS needs the class names in its constructor.
        self._mask_classes = find_mask_classes(
            root,
            [pair.label_path for pairs in self._layout.splits.values() for pair in pairs],
            self._layout.notes,
        )
        super().__init__(data_dir=data_dir, **kwargs)

    @property
    def classes(self) -> ClassTable:
        """The classes of this folder."""
        return self._mask_classes.classes

    def _list_pairs(self, root: Path) -> dict[str, tuple[Pair, ...]]:
        del root
        self._notes.merge(self._layout.notes)
        return self._layout.splits

    def _label_table(self) -> np.ndarray:
        return self._mask_classes.table()

    def _label_decoder(self) -> Decoder:
        return self._mask_classes.decode


def find_mask_classes(root: Path, mask_paths: Sequence[str], notes: Notes) -> MaskClasses:
    """Returns the classes from `classes.csv`, or from the masks if there is none.

    Args:
        root: The folder of the data set.
        mask_paths: Its masks. They are read again only if a file has changed.
        notes: Collects notes on possible mistakes in masks.

    Raises:
        DataError: If `classes.csv` is invalid; without it, if a mask cannot be read or the values
            are not classes.
    """
    given = read_classes(root, notes)
    if given is not None:
        return given
    survey = _survey(tuple(map(_stamp, mask_paths)))
    found = classes_from_values(survey.values(), str(root), survey.mixed_values())
    notes.merge(survey.notes(found.table()))
    return found


def read_classes(root: Path, notes: Notes) -> MaskClasses | None:
    """Returns the classes of `classes.csv` or CVAT's `labelmap.txt`; `None` without them.

    Args:
        root: The folder of the data set.
        notes: Collects a note if CVAT's file was read or ignored.

    Raises:
        DataError: If the file is invalid.
    """
    path, label_map = root / CLASS_FILE, root / LABEL_MAP
    found = None
    if path.is_file():
        found = read_class_file(read_bytes(path), str(path))
    if label_map.is_file():
        of_cvat = read_label_map(read_bytes(label_map), str(label_map)) if found is None else None
        notes.add(OTHER_NAMES if of_cvat is None else "classes read from CVAT's file", label_map)
        found = found or of_cvat
    return found


def _stamp(path: str) -> tuple[str, int, int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    return path, status.st_size, status.st_mtime_ns


# Cached, since a training run makes a builder for each of its splits.
@functools.lru_cache(maxsize=8)
def _survey(masks: tuple[tuple[str, int, int], ...]) -> MaskSurvey:
    """Reads some masks, given as path, size and modification time."""
    logging.info("folder: reading %d masks for their classes; there is no classes.csv", len(masks))
    survey = MaskSurvey()
    paths = [path for path, _, _ in masks]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        counts = progress(pool.map(_values_in, paths), "reading masks", len(masks))
        for path, found in zip(paths, counts, strict=True):
            survey.add(path, found)
    return survey


def _values_in(path: str) -> MaskCounts:
    return count_values(decode_indices(read_bytes(path), path))
