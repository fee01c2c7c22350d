"""Prepares data sets by TFDS, checks that they are complete, and reads them."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from dilated_affinity.datasets.classes import ClassTable
from dilated_affinity.datasets.files.images import decode_image, decode_label
from dilated_affinity.datasets.files.pairs import classes_of_values, label_table
from dilated_affinity.errors import DataError
from dilated_affinity.runtime.progress import watched


class Keys(NamedTuple):
    """Names of the features of an example."""

    image: str = "image"
    label: str = "label"
    id: str = "id"


def prepare(
    builder: tfds.core.DatasetBuilder,
    sizes: Mapping[str, int] | None = None,
    download_config: tfds.download.DownloadConfig | None = None,
) -> tfds.core.DatasetBuilder:
    """Prepares a data set unless that has been done, and checks that its files exist.

    Args:
        builder: Its builder.
        sizes: The number of examples of each split, if known in advance.
        download_config: Passed on to `download_and_prepare`.

    Returns:
        A builder of the prepared data set.

    Raises:
        DataError: If its folder is incomplete, or cannot be written.
    """
    if not builder.data_path.exists():
        logging.info("Preparing %s in %s", builder.name, builder.data_dir)
        if not watched():
            tfds.disable_progress_bar()
        try:
            # TFDS prints to stdout that it downloads, even if it does not.
            with contextlib.redirect_stdout(io.StringIO()):
                builder.download_and_prepare(download_config=download_config)
        except OSError as error:
            if not builder.data_path.exists():
                raise DataError(
                    f"{builder.data_dir}: expected to be able to write the data set "
                    f"{builder.name} there. Received: {error.strerror or error}"
                ) from error
            # Otherwise another process has finished first: TFDS renames complete folders.
        options = {"config": builder.builder_config} if builder.builder_config else {}
        builder = type(builder)(
            data_dir=builder.data_dir_root, file_format=builder.info.file_format, **options
        )
    _check_files(builder, sizes or {})
    return builder


def expected_splits(sizes: Mapping[str, int]) -> tfds.core.SplitDict:
    """Returns splits of known sizes, with which TFDS' progress bars show the time left."""
    return tfds.core.SplitDict(
        tfds.core.SplitInfo(name=name, shard_lengths=[size], num_bytes=0)
        for name, size in sizes.items()
    )


def _check_files(builder: tfds.core.DatasetBuilder, sizes: Mapping[str, int]) -> None:
    remedy = f"{builder.data_dir}: remove this folder to prepare the data set again."
    if not builder.is_prepared():
        raise DataError(f"{remedy} Received: a folder without dataset_info.json")
    splits = builder.info.splits
    for split, size in sizes.items():
        found = splits[split].num_examples if split in splits else "none"
        if found != size:
            raise DataError(f"{remedy} Expected {size} examples of {split}. Received: {found}")
    for info in splits.values():
        for path in info.filepaths:
            if not path.exists():
                raise DataError(f"{remedy} Expected {path.name}. Received: no such file")


class RecordsSource(Sequence):
    """Random access to prepared examples; see `dilated_affinity.datasets.registry.Source`.

    Images and labels are decoded by `datasets.files.images`, not by TFDS, so that they equal those
    that are read from files.

    Args:
        builder: A builder of a prepared data set, in a file format with random access.
        split: A split or parts of splits in TFDS' notation.
        classes: The class table.
        ids: The id of each example; if `None`, they are read from the records on first use, which
            takes as long as reading the whole data set.
        table: See `label_table`; by default values are classes and 255.
        keys: Names of the features.
    """

    def __init__(
        self,
        builder: tfds.core.DatasetBuilder,
        split: str,
        classes: ClassTable,
        ids: Sequence[str] | None = None,
        table: np.ndarray | None = None,
        keys: Keys = Keys(),  # noqa: B008 (a tuple, never changed)
    ):
        encoded = tfds.decode.SkipDecoding()
        self._records = builder.as_data_source(
            split, decoders={keys.image: encoded, keys.label: encoded}
        )
        self._folder = builder.data_dir
        self._ids = None if ids is None else list(ids)
        self._table = label_table(classes.num_classes) if table is None else table
        self._keys = keys
        self.classes = classes

    @property
    def ids(self) -> list[str]:
        """The id of every example, in order."""
        if self._ids is None:
            self._ids = [self._id(self._record(index)) for index in range(len(self))]
        return self._ids

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        record, name = self._named_record(index)
        return {
            "image": decode_image(record[self._keys.image], name),
            "label": self._label(record, name),
            "id": self._id(record),
        }

    def label(self, index: int) -> np.ndarray:
        """The label of an example; its image is not decoded."""
        return self._label(*self._named_record(index))

    def _label(self, record: dict, name: str) -> np.ndarray:
        values = decode_label(record[self._keys.label], name)
        return classes_of_values(values, name, self.classes, self._table)

    def _named_record(self, index: int) -> tuple[dict, str]:
        # Supports negative indices and iteration like any sequence, which TFDS does not.
        index = range(len(self))[index]
        record = self._record(index)
        return record, f"{self._folder}, example {index} ({self._id(record)})"

    def _id(self, record: dict) -> str:
        return record[self._keys.id].decode("utf-8", "replace")

    def _record(self, index: int) -> dict:
        try:
            return self._records[index]
        except (OSError, RuntimeError, ValueError, IndexError) as error:
            text = " ".join(str(error).split())
            raise DataError(
                f"{self._folder}: example {index} is damaged; remove this folder to prepare the "
                f"data set again. Received: {type(error).__name__}: {text}"
            ) from error
