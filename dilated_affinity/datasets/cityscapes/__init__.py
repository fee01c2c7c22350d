"""Cityscapes, fine annotations: from the official folder layout or the official zip files."""

import os
from pathlib import Path

from dilated_affinity.datasets.cityscapes.archives import TfdsCityscapes
from dilated_affinity.datasets.cityscapes.cityscapes_dataset_builder import IMAGES, Cityscapes

__all__ = ["Cityscapes", "TfdsCityscapes", "make_builder"]


def make_builder(*, data_dir: str | os.PathLike) -> Cityscapes | TfdsCityscapes:
    """Returns the builder for the contents of a folder.

    Args:
        data_dir: A folder with `leftImg8bit/` and `gtFine/`, which are read in place; or with the
            official zip files, or with the data set that TFDS prepared from them.

    Raises:
        DataError: If there is none of these.
    """
    if (Path(data_dir).expanduser() / IMAGES).is_dir():
        return Cityscapes(data_dir=data_dir)
    return TfdsCityscapes(data_dir=data_dir)
