"""PASCAL VOC 2012 from an extracted VOCdevkit, read in place."""

import os
from pathlib import Path

import numpy as np
from absl import logging

from dilated_affinity.datasets.classes import VOC2012
from dilated_affinity.datasets.files.images import decode_label, read_bytes
from dilated_affinity.datasets.files.pair_builder import PairedFilesBuilder, PairedFilesSource
from dilated_affinity.datasets.files.pairs import Decoder, Pair, raise_first
from dilated_affinity.datasets.voc2012_aug.id_lists import derive_splits, parse_ids
from dilated_affinity.datasets.voc2012_aug.sbd import decode_sbd
from dilated_affinity.errors import DataError

_LISTS = Path("ImageSets", "Segmentation")


def find_devkit(data_dir: str | os.PathLike) -> Path | None:
    """Returns the folder VOC2012 with JPEGImages and ImageSets, or `None`.

    Args:
        data_dir: The folder that contains `VOCdevkit/VOC2012` or `VOC2012`, or is the latter.
    """
    root = Path(data_dir).expanduser()
    for folder in (root / "VOCdevkit" / "VOC2012", root / "VOC2012", root):
        if (folder / "JPEGImages").is_dir() and (folder / _LISTS).is_dir():
            return folder
    return None


class Voc2012Aug(PairedFilesBuilder, skip_registration=True):
    """PASCAL VOC 2012 segmentation with the additional masks of SBD, read in place.

    `data_dir` contains `VOCdevkit/VOC2012` or `VOC2012`, or is the latter. Beside the devkit, or in
    it, are `SegmentationClassAug` (palette or grey PNG), or SBD's `benchmark_RELEASE` as unpacked
    from its archive, or both. If an image has several masks, the official one in
    `SegmentationClass`, with its void contours, takes precedence over those of SBD, which have
    none, and a PNG over SBD's MATLAB file.

    Splits: train, val and trainval as in the lists; trainaug by `derive_splits`. The ids of SBD are
    those in its own lists; without these, in `trainaug.txt` or `train_aug.txt` beside VOC's lists;
    without these, of the masks in `SegmentationClassAug`.
    """

    CLASSES = VOC2012
    HOMEPAGE = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"

    def source(self, split: str) -> PairedFilesSource:
        if "trainaug" in split and "trainaug" not in self.info.splits:
            raise DataError(
                f"{self.data_dir}: trainaug needs SBD's masks, as SegmentationClassAug or as "
                "benchmark_RELEASE, beside VOCdevkit. Received: neither of them"
            )
        return super().source(split)

    def _list_pairs(self, root: Path) -> dict[str, tuple[Pair, ...]]:
        devkit = find_devkit(root)
        if devkit is None:
            raise DataError(
                f"{root}: expected VOCdevkit/VOC2012 with JPEGImages and ImageSets/Segmentation. "
                "Received: no such folders"
            )
        around = [folder for folder in (devkit, *devkit.parents) if folder.is_relative_to(root)]
        images = _stems(devkit / "JPEGImages", ".jpg")
        masks = _stems(devkit / "SegmentationClass", ".png")
        matlab: dict[str, str] = {}
        additional: dict[str, str] = {}
        sbd = None
        # The nearest to the devkit last, since it takes precedence.
        for folder in reversed(around):
            release = folder / "benchmark_RELEASE" / "dataset"
            matlab |= _stems(release / "cls", ".mat")
            additional |= _stems(folder / "SegmentationClassAug", ".png")
            for path in (release / "train.txt", release / "val.txt"):
                if path.is_file():
                    sbd = (sbd or set()) | set(_ids(path))
        additional = matlab | additional
        for name in ("trainaug.txt", "train_aug.txt"):
            if sbd is None and (devkit / _LISTS / name).is_file():
                sbd = set(_ids(devkit / _LISTS / name))
        if sbd is None and additional:
            sbd = set(additional)
        official = {
            split: _ids(devkit / _LISTS / f"{split}.txt")
            for split in ("train", "val", "trainval")
            if (devkit / _LISTS / f"{split}.txt").is_file()
        }
        splits = derive_splits(official, sbd, str(devkit))
        labels = additional | masks
        problems = []
        for wanted in sorted({example for ids in splits.values() for example in ids}):
            if wanted not in images:
                problems.append(
                    f"{devkit / 'JPEGImages' / wanted}.jpg: expected the image of each id in the "
                    "lists. Received: no such file"
                )
            if wanted not in labels:
                problems.append(
                    f"{devkit / 'SegmentationClass' / wanted}.png: expected a mask of each id in "
                    "the lists, there or among SBD's. Received: no such file"
                )
        raise_first(problems)
        if "trainaug" in splits:
            of_sbd = sum(example not in masks for example in splits["trainaug"])
            logging.info("%s: %d masks of trainaug are SBD's", devkit, of_sbd)
        return {
            split: tuple(Pair(example, images[example], labels[example]) for example in ids)
            for split, ids in splits.items()
        }

    def _label_decoder(self) -> Decoder:
        return decode_mask


def decode_mask(data: bytes, name: str) -> np.ndarray:
    """Decodes a mask of VOC or SBD by the ending of its name; see `decode_label`, `decode_sbd`."""
    return decode_sbd(data, name) if name.endswith(".mat") else decode_label(data, name)


def _stems(folder: Path, suffix: str) -> dict[str, str]:
    """Returns the paths of the files with an ending by their stems; none without the folder."""
    if not folder.is_dir():
        return {}
    return {
        name.removesuffix(suffix): os.path.join(folder, name)
        for name in os.listdir(folder)
        if name.endswith(suffix) and not name.startswith(".")
    }


def _ids(path: Path) -> tuple[str, ...]:
    return parse_ids(read_bytes(path), str(path))
