"""TFDS builder of `shapes`, which draws its images itself."""

import inspect
import io
import os

import cv2
import numpy as np
import tensorflow_datasets as tfds

from dilated_affinity.datasets.classes import SHAPES, ClassTable
from dilated_affinity.datasets.records import RecordsSource, expected_splits, prepare
from dilated_affinity.datasets.shapes.drawing import draw_example
from dilated_affinity.datasets.splits import split_parts


class Shapes(tfds.core.GeneratorBasedBuilder):
    """Drawn images of 160x160 pixels: discs, triangles, squares, stars, rings and thin bars.

    Objects and background are textured, overlap, and may differ little in colour; outlines are
    void. Example i of a split depends on the split and i only.

    Example:

    ```python
    builder = Shapes(data_dir="data")
    builder.download_and_prepare()
    builder.as_data_source("val")[0]["image"]
    ```

    Args:
        data_dir: The folder in which TFDS stores prepared data sets; this one is stored in
            `<data_dir>/shapes/<version>`.
        file_format: TFDS' name of the file format. `as_data_source` and `source` need a format
            with random access.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Drawing 1 of `drawing.py`."}
    HOMEPAGE = "https://arxiv.org/abs/1907.07011"
    # Nothing is downloaded. Without this, TFDS searches its package resources for checksums, which
    # fails if `importlib_resources` is not installed (TFDS 4.9.10 does not require it).
    url_infos = None
    SPLIT_SIZES = {"train": 800, "val": 100}

    def __init__(self, *, data_dir: str | os.PathLike, file_format: str = "array_record", **kwargs):
        super().__init__(data_dir=os.path.expanduser(data_dir), file_format=file_format, **kwargs)

    @property
    def classes(self) -> ClassTable:
        """The classes of the data set."""
        return SHAPES

    def source(self, split: str) -> RecordsSource:
        """Returns random access to a split; draws the data set first if it is missing.

        Args:
            split: `"train"`, `"val"`, or a part in TFDS' notation (`"train[:10]"`).

        Returns:
            See `dilated_affinity.datasets.registry.Source`.

        Raises:
            ConfigError: If there is no such split.
            DataError: If the data set in `data_dir` is incomplete, or cannot be written there.
        """
        builder = prepare(self, self.SPLIT_SIZES)
        parts = split_parts(self.name, split, builder.info.splits)
        ids = [_example_id(name, i) for name, start, stop in parts for i in range(start, stop)]
        return RecordsSource(builder, split, self.classes, ids)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=inspect.getdoc(Shapes).split("\n\nExample:")[0],
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                    "label": tfds.features.LabeledImage(
                        labels=list(SHAPES.names), shape=(None, None, 1), encoding_format="png"
                    ),
                    "id": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage=self.HOMEPAGE,
            # Keeps the order of the examples.
            disable_shuffling=True,
            split_dict=expected_splits(self.SPLIT_SIZES),
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {split: self._generate_examples(split) for split in self.SPLIT_SIZES}

    def _generate_examples(self, split: str):
        for index in range(self.SPLIT_SIZES[split]):
            image, label = draw_example(split, index)
            yield (
                index,
                {
                    "image": _png(np.ascontiguousarray(image[..., ::-1])),
                    "label": _png(label),
                    "id": _example_id(split, index),
                },
            )


def _png(pixels: np.ndarray) -> io.BytesIO:
    """Encodes grey or BGR pixels, several times faster than TFDS does."""
    return io.BytesIO(cv2.imencode(".png", pixels)[1].tobytes())


def _example_id(split: str, index: int) -> str:
    return f"{split}_{index:05d}"
