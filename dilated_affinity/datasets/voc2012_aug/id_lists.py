"""Derives the splits of PASCAL VOC 2012 with SBD's masks by set operations on ids."""

import re
from collections.abc import Collection, Mapping

from absl import logging

from dilated_affinity.errors import DataError

SPLITS = ("train", "trainaug", "val", "trainval")

# The sizes of the official lists, and of trainaug from these and all of SBD.
FULL_TRAIN, FULL_VAL, FULL_TRAINAUG = 1_464, 1_449, 10_582


def parse_ids(data: bytes, name: str) -> tuple[str, ...]:
    """Reads a list file of one id per line.

    Args:
        data: The contents of the file. Empty lines are ignored.
        name: Name of the file in errors.

    Returns:
        The ids, in the order of the file.

    Raises:
        DataError: If a line is not an id, or an id occurs twice.
    """
    ids: dict[str, int] = {}
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), start=1):
        line = line.strip()
        if not line:
            continue
        # Ids become parts of paths.
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", line):
            raise DataError(
                f"{name}, line {number}: expected an id such as 2007_000032. Received: {line!r}"
            )
        if line in ids:
            raise DataError(
                f"{name}, line {number}: expected each id once. "
                f"Received: {line!r}, which is in line {ids[line]} too"
            )
        ids[line] = number
    return tuple(ids)


def derive_splits(
    official: Mapping[str, tuple[str, ...]], sbd: Collection[str] | None, name: str
) -> dict[str, tuple[str, ...]]:
    """Returns the ids of every split.

    trainaug contains the ids labelled by SBD or VOC's train, without those of VOC's val. The full
    lists are recognised by their sizes; they must then give 10,582 ids, since results with fewer
    would not be comparable.

    Args:
        official: The ids in VOC's lists `train`, `val` and `trainval`, as far as these exist.
        sbd: The ids labelled by SBD, or `None` without SBD.
        name: Name of the data set in errors and log messages.

    Returns:
        The ids of the splits that can be derived. Without SBD, trainaug equals train if the lists
        are not the full ones, and is left out if they are.

    Raises:
        DataError: If there is no list, train and val overlap, or full lists give another number.
    """
    if not official:
        raise DataError(
            f"{name}: expected the lists train.txt and val.txt in ImageSets/Segmentation. "
            "Received: neither of them"
        )
    train, val = official.get("train", ()), official.get("val", ())
    both = sorted(set(train) & set(val))
    if both:
        raise DataError(
            f"{name}: train.txt and val.txt must not overlap. "
            f"Received: {len(both)} ids in both, {both[0]} among them"
        )
    splits = {split: ids for split, ids in official.items() if ids}
    if train and val:
        splits.setdefault("trainval", tuple(sorted({*train, *val})))
    full = len(train) == FULL_TRAIN and len(val) == FULL_VAL
    trainaug = tuple(sorted({*(sbd or ()), *train} - set(val)))
    if full and sbd is None:
        logging.warning("%s: there is no trainaug, since SBD's masks are missing", name)
    elif full and len(trainaug) != FULL_TRAINAUG:
        raise DataError(
            f"{name}: VOC's full lists and all of SBD make {FULL_TRAINAUG} images of trainaug. "
            f"Received: {len(trainaug)}, from {len(sbd)} ids of SBD"
        )
    elif trainaug:
        splits["trainaug"] = trainaug
    logging.info(
        "%s: %s set with %s; %s",
        name,
        "the full" if full else "a partial",
        ", ".join(f"{len(splits[split])} images of {split}" for split in SPLITS if split in splits),
        "nothing of SBD" if sbd is None else f"{len(sbd)} ids of SBD",
    )
    return {split: splits[split] for split in SPLITS if split in splits}
