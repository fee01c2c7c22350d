"""Base of the TFDS builders of data sets stored as pairs of an image file and a label file.

They are read in place, as by `tfds.ImageFolder`: nothing is copied or converted.
"""

import abc
import inspect
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging

from dilated_affinity.datasets.classes import ClassTable
from dilated_affinity.datasets.files.images import decode_label, label_remarks, read_bytes
from dilated_affinity.datasets.files.pairs import Decoder, Pair, label_table, read_label, read_pair
from dilated_affinity.datasets.inspection import Inspection, inspect_pair
from dilated_affinity.datasets.notes import Notes, log_once
from dilated_affinity.datasets.splits import split_parts
from dilated_affinity.errors import MissingDataError, printable
from dilated_affinity.runtime.python_function import python_function


class PairedFilesSource(Sequence):
    """Random access to pairs of files; see `dilated_affinity.datasets.registry.Source`.

    Args:
        pairs: The examples, in order.
        classes: The class table.
        table: See `label_table`.
        decode: Decoder of the label files, which can be pickled.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        classes: ClassTable,
        table: np.ndarray,
        decode: Decoder = decode_label,
    ):
        self._pairs = tuple(pairs)
        self._table = table
        self._decode = decode
        self._logged: dict[str, str] = {}
        self._masks_read: set[str] = set()
        self.classes = classes
        self.ids = [pair.id for pair in self._pairs]

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict:
        pair = self._pairs[index]
        example = read_pair(pair, self.classes, self._table, self._decode, self._log_remark)
        self._remark_on_mask(pair.label_path)
        return example

    def label(self, index: int) -> np.ndarray:
        """Reads the label of an example without its image."""
        pair = self._pairs[index]
        label = read_label(pair, self.classes, self._table, self._decode)
        self._remark_on_mask(pair.label_path)
        return label

    def inspect(self, index: int) -> tuple[Pair, Inspection]:
        """Reads and inspects an example; its label values need not be classes.

        Raises:
            DataError: If a file cannot be used.
        """
        pair = self._pairs[index]
        return pair, inspect_pair(pair, self._decode)

    @property
    def table(self) -> np.ndarray:
        """The class of each value in label files; see `label_table`."""
        return self._table

    def _remark_on_mask(self, path: str) -> None:
        """Logs what the conversion of a mask changes or ignores, when it is first read."""
        if path not in self._masks_read:
            self._masks_read.add(path)
            for remark in label_remarks(read_bytes(path), path):
                self._log_remark(remark, path)

    def _log_remark(self, remark: str, path: str) -> None:
        # Logs the first file of each kind only; several threads may read one.
        if remark not in self._logged and self._logged.setdefault(remark, path) is path:
            logging.warning(
                "%s is one of the %s; --check_only counts them", printable(path), remark
            )


class _LocalInfo(tfds.core.DatasetInfo):
    """Information about a data set that TFDS does not host."""

    def initialize_from_bucket(self):
        """Does nothing, where TFDS would leave an empty temporary folder."""


class PairedFilesBuilder(tfds.core.DatasetBuilder, skip_registration=True):
    """Base class of the TFDS builders that read pairs of files in place.

    A subclass defines `CLASSES` and `_list_pairs`; also `_label_table` if its label files contain
    values other than the classes and 255, and `_label_decoder` if they are not images of these.

    Example:

    ```python
    builder = Camvid(data_dir="data/camvid")
    builder.info.splits["train"].num_examples
    for example in builder.as_dataset(split="train[:10]"):
        example["image"], example["label"], example["id"]
    ```

    Args:
        data_dir: The folder of the data set.

    Raises:
        DataError: If the folder is missing, or its images and labels do not pair up.
    """

    VERSION = tfds.core.Version("1.0.0")
    CLASSES: ClassTable
    HOMEPAGE = ""

    def __init__(self, *, data_dir: str | os.PathLike, **kwargs):
        root = Path(data_dir).expanduser()
        if not root.is_dir():
            raise MissingDataError(
                f"{self.name}: data_dir must be the folder of the data set. "
                f"Received: {str(root)!r}, which is not a folder"
            )
        super().__init__(data_dir=root, **kwargs)
        # Restored, since TFDS has appended name and version, but the files are read in place.
        self._data_dir = str(root)
        self.info.update_data_dir(str(root))
        self._notes = Notes()
        self._pairs = self._list_pairs(root)
        log_once(f"{self.name}: {line}" for line in self.notes)
        self.info.set_splits(
            tfds.core.SplitDict(
                [
                    tfds.core.SplitInfo(name=split, shard_lengths=[len(pairs)], num_bytes=0)
                    for split, pairs in self._pairs.items()
                ]
            )
        )

    @property
    def classes(self) -> ClassTable:
        """The classes of the data set."""
        return self.CLASSES

    @property
    def notes(self) -> list[str]:
        """Notes on ignored files and the like from listing the pairs, a line for each kind."""
        return self._notes.lines()

    def source(self, split: str) -> PairedFilesSource:
        """Returns random access to a split.

        Args:
            split: A name in `info.splits`, or a part of one in TFDS' notation (`"train[:10]"`).

        Returns:
            See `dilated_affinity.datasets.registry.Source`.

        Raises:
            ConfigError: If there is no such split.
        """
        pairs = [
            pair
            for name, start, stop in split_parts(self.name, split, self.info.splits)
            for pair in self._pairs[name][start:stop]
        ]
        return PairedFilesSource(pairs, self.classes, self._label_table(), self._label_decoder())

    @abc.abstractmethod
    def _list_pairs(self, root: Path) -> dict[str, tuple[Pair, ...]]:
        """Returns the pairs of every existing split, in order, without reading the files.

        Ignored files are added to `self._notes`.
        """

    def _label_table(self) -> np.ndarray:
        """Returns the class of each value in the label files; see `label_table`."""
        return label_table(self.classes.num_classes)

    def _label_decoder(self) -> Decoder:
        """Returns the decoder of the label files."""
        return decode_label

    def _info(self) -> tfds.core.DatasetInfo:
        return _LocalInfo(
            builder=self,
            description=inspect.getdoc(type(self)),
            homepage=self.HOMEPAGE,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.LabeledImage(
                        labels=list(self.classes.names), shape=(None, None, 1)
                    ),
                    "id": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def download_and_prepare(self, **kwargs) -> None:
        """Does nothing, since the files are read in place."""
        del kwargs
        logging.info("%s is read in place from %s; nothing to prepare", self.name, self.data_dir)

    def _download_and_prepare(self, dl_manager, download_config=None) -> None:
        """Abstract in TFDS; never called by `download_and_prepare` above."""

    def as_data_source(self, split=None, **kwargs):
        """Returns random access to a split, or to all of them by name where `split` is None.

        Args:
            split: See `source`.
            **kwargs: Other options of TFDS, such as `decoders`, which are not supported.

        Raises:
            NotImplementedError: If an option was given.
        """
        given = {name: value for name, value in kwargs.items() if value is not None}
        if given:
            raise NotImplementedError(f"{self.name} is read in place. Received: {given}")
        if split is None:
            return {name: self.source(name) for name in self._pairs}
        return self.source(split)

    def _as_dataset(self, split, decoders=None, read_config=None, shuffle_files=False):
        if decoders:
            raise NotImplementedError(f"{self.name} is read in place. Received: {decoders=}")
        source = self.source(str(split))

        def read(index):
            example = source[int(index)]
            return example["image"], example["label"][..., np.newaxis], example["id"].encode()

        def read_in_graph(index):
            tensors = python_function(read, [index], (tf.uint8, tf.uint8, tf.string))
            example = dict(zip(("image", "label", "id"), tensors, strict=True))
            return {
                key: tf.ensure_shape(tensor, self.info.features[key].shape)
                for key, tensor in example.items()
            }

        dataset = tf.data.Dataset.range(len(source))
        if shuffle_files:
            dataset = dataset.shuffle(len(source), getattr(read_config, "shuffle_seed", None))
        return dataset.map(read_in_graph, num_parallel_calls=tf.data.AUTOTUNE)
