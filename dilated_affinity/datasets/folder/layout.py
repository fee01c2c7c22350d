"""Which files in a folder belong together, and to which split."""

import os
from pathlib import Path

from dilated_affinity.datasets.image_files import read_bytes
from dilated_affinity.datasets.pairs import Pair, find_pairs, images_by_id
from dilated_affinity.errors import DataError

CLASS_FILE = "classes.csv"
LISTS = ("train.txt", "val.txt", "trainval.txt", "test.txt")


def find_splits(data_dir: str | os.PathLike) -> tuple[dict[str, tuple[Pair, ...]], list[str]]:
    """Finds the pairs of each split.

    Args:
        data_dir: A folder with `images/` and `masks/`. Where there are lists (`train.txt` and so
            on) each is a split and names images by their path below `images/`, with or without
            ending; where there are none, each sub-folder of `images/` is a split.

    Returns:
        The complete pairs of each split, and what is wrong, one line per problem.

    Raises:
        DataError: There is no such folder, no `images/`, no `masks/`, or no split.
    """
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise DataError(f"{root}: no such folder.")
    for name in ("images", "masks"):
        if not (root / name).is_dir():
            raise DataError(
                f"{root}: expected the folders images/ and masks/. Received: no folder {name}"
            )
    lists = [root / name for name in LISTS if (root / name).is_file()]
    return _splits_of_lists(root, lists) if lists else _splits_of_folders(root)


def _splits_of_folders(root: Path) -> tuple[dict[str, tuple[Pair, ...]], list[str]]:
    names = _folders(root / "images")
    if not names:
        raise DataError(
            f"{root}: expected a folder per split, such as images/train/ and masks/train/, or "
            "lists such as train.txt beside images/. Received: neither of them"
        )
    splits, problems = {}, []
    for name in names:
        try:
            splits[name], found = find_pairs(root / "images" / name, root / "masks" / name)
        except DataError as error:
            found = [str(error)]
        problems += found
    problems += [
        f"{root / 'masks' / name}: expected the images of these masks in "
        f"{root / 'images' / name}. Received: no such folder"
        for name in _folders(root / "masks")
        if name not in names
    ]
    return splits, problems


def _splits_of_lists(
    root: Path, lists: list[Path]
) -> tuple[dict[str, tuple[Pair, ...]], list[str]]:
    images, problems = images_by_id(root / "images")
    masks, more_problems = images_by_id(root / "masks")
    problems += more_problems
    splits = {}
    for path in lists:
        pairs: dict[str, Pair] = {}
        lines = read_bytes(path).decode("utf-8-sig", "replace").splitlines()
        for number, line in enumerate(lines, start=1):
            entry = line.strip().replace("\\", "/")
            if not entry:
                continue
            where = f"{path}, line {number}"
            key = entry if entry in images else entry.rpartition(".")[0]
            if key not in images:
                problems.append(
                    f"{where}: expected an image below {root / 'images'}. Received: {entry!r}"
                )
            elif key not in masks:
                problems.append(
                    f"{images[key]}: expected a file of the same name in {root / 'masks'}. "
                    "Received: an image without a label"
                )
            elif key in pairs:
                problems.append(f"{where}: expected each image once. Received: {entry!r} again")
            else:
                pairs[key] = Pair(key, str(images[key]), str(masks[key]))
        if not pairs:
            problems.append(
                f"{path}: expected the names of images. Received: none that is complete"
            )
        splits[path.stem] = tuple(pairs.values())
    return splits, problems


def _folders(folder: Path) -> list[str]:
    return sorted(
        path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
