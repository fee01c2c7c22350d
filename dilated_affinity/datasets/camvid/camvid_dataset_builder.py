"""TFDS builder of CamVid; `data/camvid/README.md` explains how to get the data."""

from pathlib import Path

import numpy as np

from dilated_affinity.datasets.classes import CAMVID, IGNORE_LABEL
from dilated_affinity.datasets.files.listing import (
    BROKEN_LINKS,
    HIDDEN_FOLDERS,
    OTHER_FOLDERS,
    is_broken_link,
)
from dilated_affinity.datasets.files.pair_builder import PairedFilesBuilder
from dilated_affinity.datasets.files.pairs import Pair, label_table, match_pairs
from dilated_affinity.errors import MissingDataError

_SPLITS = ("train", "val", "test")
_VOID = 11


class Camvid(PairedFilesBuilder):
    """CamVid, road scenes of 480x360 pixels in 11 classes, in SegNet's splits (367/101/233).

    `data_dir` contains `train/` and `trainannot/`, `val/` and `valannot/`, `test/` and
    `testannot/`, or some of these pairs; an image and its label have the same file name. Label
    value 11 is void.
    """

    CLASSES = CAMVID
    HOMEPAGE = "http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/"

    def _list_pairs(self, root: Path) -> dict[str, tuple[Pair, ...]]:
        present = [
            split
            for split in _SPLITS
            if (root / split).is_dir() or (root / f"{split}annot").is_dir()
        ]
        if not present:
            raise MissingDataError(
                f"{root}: expected CamVid's folders train/ and trainannot/, val/ and valannot/, "
                "test/ and testannot/, or some of these pairs. Received: none of them"
            )
        self._note_others(root)
        return {
            split: match_pairs(root / split, root / f"{split}annot", self._notes)
            for split in present
        }

    def _note_others(self, root: Path) -> None:
        known = {name for split in _SPLITS for name in (split, f"{split}annot")}
        for path in sorted(root.iterdir()):
            if is_broken_link(path):
                self._notes.add(BROKEN_LINKS, path)
            elif path.is_dir() and path.name not in known:
                hidden = path.name.startswith(".")
                self._notes.add(HIDDEN_FOLDERS if hidden else OTHER_FOLDERS, path)

    def _label_table(self) -> np.ndarray:
        return label_table(self.classes.num_classes, {_VOID: IGNORE_LABEL})
