"""PASCAL VOC 2012 with the additional masks of SBD: `train`, `trainaug`, `val`, `trainval`."""

import os
from pathlib import Path

from dilated_affinity.datasets.voc2012_aug.archives import SBD_ARCHIVE, VOC_ARCHIVE
from dilated_affinity.datasets.voc2012_aug.devkit import Voc2012Aug, find_devkit
from dilated_affinity.datasets.voc2012_aug.voc2012_aug_dataset_builder import Builder
from dilated_affinity.errors import DataError, MissingDataError

__all__ = ["Builder", "Voc2012Aug", "make_builder"]


def make_builder(*, data_dir: str | os.PathLike) -> Voc2012Aug | Builder:
    """Returns the builder for the contents of a folder.

    Args:
        data_dir: A folder with an extracted `VOCdevkit`, which is read in place; or with the data
            set prepared by TFDS; or with the two official archives, from which it is prepared in
            the same folder when a source is requested. Nothing is downloaded.

    Raises:
        DataError: If there is none of these.
    """
    root = Path(data_dir).expanduser()
    if find_devkit(root):
        return Voc2012Aug(data_dir=root)
    builder = Builder(data_dir=root, archive_dir=root)
    archives = [name for name in (VOC_ARCHIVE, SBD_ARCHIVE) if (root / name).is_file()]
    if len(archives) < 2 and not builder.data_path.exists():
        raise (DataError if archives else MissingDataError)(
            f"{root}: expected an extracted VOCdevkit/VOC2012, or {VOC_ARCHIVE} and {SBD_ARCHIVE}, "
            "or what `tfds build` has made of them. "
            f"Received: {archives[0] + ' alone' if archives else 'none of them'}"
        )
    return builder
