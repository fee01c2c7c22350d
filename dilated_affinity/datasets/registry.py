"""Builders, examples and `tf.data.Dataset`s of the data sets by name.

Every data set has a TFDS builder in a separate folder, and a line of `_BUILDERS`.
"""

import functools
import importlib
import os
import re
from collections.abc import Callable
from typing import Protocol

import numpy as np
import tensorflow as tf

from dilated_affinity.datasets.classes import ClassTable
from dilated_affinity.datasets.data_dir import open_data_dir
from dilated_affinity.errors import ConfigError, DataError, did_you_mean
from dilated_affinity.runtime.python_function import python_function

# A module, and its builder or the function that selects one by the contents of `data_dir`.
# Given by name, since importing TFDS takes seconds, which listing the names should not.
_BUILDERS = {
    "shapes": ("dilated_affinity.datasets.shapes", "Shapes"),
    "camvid": ("dilated_affinity.datasets.camvid", "Camvid"),
    "voc2012_aug": ("dilated_affinity.datasets.voc2012_aug", "make_builder"),
    "cityscapes": ("dilated_affinity.datasets.cityscapes", "make_builder"),
    "folder": ("dilated_affinity.datasets.folder", "Folder"),
}


class Source(Protocol):
    """Random access to the decoded examples of one split.

    A source can be pickled, and several threads may read from it at once.

    Attributes:
        classes: The `ClassTable` of the data set.
        ids: The id of every example, in order, available without decoding any.
    """

    classes: ClassTable
    ids: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict:
        """Returns `{"image": uint8 (H, W, 3) RGB, "label": uint8 (H, W), "id": str}`.

        A source may also have a faster method `label(index)` that returns only the label.
        """


def dataset_names() -> tuple[str, ...]:
    """Returns the names of the data sets."""
    return tuple(_BUILDERS)


def make_builder(name: str, data_dir: str | os.PathLike):
    """Returns the TFDS builder of a data set.

    Args:
        name: One of `dataset_names()`.
        data_dir: The folder of the data set. For `shapes`, which is generated, the folder in which
            it is stored; for the others, the folder shown in their README, or the one that contains
            it under the data set's name.

    Returns:
        A `tfds.core.DatasetBuilder`, or for Cityscapes' zip files a wrapper of TFDS' builder, with
        the additional members `classes`, a `ClassTable`, and `source(split)`, see `Source`.

    Raises:
        ConfigError: If there is no data set of that name.
        DataError: If `data_dir` does not have the layout shown in the data set's README.
    """
    if name not in _BUILDERS:
        raise ConfigError(
            f"Unknown data set: the names are {', '.join(_BUILDERS)}."
            f"{did_you_mean(name, _BUILDERS)} Received: {name!r}"
        )
    module, builder = _BUILDERS[name]
    make = getattr(importlib.import_module(module), builder)
    return open_data_dir(name, data_dir, lambda root: make(data_dir=root))


def load_source(name: str, split: str, data_dir: str | os.PathLike) -> Source:
    """Returns random access to the examples of a split, at their original sizes.

    A generated data set (`shapes`) is prepared under `data_dir` first if it is missing.

    Args:
        name: One of `dataset_names()`.
        split: The name of a split, such as `"train"` or `"val"`.
        data_dir: See `make_builder`.

    Returns:
        A `Source` with `len(source)`, `source.ids`, `source.classes`, and `source[i]`, a dict of
        `"image"` (uint8, `(H, W, 3)`, RGB), `"label"` (uint8, `(H, W)`, classes 0 to C-1 and 255
        void) and `"id"` (str).

    Raises:
        ConfigError: If there is no data set or no split of that name.
        DataError: If the data set is missing or incomplete; from `source[i]`, if a file is damaged.
    """
    return make_builder(name, data_dir).source(split)


def load_dataset(name: str, split: str, data_dir: str | os.PathLike) -> tf.data.Dataset:
    """Returns the examples of a split in order, at their original sizes.

    Args:
        name: One of `dataset_names()`.
        split: The name of a split, such as `"train"` or `"val"`.
        data_dir: See `make_builder`.

    Returns:
        A `tf.data.Dataset` of known cardinality, whose elements are dictionaries of `"image"`
        (uint8, `(None, None, 3)`), `"label"` (uint8, `(None, None)`) and `"id"` (string scalar).
        A damaged file surfaces as a `tf.errors.OpError`; see `data_error_from`.

    Raises:
        ConfigError: If there is no data set or no split of that name.
        DataError: If the data set is missing or incomplete.
    """
    source = load_source(name, split, data_dir)
    dataset = read_examples(source, tf.data.Dataset.range(len(source)))
    return dataset.apply(tf.data.experimental.assert_cardinality(len(source)))


def read_examples(source: Source, indices: tf.data.Dataset) -> tf.data.Dataset:
    """Returns the examples at some indices in the given order, read and decoded in parallel.

    Args:
        source: The examples, as `load_source` returns them.
        indices: A `tf.data.Dataset` of int64 scalars.

    Returns:
        A `tf.data.Dataset` with the elements of `load_dataset`.
    """

    def read(index: np.ndarray) -> tuple[np.ndarray, np.ndarray, bytes]:
        example = source[int(index)]
        return example["image"], example["label"], example["id"].encode()

    def read_in_graph(index: tf.Tensor) -> dict[str, tf.Tensor]:
        image, label, example_id = python_function(
            read, [index], (tf.uint8, tf.uint8, tf.string), stateful=False
        )
        return {
            "image": tf.ensure_shape(image, (None, None, 3)),
            "label": tf.ensure_shape(label, (None, None)),
            "id": tf.ensure_shape(example_id, ()),
        }

    # The thread that tunes the parallelism may miss that an iterator is deleted, and the deletion
    # then waits for it, up to a minute (TensorFlow 2.21). Without it, AUTOTUNE allows up to 16
    # calls at once. The option holds for everything that is made of this data set.
    options = tf.data.Options()
    options.autotune.enabled = False
    examples = indices.map(read_in_graph, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return examples.with_options(options)


def label_readers(source: Source) -> list[Callable[[], np.ndarray]]:
    """Returns for each example a function that reads its label, for `AffinityStatistics`.

    Images are not decoded if the source has a method `label`. A `SkippingSource` decodes them and
    returns void labels for examples that cannot be used.
    """
    read = getattr(source, "label", None) or _label_of(source)
    return [functools.partial(read, index) for index in range(len(source))]


def _label_of(source: Source) -> Callable[[int], np.ndarray]:
    return lambda index: source[index]["label"]


def data_error_from(op_error: tf.errors.OpError) -> DataError | None:
    """Recovers a `DataError` that was raised inside `tf.numpy_function`.

    TensorFlow converts it to an `OpError` whose text contains the message among names of graph
    nodes and a Python traceback. Messages of `DataError` are one line, so the first line with one
    contains all of it.

    Args:
        op_error: Error raised by iterating a dataset, or by `model.fit`.

    Returns:
        The `DataError` with its own message, or `None` if the cause was another error.
    """
    found = re.search(r"\bDataError: (.+)", op_error.message or "")
    return DataError(found.group(1).strip()) if found else None
