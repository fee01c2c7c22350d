"""Checkpoints that survive kills, full disks and bad sectors: several, each one checked file.

A checkpoint is a `.keras` file that Keras itself can load: the model with its optimizer. It has
one more member, `training.json`, with all else that a run needs to go on, and ends, as the comment
of the archive, in the SHA-256 of every byte before. One file, because one rename then makes it
appear with everything that belongs to it. Saving is synchronous: `fit` waits until the file is on
disk.

Why the format is Keras' and the mechanics of the file are ours:

- `tf.train.CheckpointManager` keeps the last N, but writes a checkpoint as several files, flushes
  none of them to disk, notices damage only while it restores, and knows no other backend.
- `keras.callbacks.BackupAndRestore` overwrites weights and counters in place, one after the other,
  and restores to whole epochs.
- `keras.callbacks.OrbaxCheckpoint` and orbax-checkpoint rename finished folders into place and keep
  the last N, but do not flush a checkpoint's files before they do, have no checksum over them, and
  would make JAX a requirement under TensorFlow.
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
    """Where a run stands, beside what its model and optimizer hold.

    Attributes:
        step: Steps done.
        batches: Batches drawn from the data; more than `step` where float16 left out steps.
        metrics: Of each variable of the metrics `{"replicas": its value on each}` in the middle of
            an epoch; empty between epochs.
        rows: The rows of the log. One that has no `val_mean_iou` yet awaits validation.
        skipped_steps: Steps left out because their loss or gradients were not finite.
        skipped_examples: Why each example left out was left out, by what names it.
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
        """Validations in a row, up to now, that were not better than the best before them."""
        values = [row["val_mean_iou"] for row in self.rows if "val_mean_iou" in row]
        best, since = -math.inf, 0
        for value in values:
            since = 0 if value > best else since + 1
            best = max(best, value) if not math.isnan(value) else best
        return since

    @classmethod
    def from_json(cls, content):
        """The state of parsed JSON; raises `ValueError` where it is none."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        if not isinstance(content, dict) or set(content) != set(fields):
            raise ValueError("it has other entries than the state of a run")
        state = cls(**content)
        for name in ("step", "batches", "skipped_steps"):
            value = content[name]
            if type(value) is not int or not 0 <= value < 2**53:
                raise ValueError(f"{name} is no number of steps: {value!r}"[:200])
        for name, kind in (("metrics", list), ("rows", list), ("skipped_examples", dict)):
            if not isinstance(content[name], kind):
                raise ValueError(f"{name} is no {kind.__name__}")
        for row in state.rows:
            if not isinstance(row, dict) or not all(map(_is_number, row.values())):
                raise ValueError("a row of the log holds something else than numbers")
        if not all(isinstance(reason, str) for reason in state.skipped_examples.values()):
            raise ValueError("skipped_examples holds something else than reasons")
        return state


def write_checkpoint(path: str | os.PathLike, model: keras.Model, state: TrainingState):
    """Writes a checkpoint, whole or not at all.

    Args:
        path: The file, ending in `.keras`.
        model: The model, with its optimizer if it has been compiled.
        state: What else to keep.

    Raises:
        RunError: It cannot be written, as on a full disk; an earlier file at `path` is as before.
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
    except Exception as error:  # what a full disk makes Keras, zipfile and HDF5 raise
        cause = _os_error(error)
        if cause is None:
            raise
        raise RunError(
            f"{path}: the checkpoint cannot be written: {cause.strerror or cause}. Training "
            "stopped; earlier checkpoints, if any, are as they were."
        ) from error


def read_state(path: str | os.PathLike) -> TrainingState:
    """Checks every byte of a checkpoint and returns its `TrainingState`.

    Raises:
        DataError: The file is missing or damaged, or is no checkpoint.
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
        keep: How many to keep.
    """

    def __init__(self, folder: str | os.PathLike, keep=3):
        self._folder = Path(folder)
        self._keep = keep

    def paths(self) -> list[Path]:
        """All checkpoints, damaged ones too, the newest last."""
        found = [path for path in self._folder.glob("step-*.keras") if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: int(_NAME.fullmatch(path.name)[1]))

    def latest(self) -> Path | None:
        """The newest checkpoint that is whole; None where there is none at all.

        Damaged ones after it are named in a warning and renamed, so that they neither count nor
        are lost.

        Raises:
            RunError: All that there are are damaged.
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
        """Writes the checkpoint of `state.step` and removes those too old to be kept.

        Raises:
            RunError: It cannot be written; those before it are as they were.
        """
        path = self._folder / f"step-{state.step:08d}.keras"
        write_checkpoint(path, model, state)
        for old in self.paths()[: -self._keep]:
            # One that stays costs space, not the run.
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
    """SHA-256, in hexadecimal bytes, of the first `size` bytes of a file."""
    digest = hashlib.sha256()
    file.seek(0)
    while size > 0 and (block := file.read(min(size, 2**20))):
        digest.update(block)
        size -= len(block)
    return digest.hexdigest().encode()


def _os_error(error):
    """The `OSError` in the chain of what led to an error; None without one."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error
