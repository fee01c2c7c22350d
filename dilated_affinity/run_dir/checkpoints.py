"""Checkpoints that survive kills, full disks and bad sectors: several files with checksums.

A checkpoint is a `.keras` file that Keras itself can load: the model with its optimizer. It has
one more member, `training.json`, with the rest of what a run needs to continue; and the comment of
the archive, at its end, is the SHA-256 of all bytes before. It is one file, so that a single rename
makes all of it appear at once. Saving is synchronous: `fit` waits until the file is on disk.

Existing checkpoint managers were not enough:

- `tf.train.CheckpointManager` keeps the last N, but writes a checkpoint as several files, flushes
  none of them to disk, notices damage only while it restores, and supports no other backend.
- `keras.callbacks.BackupAndRestore` overwrites weights and counters in place, one after the other,
  and restores to whole epochs.
- `keras.callbacks.OrbaxCheckpoint` and orbax-checkpoint rename finished folders into place and keep
  the last N, but do not flush a checkpoint's files first, have no checksum over them, and would
  make JAX a requirement under TensorFlow.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
import zipfile
from pathlib import Path

import keras
from absl import logging

from dilated_affinity.errors import DataError, RunError, first_line
from dilated_affinity.runtime.files import write_atomically

_STATE = "training.json"
_DIGEST = hashlib.sha256().digest_size * 2
_MARK = b"sha256:"
_NAME = re.compile(r"step-(\d{8,})\.keras")
_MOST_STATE = 2**26


@dataclasses.dataclass
class TrainingState:
    """The state of a run beside that of its model and optimizer.

    Attributes:
        step: Steps done.
        batches: Batches drawn from the data; more than `step` if float16 has skipped steps.
        metrics: In the middle of an epoch, `{"replicas": [its value on each replica]}` for each
            variable of the metrics; between epochs empty.
        rows: The rows of the log. A row without `val_mean_iou` is still to be validated.
        skipped_steps: Number of steps skipped because their loss or gradients were not finite.
        skipped_examples: Why each skipped example was skipped, by its index as text.
    """

    step: int = 0
    batches: int = 0
    metrics: list = dataclasses.field(default_factory=list)
    rows: list[dict] = dataclasses.field(default_factory=list)
    skipped_steps: int = 0
    skipped_examples: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def best(self) -> float | None:
        """The best validation mIoU so far; None before the first."""
        values = [row["val_mean_iou"] for row in self.rows if "val_mean_iou" in row]
        return max((value for value in values if not math.isnan(value)), default=None)

    @property
    def validations_since_best(self) -> int:
        """Number of validations since the best one."""
        values = [row["val_mean_iou"] for row in self.rows if "val_mean_iou" in row]
        best, since = -math.inf, 0
        for value in values:
            since = 0 if value > best else since + 1
            best = max(best, value) if not math.isnan(value) else best
        return since

    @classmethod
    def from_json(cls, content):
        """Builds the state from parsed JSON; raises `ValueError` if that is not a state."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        if not isinstance(content, dict) or set(content) != set(fields):
            raise ValueError("its entries are not those of the state of a run")
        state = cls(**content)
        for name in ("step", "batches", "skipped_steps"):
            value = content[name]
            if type(value) is not int or not 0 <= value < 2**53:
                raise ValueError(f"{name} is not a number of steps: {value!r}"[:200])
        for name, kind in (("metrics", list), ("rows", list), ("skipped_examples", dict)):
            if not isinstance(content[name], kind):
                raise ValueError(f"{name} is not a {kind.__name__}")
        for row in state.rows:
            if not isinstance(row, dict) or not all(map(_is_number, row.values())):
                raise ValueError("a row of the log holds values that are not numbers")
        if not all(isinstance(reason, str) for reason in state.skipped_examples.values()):
            raise ValueError("skipped_examples holds values that are not text")
        return state


def write_checkpoint(path: str | os.PathLike, model: keras.Model, state: TrainingState):
    """Writes a checkpoint atomically.

    Args:
        path: The file, ending in `.keras`.
        model: The model, with its optimizer if it has been compiled.
        state: The state of the run.

    Raises:
        RunError: If it cannot be written, as on a full disk; an earlier file at `path` is
            unchanged.
    """

    def write(aside):
        model.save(aside)
        with zipfile.ZipFile(aside, "a") as archive:
            archive.writestr(_STATE, json.dumps(dataclasses.asdict(state)))
            archive.comment = _MARK + b"0" * _DIGEST
        with open(aside, "r+b") as file:
            digest = _digest(file, os.path.getsize(aside) - _DIGEST)
            file.seek(-_DIGEST, os.SEEK_END)
            file.write(digest)

    try:
        write_atomically(path, write)
    except Exception as error:  # whatever Keras, zipfile and HDF5 raise on a full disk
        cause = _os_error(error)
        if cause is None:
            raise
        raise RunError(
            f"{path}: the checkpoint cannot be written: {cause.strerror or cause}. Training "
            "stopped; earlier checkpoints, if any, are unchanged."
        ) from error


def read_state(path: str | os.PathLike) -> TrainingState:
    """Checks every byte of a checkpoint and returns its `TrainingState`.

    Raises:
        DataError: If the file is missing or damaged, or is not a checkpoint.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= len(_MARK) + _DIGEST:
                raise DataError(f"{path}: the checkpoint is cut off. Received: {size} bytes")
            file.seek(-len(_MARK) - _DIGEST, os.SEEK_END)
            if file.read(len(_MARK)) != _MARK:
                raise DataError(
                    f"{path}: the checkpoint is cut off or damaged. "
                    f"Received: {size} bytes that do not end in their checksum"
                )
            expected = file.read(_DIGEST)
            if _digest(file, size - _DIGEST) != expected:
                raise DataError(
                    f"{path}: the checkpoint is damaged. "
                    f"Received: {size} bytes that do not have the checksum at their end"
                )
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(_STATE).file_size > _MOST_STATE:
                raise ValueError(f"{_STATE} is too large")
            return TrainingState.from_json(json.loads(archive.read(_STATE)))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, RecursionError, NotImplementedError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a checkpoint of a run: {first_line(error)}") from error


def _is_number(value):
    return type(value) is float or (type(value) is int and abs(value) < 2**53)


class Checkpoints:
    """The newest checkpoints of a run, in a folder of their own.

    Args:
        folder: The folder; made when the first is written.
        keep: Number of checkpoints to keep.
    """

    def __init__(self, folder: str | os.PathLike, keep=3):
        self._folder = Path(folder)
        self._keep = keep

    def paths(self) -> list[Path]:
        """Returns all checkpoints, including damaged ones, the newest last."""
        found = [path for path in self._folder.glob("step-*.keras") if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: int(_NAME.fullmatch(path.name)[1]))

    def latest(self) -> Path | None:
        """Returns the newest undamaged checkpoint; None if there are no checkpoints.

        Newer ones that are damaged are named in a warning and renamed, so that they are ignored
        from then on, but not lost.

        Raises:
            RunError: If all checkpoints are damaged.
        """
        paths = self.paths()
        damaged = []
        for path in reversed(paths):
            try:
                read_state(path)
            except DataError as error:
                damaged.append((path, error))
                continue
            for other, error in damaged:
                _set_aside(other, error, path)
            return path
        if damaged:
            path, error = damaged[0]
            others = f", nor any of the {len(damaged) - 1} before it" if len(damaged) > 1 else ""
            raise RunError(
                f"{error}. It cannot be continued from{others}; remove {self._folder} to start "
                "again from the first step."
            )
        return None

    def write(self, model: keras.Model, state: TrainingState) -> Path:
        """Writes the checkpoint of `state.step` and removes the oldest beyond `keep`.

        Raises:
            RunError: If it cannot be written; earlier ones are unchanged.
        """
        path = self._folder / f"step-{state.step:08d}.keras"
        write_checkpoint(path, model, state)
        for old in self.paths()[: -self._keep]:
            # One that cannot be removed costs space, but must not end the run.
            with contextlib.suppress(OSError):
                old.unlink()
        return path


def _set_aside(path, error, used):
    kept = path.with_name(f"{path.name}.damaged")
    try:
        path.replace(kept)
    except OSError as failure:
        raise RunError(
            f"{path}: a damaged checkpoint cannot be renamed: {failure.strerror}"
        ) from failure
    logging.warning("%s. Using %s; the damaged file is now %s.", error, used.name, kept.name)


def _digest(file, size):
    """Returns the SHA-256 of the first `size` bytes of a file, as hexadecimal bytes."""
    digest = hashlib.sha256()
    file.seek(0)
    while size > 0 and (block := file.read(min(size, 2**20))):
        digest.update(block)
        size -= len(block)
    return digest.hexdigest().encode()


def _os_error(error):
    """Returns the `OSError` in the chain of causes of an error; None if there is none."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error
