"""Cityscapes from the official zip files, through TFDS' builder."""

import os
import zipfile
from pathlib import Path, PurePosixPath

import tensorflow_datasets as tfds

from dilated_affinity.datasets.cityscapes.cityscapes_dataset_builder import (
    IMAGE_ENDING,
    IMAGES,
    LABEL_ENDING,
    LABELS,
    SPLITS,
    label_id_table,
)
from dilated_affinity.datasets.classes import CITYSCAPES, ClassTable
from dilated_affinity.datasets.records import Keys, RecordsSource, prepare
from dilated_affinity.datasets.splits import split_parts
from dilated_affinity.errors import DataError, MissingDataError

IMAGE_ARCHIVE = "leftImg8bit_trainvaltest.zip"
LABEL_ARCHIVE = "gtFine_trainvaltest.zip"

# Split names of this package, and those of TFDS.
_TFDS_SPLITS = {"train": "train", "val": "validation", "test": "test"}


class TfdsCityscapes:
    """TFDS' `cityscapes/semantic_segmentation`, with the classes and splits of this package.

    TFDS keeps labelIds and shuffles the examples; its `validation` is `val` here.

    Args:
        data_dir: The folder of the two zip files, or of the data set that TFDS prepared from them
            in `cityscapes/`. TFDS unpacks to `downloads/extracted`, which can be removed
            afterwards.

    Attributes:
        builder: TFDS' builder.
        classes: The `ClassTable`, of 19 training classes.

    Raises:
        DataError: If there are neither the zip files nor the prepared data set.
    """

    name = "cityscapes"

    def __init__(self, *, data_dir: str | os.PathLike):
        root = Path(data_dir).expanduser()
        self.builder = tfds.builder(
            "cityscapes/semantic_segmentation", data_dir=root, file_format="array_record"
        )
        self._archives = root / IMAGE_ARCHIVE, root / LABEL_ARCHIVE
        missing = [path.name for path in self._archives if not path.is_file()]
        if missing and not self.builder.data_path.exists():
            raise MissingDataError(
                f"{root}: expected Cityscapes' folders {IMAGES} and {LABELS}, or {IMAGE_ARCHIVE} "
                f"and {LABEL_ARCHIVE}. Received: no such folders, and no {' and no '.join(missing)}"
            )

    @property
    def classes(self) -> ClassTable:
        """The classes of the data set."""
        return CITYSCAPES

    @property
    def info(self) -> tfds.core.DatasetInfo:
        """TFDS' description of the data set, with TFDS' split names."""
        return self.builder.info

    def source(self, split: str) -> RecordsSource:
        """Returns random access to a split; prepares the data set first if it is missing.

        Args:
            split: `"train"`, `"val"`, `"test"`, or a part in TFDS' notation (`"train[:10]"`).

        Returns:
            See `dilated_affinity.datasets.registry.Source`. Its `ids` are read from the records.

        Raises:
            ConfigError: If there is no such split.
            DataError: If a zip file or the prepared data set is damaged or incomplete.
        """
        if not self.builder.data_path.exists():
            check_archives(*self._archives)
        root = self.builder.data_dir_root
        self.builder = prepare(
            self.builder, download_config=tfds.download.DownloadConfig(manual_dir=root)
        )
        splits = tfds.core.SplitDict(
            [
                tfds.core.SplitInfo(
                    name=name, shard_lengths=self.info.splits[theirs].shard_lengths, num_bytes=0
                )
                for name, theirs in _TFDS_SPLITS.items()
            ]
        )
        parts = split_parts(self.name, split, splits)
        return RecordsSource(
            self.builder,
            "+".join(f"{_TFDS_SPLITS[name]}[{start}:{stop}]" for name, start, stop in parts),
            self.classes,
            table=label_id_table(),
            keys=Keys("image_left", "segmentation_label", "image_id"),
        )


def check_archives(image_archive: Path, label_archive: Path) -> None:
    """Raises `DataError` unless two zip files have the contents that TFDS' builder assumes.

    TFDS silently skips members whose paths lead out of the archive, and does not check that each
    image has its labels.

    Args:
        image_archive: `leftImg8bit_trainvaltest.zip`.
        label_archive: `gtFine_trainvaltest.zip`.
    """
    images = _keys(image_archive, IMAGES, IMAGE_ENDING)
    labels = _keys(label_archive, LABELS, LABEL_ENDING)
    for split in SPLITS:
        if not any(key.startswith(f"{split}/") for key in images):
            raise DataError(
                f"{image_archive}: expected images in {IMAGES}/{split}, since TFDS builds all of "
                "train, val and test; unpacked folders may lack some. Received: none"
            )
    for key in sorted(images - labels):
        raise DataError(
            f"{label_archive}: expected the member {LABELS}/{key}{LABEL_ENDING}. "
            "Received: no such member"
        )


def _keys(archive: Path, top: str, ending: str) -> set[str]:
    """Returns `<split>/<city>/<id>` of the members with an ending."""
    try:
        with zipfile.ZipFile(archive) as opened:
            names = opened.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{archive}: the archive cannot be read, or is damaged or cut off. Received: {error}"
        ) from error
    for name in names:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts:
            raise DataError(
                f"{archive}: the paths of members must stay within the archive. Received: {name!r}"
            )
    return {
        name.removeprefix(f"{top}/").removesuffix(ending)
        for name in names
        if name.startswith(f"{top}/") and name.endswith(ending)
    }
