"""Resolves names of splits, including TFDS' notation for parts of one."""

import re
from collections.abc import Mapping

import tensorflow_datasets as tfds

from dilated_affinity.errors import ConfigError, did_you_mean


def split_parts(
    data_set: str, split: str, splits: Mapping[str, tfds.core.SplitInfo]
) -> list[tuple[str, int, int]]:
    """Resolves `"train"`, `"train[:10]"`, `"train[80%:]"` or `"train+val"`.

    Args:
        data_set: The name of the data set, for errors.
        split: A split or parts of splits.
        splits: The existing splits, `builder.info.splits`.

    Returns:
        For each part `(name, start, stop)`: examples `start` to `stop - 1` of split `name`.

    Raises:
        ConfigError: If there is no such split, or the notation is wrong.
    """
    for part in split.split("+"):
        name = re.sub(r"\[.*\]$", "", part.strip())
        if name not in splits:
            raise ConfigError(
                f"{data_set} has the splits {', '.join(splits)}.{did_you_mean(name, splits)} "
                f"Received: split={split!r}"
            )
    try:
        parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(splits)
    except (ValueError, AssertionError) as error:
        raise ConfigError(
            f"{data_set}: a part of a split is written like train[:10] or train[80%:]. "
            f"Received: split={split!r}"
        ) from error
    resolved = []
    for part in parts:
        # None for an open end.
        covered = range(splits[part.splitname].num_examples)[part.from_ : part.to]
        resolved.append((part.splitname, covered.start, covered.stop))
    return resolved
