"""The base of data sets that lie on disk as pairs of an image file and a label file.

They are read in place, in the manner of `tfds.ImageFolder`: nothing is copied or converted.
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
from dilated_affinity.datasets.files.images import decode_label
from dilated_affinity.datasets.files.pairs import Decoder, Pair, label_table, read_label, read_pair
from dilated_affinity.datasets.inspection import Inspection, inspect_pair
from dilated_affinity.datasets.notes import Notes, log_once
from dilated_affinity.datasets.splits import split_parts
from dilated_affinity.errors import MissingDataError


class PairedFilesSource(Sequence):
    """Random access to pairs of files; see `dilated_affinity.datasets.registry.Source`.

    Args:
        pairs: The examples, in order.
        classes: The class table.
        table: See `label_table`.
        decode: What decodes the label files; it must be possible to pickle it.
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
        self._noticed: dict[str, str] = {}
        self.classes = classes
        self.ids = [pair.id for pair in self._pairs]

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict:
        return read_pair(self._pairs[index], self.classes, self._table, self._decode, self._notice)

    def label(self, index: int) -> np.ndarray:
        """Reads the label of an example without its image."""
        return read_label(self._pairs[index], self.classes, self._table, self._decode)

    def inspect(self, index: int) -> tuple[Pair, Inspection]:
        """Reads an example for what its arrays do not show; its values need not be classes.

        Raises:
            DataError: A file cannot be used.
        """
        pair = self._pairs[index]
        return pair, inspect_pair(pair, self._decode)

    @property
    def table(self) -> np.ndarray:
        """What the values in label files mean; see `label_table`."""
        return self._table

    def _notice(self, remark: str, path: str) -> None:
        # The first file of each kind; several threads may meet one.
        if remark not in self._noticed and self._noticed.setdefault(remark, path) is path:
            logging.warning("%s: the first of the %s; --check_only counts them", path, remark)


class PairedFilesBuilder(tfds.core.DatasetBuilder, skip_registration=True):
    """Base of the TFDS builders that read pairs of files in place.

    A subclass gives `CLASSES` and `_list_pairs`, `_label_table` where its files hold other
    values than the classes and 255, and `_label_decoder` where they are no images of these values.

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
        DataError: The folder is missing, or its images and labels do not pair up.
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
        # Set anew: TFDS has appended name and version, but the files are read where they are.
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
        """What was passed over when the pairs were listed, and the like, a line for each kind."""
        return self._notes.lines()

    def source(self, split: str) -> PairedFilesSource:
        """Returns random access to a split.

        Args:
            split: A name in `info.splits`, or a part of one in TFDS' notation (`"train[:10]"`).

        Returns:
            See `dilated_affinity.datasets.registry.Source`.

        Raises:
            ConfigError: There is no such split.
        """
        pairs = [
            pair
            for name, start, stop in split_parts(self.name, split, self.info.splits)
            for pair in self._pairs[name][start:stop]
        ]
        return PairedFilesSource(pairs, self.classes, self._label_table(), self._label_decoder())

    @abc.abstractmethod
    def _list_pairs(self, root: Path) -> dict[str, tuple[Pair, ...]]:
        """Returns the pairs of every split that is there, in order, without reading the files.

        What is passed over goes into `self._notes`.
        """

    def _label_table(self) -> np.ndarray:
        """Returns what the values in the label files mean; see `label_table`."""
        return label_table(self.classes.num_classes)

    def _label_decoder(self) -> Decoder:
        """Returns what decodes the label files."""
        return decode_label

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
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
        """Does nothing: the files are read where they are."""
        del kwargs
        logging.info("%s is read in place from %s; nothing to prepare", self.name, self.data_dir)

    def _download_and_prepare(self, dl_manager, download_config=None) -> None:
        """Is abstract in TFDS; `download_and_prepare` above does not come here."""

    def as_data_source(self, split=None, **kwargs):
        """Returns random access to a split, or to all of them by name where `split` is None.

        Args:
            split: See `source`.
            **kwargs: TFDS' `decoders` and the like, of which none can apply here.

        Raises:
            NotImplementedError: An option was given.
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
            tensors = tf.numpy_function(read, [index], (tf.uint8, tf.uint8, tf.string))
            example = dict(zip(("image", "label", "id"), tensors, strict=True))
            return {
                key: tf.ensure_shape(tensor, self.info.features[key].shape)
                for key, tensor in example.items()
            }

        dataset = tf.data.Dataset.range(len(source))
        if shuffle_files:
            dataset = dataset.shuffle(len(source), getattr(read_config, "shuffle_seed", None))
        return dataset.map(read_in_graph, num_parallel_calls=tf.data.AUTOTUNE)
