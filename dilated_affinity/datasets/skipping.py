"""Skips a few examples that cannot be used instead of stopping a training."""

from collections.abc import Sequence

import numpy as np
from absl import logging

from dilated_affinity.datasets.classes import IGNORE_LABEL
from dilated_affinity.errors import DataError, printable

TOLERATED = 0.01
"""The largest share of a split that may be skipped."""


class SkippingSource(Sequence):
    """A `Source` that replaces each example that cannot be used by the next one that can.

    The replacement depends on the files only, so that a resumed run sees the same examples. A
    warning is logged once for each bad example.

    Args:
        source: See `dilated_affinity.datasets.registry.Source`.

    Attributes:
        skipped: The reason for each bad example found so far, by its index as text.

    Raises:
        DataError: From `source[i]`, once more than 1 % of the examples have been skipped.
    """

    def __init__(self, source):
        self._source = source
        self.skipped: dict[str, str] = {}

    @property
    def classes(self):
        """The class table."""
        return self._source.classes

    @property
    def ids(self):
        """The id of every example, including bad ones."""
        return self._source.ids

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict:
        index = range(len(self))[index]
        # Terminates, since `_skip` raises long before all examples are bad.
        while (example := self._read(index)) is None:
            index = (index + 1) % len(self)
        return example

    def label(self, index: int) -> np.ndarray:
        """The label of an example; for a bad one a label of only void."""
        example = self._read(range(len(self))[index])
        return np.full((1, 1), IGNORE_LABEL, np.uint8) if example is None else example["label"]

    def _read(self, index):
        if str(index) in self.skipped:
            return None
        try:
            return self._source[index]
        except DataError as error:
            self._skip(index, str(error))
            return None

    def _skip(self, index, reason):
        # Several threads may read the same example; they store the same reason.
        if self.skipped.setdefault(str(index), reason) is reason:
            logging.warning("skipped: %s", printable(reason))
        count, size = len(self.skipped), len(self)
        if count > TOLERATED * size:
            raise DataError(
                f"{count} of {size} training examples cannot be used, more than "
                f"{TOLERATED:.0%}. Received last: {reason}"
            )
