"""The TFDS builder of anybody's own folder of images and masks, read in place."""

import functools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from absl import logging

from dilated_affinity.datasets.classes import ClassTable
from dilated_affinity.datasets.folder.class_file import (
    MaskClasses,
    classes_of_occurring,
    read_class_file,
)
from dilated_affinity.datasets.folder.layout import CLASS_FILE, find_splits
from dilated_affinity.datasets.image_files import decode_label, read_bytes
from dilated_affinity.datasets.paired_files import PairedFilesBuilder
from dilated_affinity.datasets.pairs import Decoder, Pair, raise_first
from dilated_affinity.progress import progress


class Folder(PairedFilesBuilder):
    """Images and masks in a folder: no code to write.

    `data_dir` holds `images/<split>/` and `masks/<split>/`, or `images/`, `masks/` and lists such
    as `train.txt` and `val.txt`. An image and its mask have the same path but for the ending;
    there may be sub-folders. Masks are index or palette PNG (or another lossless format), or are
    drawn in the colours that `classes.csv` gives. Without `classes.csv` the classes are the values
    0 to the highest that occurs in any mask, 255 being void, and all masks are read once to find
    that out. See `read_class_file`.

    Raises:
        DataError: The files do not pair up, `classes.csv` is wrong, or without it a mask is
            damaged; see `check_folder` for all problems at once.
    """

    def __init__(self, *, data_dir: str | os.PathLike, **kwargs):
        root = Path(data_dir).expanduser()
        self._splits, problems = find_splits(root)
        raise_first(problems)
        # TFDS asks for the class names while it is made.
        self._mask_classes = find_mask_classes(
            root, [pair.label_path for pairs in self._splits.values() for pair in pairs]
        )
        super().__init__(data_dir=data_dir, **kwargs)

    @property
    def classes(self) -> ClassTable:
        """The classes of this folder."""
        return self._mask_classes.classes

    def _list_pairs(self, root: Path) -> dict[str, tuple[Pair, ...]]:
        del root
        return self._splits

    def _label_table(self) -> np.ndarray:
        return self._mask_classes.table()

    def _label_decoder(self) -> Decoder:
        return self._mask_classes.decode


def find_mask_classes(root: Path, mask_paths: Sequence[str]) -> MaskClasses:
    """Returns the classes from `classes.csv`, or from the masks where there is none.

    Args:
        root: The folder of the data set.
        mask_paths: Its masks. They are read again only when a file has changed.

    Raises:
        DataError: `classes.csv` is wrong; without it, a mask cannot be read, or the values that
            occur are no classes.
    """
    path = root / CLASS_FILE
    if path.is_file():
        return read_class_file(read_bytes(path), str(path))
    stamps = [os.stat(mask) for mask in mask_paths]
    values = _occurring_values(
        tuple(
            (mask, stamp.st_size, stamp.st_mtime_ns)
            for mask, stamp in zip(mask_paths, stamps, strict=True)
        )
    )
    return classes_of_occurring(values, str(root))


# A training run makes a builder for each of its splits.
@functools.lru_cache(maxsize=8)
def _occurring_values(masks: tuple[tuple[str, int, int], ...]) -> tuple[int, ...]:
    """Returns the values in some masks, given as path, size and time of the last change."""
    logging.info("folder: reading %d masks for their classes; there is no classes.csv", len(masks))
    occurs = np.zeros(256, bool)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(_values_in, (path for path, _, _ in masks))
        for values in progress(found, "reading masks", len(masks)):
            occurs[values] = True
    return tuple(int(value) for value in np.flatnonzero(occurs))


def _values_in(path: str) -> np.ndarray:
    counts = np.bincount(decode_label(read_bytes(path), path).ravel(), minlength=256)
    return np.flatnonzero(counts)
