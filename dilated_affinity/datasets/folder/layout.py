"""Finds the pairs of files in a folder, and their splits."""

import itertools
import os
import unicodedata
from pathlib import Path
from typing import NamedTuple

from dilated_affinity.datasets.files.images import IMAGE_SUFFIXES, read_bytes
from dilated_affinity.datasets.files.listing import (
    BROKEN_LINKS,
    HIDDEN_FILES,
    HIDDEN_FOLDERS,
    MACOS_FILES,
    is_broken_link,
)
from dilated_affinity.datasets.files.pairs import (
    Pair,
    find_pairs,
    images_by_id,
    match_names,
    not_read_again,
)
from dilated_affinity.datasets.notes import Notes
from dilated_affinity.errors import DataError, MissingDataError

CLASS_FILE = "classes.csv"
LABEL_MAP = "labelmap.txt"
LISTS = ("train.txt", "val.txt", "trainval.txt", "test.txt")

OUTSIDE_SPLITS = "images and masks in no split's folder, ignored"
IN_NO_LIST = "images in none of the lists, ignored"
OTHER_NAMES = "files and folders of other names, ignored"


class Layout(NamedTuple):
    """Result of `find_splits`.

    Attributes:
        splits: The complete pairs of each split.
        problems: Problems, one line each.
        notes: Ignored files and possible mistakes.
    """

    splits: dict[str, tuple[Pair, ...]]
    problems: list[str]
    notes: Notes


def find_splits(data_dir: str | os.PathLike) -> Layout:
    """Finds the pairs of each split.

    Args:
        data_dir: A folder with `images/` and `masks/`. If there are lists (`train.txt` and so on),
            each is a split and contains the paths of images below `images/`, with or without
            ending; otherwise each sub-folder of `images/` is a split.

    Returns:
        A `Layout`.

    Raises:
        DataError: If there is no such folder, no `images/`, no `masks/`, or no split.
    """
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise MissingDataError(f"{root}: no such folder.")
    missing = [name for name in ("images", "masks") if not (root / name).is_dir()]
    if missing:
        raise (DataError if len(missing) == 1 else MissingDataError)(
            f"{root}: expected the folders images/ and masks/. Received: no folder {missing[0]}"
        )
    lists = [root / name for name in LISTS if (root / name).is_file()]
    found = Layout({}, [], Notes())
    _note_others(root, lists, found.notes)
    if lists:
        _add_splits_of_lists(root, lists, found)
    else:
        _add_splits_of_folders(root, found)
    return found


def _note_others(root: Path, lists: list[Path], notes: Notes) -> None:
    known = {"images", "masks", CLASS_FILE, LABEL_MAP, *(path.name for path in lists)}
    for path in sorted(root.iterdir()):
        if path.name.startswith("."):
            notes.add(HIDDEN_FILES, path)
        elif is_broken_link(path):
            notes.add(BROKEN_LINKS, path)
        elif path.name not in known:
            notes.add(OTHER_NAMES, path)


def _add_splits_of_folders(root: Path, found: Layout) -> None:
    images, masks = (_split_folders(root / name, found.notes) for name in ("images", "masks"))
    if not images:
        raise DataError(
            f"{root}: expected a folder per split, such as images/train/ and masks/train/, or "
            "lists such as train.txt beside images/. Received: neither of them"
        )
    mask_folder_of = match_names(images, masks, found.notes)
    for name, folder in images.items():
        try:
            pairs = find_pairs(folder, root / "masks" / mask_folder_of.get(name, name))
        except DataError as error:
            found.problems.append(str(error))
            continue
        found.splits[name] = pairs.pairs
        found.problems.extend(pairs.problems)
        found.notes.merge(pairs.notes)
    found.problems.extend(
        f"{masks[name]}: expected the images of these masks in "
        f"{root / 'images' / name}. Received: no such folder"
        for name in sorted(masks.keys() - set(mask_folder_of.values()))
    )


def _split_folders(folder: Path, notes: Notes) -> dict[str, Path]:
    """Returns the folders of the splits by name; other contents are noted."""
    folders = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name.startswith("."):
            notes.add(HIDDEN_FOLDERS, path)
        elif path.is_dir():
            folders[path.name] = path
        elif path.name.startswith("._"):
            notes.add(MACOS_FILES, path)
        elif path.name.startswith("."):
            notes.add(HIDDEN_FILES, path)
        elif is_broken_link(path):
            notes.add(BROKEN_LINKS, path)
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            notes.add(OUTSIDE_SPLITS, path)
        else:
            notes.add(OTHER_NAMES, path)
    return folders


def _add_splits_of_lists(root: Path, lists: list[Path], found: Layout) -> None:
    images, masks = images_by_id(root / "images"), images_by_id(root / "masks")
    for listing in (images, masks):
        found.problems.extend(listing.problems)
        found.notes.merge(listing.notes)
    mask_of = match_names(images.files, masks.files, found.notes)
    composed: dict[str, list[str]] = {}
    for key in images.files:
        composed.setdefault(unicodedata.normalize("NFC", key), []).append(key)

    def key_of(entry: str) -> str | None:
        for name in (entry, entry.rpartition(".")[0]):
            alike = composed.get(unicodedata.normalize("NFC", name), [])
            if name in images.files:
                return name
            if len(alike) == 1:
                return alike[0]
        return None

    listed: set[str | None] = set()
    for path in lists:
        pairs: dict[str, Pair] = {}
        lines = read_bytes(path).decode("utf-8-sig", "replace").splitlines()
        for number, line in enumerate(lines, start=1):
            entry = line.strip().replace("\\", "/")
            if not entry:
                continue
            where = f"{path}, line {number}"
            key = key_of(entry)
            listed.add(key)
            if key is None:
                found.problems.append(
                    f"{where}: expected an image below {root / 'images'}. Received: {entry!r}"
                    f"{not_read_again(entry, root / 'images', images.notes)}"
                )
            elif key not in mask_of:
                found.problems.append(
                    f"{images.files[key]}: expected a file of the same name in {root / 'masks'}. "
                    "Received: an image without a label"
                    f"{not_read_again(key, root / 'masks', masks.notes)}"
                )
            elif key in pairs:
                found.problems.append(
                    f"{where}: expected each image once. Received: {entry!r} again"
                )
            else:
                mask = masks.files[mask_of[key]]
                pairs[key] = Pair(key, str(images.files[key]), str(mask))
        if not pairs:
            found.problems.append(
                f"{path}: expected the names of images. Received: none that is complete"
            )
        found.splits[path.stem] = tuple(pairs.values())
    for key in sorted(images.files.keys() - listed):
        found.notes.add(IN_NO_LIST, images.files[key])
    named = {split: {pair.id for pair in pairs} for split, pairs in found.splits.items()}
    for first, second in itertools.combinations(named, 2):
        if {first, second} not in ({"train", "trainval"}, {"val", "trainval"}):
            for key in sorted(named[first] & named[second]):
                kind = f"images in two lists, {first} and {second}"
                found.notes.add(kind, images.files[key])
