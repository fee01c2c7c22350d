"""TFDS builder of Cityscapes in its official folder layout, read in place."""

from pathlib import Path

import numpy as np

from dilated_affinity.datasets.classes import CITYSCAPES, cityscapes_train_ids
from dilated_affinity.datasets.files.listing import HIDDEN_FILES, MACOS_FILES
from dilated_affinity.datasets.files.pair_builder import PairedFilesBuilder
from dilated_affinity.datasets.files.pairs import INVALID, Pair, raise_first
from dilated_affinity.datasets.notes import Notes
from dilated_affinity.errors import DataError, MissingDataError

SPLITS = ("train", "val", "test")
IMAGES, LABELS = "leftImg8bit", "gtFine"
IMAGE_ENDING, LABEL_ENDING = "_leftImg8bit.png", "_gtFine_labelIds.png"

# The label files contain the ids 0 to 33.
_NUM_LABEL_IDS = 34


def label_id_table() -> np.ndarray:
    """Returns the `label_table` of labelIds files.

    Ids that do not exist are invalid rather than void: 255 in particular indicates trainIds in a
    file named labelIds.
    """
    table = cityscapes_train_ids().astype(np.int16)
    table[_NUM_LABEL_IDS:] = INVALID
    return table


# TFDS has a data set of this name, which `TfdsCityscapes` uses.
class Cityscapes(PairedFilesBuilder, skip_registration=True):
    """Cityscapes, street scenes of 2048x1024 pixels in 19 classes, read in place.

    `data_dir` contains `leftImg8bit/<split>/<city>/<id>_leftImg8bit.png` and
    `gtFine/<split>/<city>/<id>_gtFine_labelIds.png` for the splits train, val and test, or some
    of them. labelIds become the 19 training classes (trainIds); all others are void.
    """

    CLASSES = CITYSCAPES
    HOMEPAGE = "https://www.cityscapes-dataset.com"

    def _list_pairs(self, root: Path) -> dict[str, tuple[Pair, ...]]:
        splits = {}
        for split in SPLITS:
            image_dir, label_dir = root / IMAGES / split, root / LABELS / split
            if image_dir.is_dir() and label_dir.is_dir():
                splits[split] = _pairs_of_cities(image_dir, label_dir, self._notes)
            elif image_dir.is_dir() or label_dir.is_dir():
                missing = label_dir if image_dir.is_dir() else image_dir
                self._notes.add("splits left out, since one of their folders is missing", missing)
        if not splits:
            raise MissingDataError(
                f"{root}: expected Cityscapes' folders {IMAGES}/train and {LABELS}/train, or those "
                "of val or test. Received: none of these pairs"
            )
        return splits

    def _label_table(self) -> np.ndarray:
        return label_id_table()


def _pairs_of_cities(image_dir: Path, label_dir: Path, notes: Notes) -> tuple[Pair, ...]:
    images = _files_of_cities(image_dir, IMAGE_ENDING, notes)
    labels = _files_of_cities(label_dir, LABEL_ENDING, notes)
    problems = [
        f"{images[key]}: expected its labels in {label_dir / key}{LABEL_ENDING}. "
        "Received: no such file"
        for key in sorted(images.keys() - labels.keys())
    ] + [
        f"{labels[key]}: expected its image in {image_dir / key}{IMAGE_ENDING}. "
        "Received: no such file"
        for key in sorted(labels.keys() - images.keys())
    ]
    raise_first(problems)
    if not images:
        raise DataError(f"{image_dir}: expected <city>/<id>{IMAGE_ENDING}. Received: no such files")
    # File names begin with the city and are unique.
    return tuple(
        Pair(key.rsplit("/", 1)[-1], str(images[key]), str(labels[key])) for key in sorted(images)
    )


def _files_of_cities(folder: Path, ending: str, notes: Notes) -> dict[str, Path]:
    files = {}
    for path in folder.glob(f"*/*{ending}"):
        if path.name.startswith("."):
            notes.add(MACOS_FILES if path.name.startswith("._") else HIDDEN_FILES, path)
        else:
            files[path.relative_to(folder).as_posix().removesuffix(ending)] = path
    return files
