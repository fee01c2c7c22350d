"""Prediction of the images of a folder or a data set into files."""

import collections
import dataclasses
import functools
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from dilated_affinity.datasets.classes import ClassTable
from dilated_affinity.datasets.files.images import IMAGE_SUFFIXES, read_bytes, read_image
from dilated_affinity.datasets.files.listing import list_images
from dilated_affinity.datasets.notes import Notes
from dilated_affinity.datasets.registry import Source
from dilated_affinity.errors import ConfigError, DataError, DilatedAffinityError
from dilated_affinity.inference.output_pictures import output_pictures
from dilated_affinity.inference.predictor import Predictor
from dilated_affinity.runtime.files import write_atomically
from dilated_affinity.runtime.progress import progress

_ALL_KINDS = (
    *("labels", "overlay", "affinity", "comparison", "errors"),
    *("confidence", "probabilities"),
)

_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


@dataclasses.dataclass
class PredictedFiles:
    """The files that a prediction wrote, and the images that it could not predict.

    Attributes:
        written: The paths of the label PNGs.
        kept: The paths of those that were complete before, with `resume=True`.
        failed: One line for each image that could not be predicted, with the reason.
        notes: Files that were skipped, or read otherwise than they are stored.
    """

    written: list[Path] = dataclasses.field(default_factory=list)
    kept: list[Path] = dataclasses.field(default_factory=list)
    failed: list[str] = dataclasses.field(default_factory=list)
    notes: Notes = dataclasses.field(default_factory=Notes)


class PredictionStoppedError(DilatedAffinityError):
    """A file could not be written, for example on a full disk, and the prediction ended there.

    Attributes:
        result: The `PredictedFiles` until then.
    """

    def __init__(self, message: str, result: PredictedFiles):
        super().__init__(message)
        self.result = result


class _Item(NamedTuple):
    """An image to predict: the prefix of its outputs' paths, a name, and a function to read it."""

    stem: Path
    name: str
    read: Callable[[], dict]


def predict_files(
    predictor: Predictor,
    classes: ClassTable,
    source: str | os.PathLike,
    output_dir: str | os.PathLike,
    overwrite=False,
    label_ids: Sequence[int] | None = None,
    resume=False,
    probabilities=False,
) -> PredictedFiles:
    """Predicts an image file, or every image in a folder and its sub-folders.

    For `a/b.jpg` it writes `a/b_labels.png` (palette PNG, the class is the index),
    `a/b_overlay.png` with a legend below it and, for a model with affinity, `a/b_affinity.png`
    below `output_dir`. A photograph with an EXIF orientation is rotated upright, and so are its
    outputs. Images that cannot be read, or need more memory than is available, are reported in
    `failed`, and the others are predicted.

    Args:
        predictor: `Predictor`.
        classes: Names and colours of the classes.
        source: An image file or a folder. Hidden files are passed over.
        output_dir: The folder to write to; made if missing.
        overwrite: Replace files that exist. Defaults to False.
        label_ids: The grey value of each class in the label PNGs, such as `CITYSCAPES_LABEL_IDS`
            for its test server. Defaults to None: a palette PNG of the classes.
        resume: Skip images whose outputs are all complete, of whatever model, and replace the
            outputs of the others. Defaults to False.
        probabilities: Also write `a/b_probabilities.npz`, whose array `probabilities` is float16
            (H, W, C), after refinement; and `a/b_confidence.png`, grey, 255 times the largest of
            them at each pixel. Defaults to False.

    Returns:
        `PredictedFiles`.

    Raises:
        DataError: If there is nothing to predict, outputs would be written outside `output_dir`,
            or a file exists and `overwrite` and `resume` are False. All of these are found before
            anything is written.
        ConfigError: If `output_dir` is inside `source` or cannot be a folder, or both `overwrite`
            and `resume` are True.
        PredictionStoppedError: If a file cannot be written, for example on a full disk.
    """
    result = PredictedFiles()
    items = [
        _Item(stem, str(path), functools.partial(_read_image, path, result.notes))
        for path, stem in _images(Path(source), Path(output_dir), result)
    ]
    options = _Options(Path(output_dir), overwrite, resume, label_ids, False, probabilities)
    return _write_predictions(predictor, classes, items, options, result)


def predict_examples(
    predictor: Predictor,
    source: Source,
    output_dir: str | os.PathLike,
    limit: int | None = None,
    overwrite=False,
    label_ids: Sequence[int] | None = None,
    resume=False,
    probabilities=False,
) -> PredictedFiles:
    """Predicts examples of a data set, whose labels are known.

    Writes the files of `predict_files`, and for each example `<id>_comparison.png`: image,
    prediction, affinity, refined prediction and ground truth side by side; and `<id>_errors.png`:
    the errors and, for a model with affinity, the pixels that refinement corrected and damaged.

    Args:
        predictor: `Predictor`.
        source: The examples.
        output_dir: The folder to write to; made if missing.
        limit: How many examples to take, from the first. Defaults to None: all.
        overwrite: As for `predict_files`.
        label_ids: As for `predict_files`.
        resume: As for `predict_files`.
        probabilities: As for `predict_files`.

    Returns:
        `PredictedFiles`.

    Raises:
        DataError: As `predict_files`.
        ConfigError: If `output_dir` cannot be a folder, or both `overwrite` and `resume` are True.
        PredictionStoppedError: As `predict_files`.
    """
    output_dir = Path(output_dir)
    items = [
        _Item(output_dir / name, name, functools.partial(source.__getitem__, index))
        for index, name in enumerate(source.ids[:limit])
    ]
    options = _Options(output_dir, overwrite, resume, label_ids, True, probabilities)
    return _write_predictions(predictor, source.classes, items, options, PredictedFiles())


def check_output_dir(output_dir: str | os.PathLike) -> None:
    """Checks that files can be written below a folder: that neither it nor a parent is a file.

    Raises:
        ConfigError: If one of them is a file, or a link that leads nowhere.
    """
    folder = Path(output_dir)
    for place in (folder, *folder.parents):
        if os.path.lexists(place):
            if not place.is_dir():
                kind = "is a file" if place.exists() else "is a link that leads nowhere"
                where = f"which {kind}" if place == folder else f"and {str(place)!r} {kind}"
                raise ConfigError(
                    "output_dir must be a folder, which is made if missing. "
                    f"Received: output_dir={str(folder)!r}, {where}"
                )
            return


class _Options(NamedTuple):
    """Options of writing, see `predict_files`; `has_labels` tells if the ground truth is known."""

    output_dir: Path
    overwrite: bool
    resume: bool
    label_ids: Sequence[int] | None
    has_labels: bool
    probabilities: bool


def _read_image(path, notes):
    image, remarks = read_image(read_bytes(path), str(path))
    for remark in remarks:
        notes.add(remark, path)
    return {"image": image}


def _write_predictions(predictor, classes, items, options, result):
    kinds = _kinds(predictor, options)
    items = _to_do(items, kinds, options, result)
    for item, example, prediction in _predictions(predictor, items, result.failed):
        pictures = output_pictures(prediction, predictor.rates, classes, example, options.label_ids)
        for kind in kinds:
            write = (
                functools.partial(_save_probabilities, prediction.probabilities)
                if kind == "probabilities"
                else pictures[kind].save
            )
            target = _target(item.stem, kind)
            try:
                write_atomically(target, write)
            except OSError as error:
                raise _stopped(target, error, options, result) from error
        result.written.append(_target(item.stem, "labels"))
    return result


def _stopped(target, error, options, result):
    reason = error.strerror or error
    if isinstance(error, FileExistsError):
        reason = f"{target.parent} is not a folder"
    count = len(result.written)
    # With --resume, what another model predicted before would stay.
    remedy = "starts again" if options.overwrite else "and --resume continues"
    return PredictionStoppedError(
        f"{target}: cannot be written ({reason}). Predicted {count} image"
        f"{'s' if count != 1 else ''} before it; the same command {remedy}.",
        result,
    )


def _kinds(predictor, options):
    """The files of each image; the labels last, so that they mark a complete prediction."""
    kinds = ["overlay"]
    if predictor.rates is not None:
        kinds.append("affinity")
    if options.probabilities:
        kinds += ["confidence", "probabilities"]
    if options.has_labels:
        kinds += ["comparison", "errors"]
    return [*kinds, "labels"]


def _to_do(items, kinds, options, result):
    """The items to predict; raises an error before a file would be overwritten or misplaced."""
    check_output_dir(options.output_dir)
    if options.overwrite and options.resume:
        raise ConfigError(
            "overwrite replaces predictions and resume (--resume) keeps them: give one of them. "
            "Received: overwrite=True, resume=True"
        )
    taken = {}
    to_do = []
    inside = options.output_dir.resolve()
    for item in items:
        # A name with dots or a linked folder may lead outside.
        if not item.stem.resolve().is_relative_to(inside):
            raise DataError(
                f"{item.name!r}: would be written outside {options.output_dir}, "
                f"to {item.stem.resolve()}."
            )
        if item.stem in taken:
            result.failed.append(
                f"{item.name}: would be written to the same files as {taken[item.stem]}"
            )
            continue
        taken[item.stem] = item.name
        if options.resume and all(_is_whole(_target(item.stem, kind)) for kind in kinds):
            result.kept.append(_target(item.stem, "labels"))
            continue
        to_do.append(item)
        for kind in () if options.resume or options.overwrite else _ALL_KINDS:
            target = _target(item.stem, kind)
            if target.exists():
                raise DataError(
                    f"{target}: exists already; overwrite=True (--overwrite) replaces it, "
                    "resume=True (--resume) skips complete predictions."
                )
    return to_do


def _is_whole(path):
    """Whether a PNG exists up to its last chunk, or an archive of arrays up to its directory."""
    if path.suffix == ".npz":
        return zipfile.is_zipfile(path)
    try:
        with open(path, "rb") as file:
            file.seek(-len(_PNG_END), os.SEEK_END)
            return file.read() == _PNG_END
    except OSError:
        # The file is missing, or shorter than that.
        return False


def _predictions(predictor, items, failed):
    """Yields each item that can be predicted, its example and its `Prediction`, in order."""
    pending = iter(progress(items, "prediction"))
    # Read while earlier images are refined: a predictor may work on several at once.
    waiting = collections.deque()

    def images():
        for item in pending:
            try:
                example = item.read()
            except DataError as error:
                failed.append(str(error))
                continue
            waiting.append((item, example))
            yield example["image"]

    while True:
        try:
            for prediction in predictor.map(images()):
                yield *waiting.popleft(), prediction
            return
        except Exception as error:
            if not _is_out_of_memory(error):
                raise
        # One of the images in progress is too large: predict them one by one to find it.
        while waiting:
            item, example = waiting.popleft()
            try:
                prediction = predictor(example["image"])
            except Exception as error:
                if not _is_out_of_memory(error):
                    raise
                height, width = example["image"].shape[:2]
                failed.append(
                    f"{item.name}: needs more memory than is available; windows (--eval_window) "
                    f"need less. Received: {width}x{height} pixels"
                )
            else:
                yield item, example, prediction


def _is_out_of_memory(error):
    # JAX has no exception class for it.
    kinds = MemoryError, tf.errors.ResourceExhaustedError
    return isinstance(error, kinds) or "RESOURCE_EXHAUSTED" in str(error)


def _save_probabilities(probabilities, path):
    np.savez_compressed(path, probabilities=probabilities.astype(np.float16))


def _target(stem: Path, kind) -> Path:
    suffix = "npz" if kind == "probabilities" else "png"
    return stem.with_name(f"{stem.name}_{kind}.{suffix}")


def _images(source, output_dir, result) -> list[tuple[Path, Path]]:
    """Pairs of an image file and the prefix of its outputs' paths."""
    if source.is_file():
        return [(source, output_dir / source.stem)]
    if not source.is_dir():
        raise DataError(f"{source}: no such file or folder.")
    resolved = output_dir.resolve()
    if resolved.is_relative_to(source.resolve()):
        raise ConfigError(
            "output_dir must not be inside the input folder, whose images are predicted. "
            f"Received: output_dir={str(output_dir)!r}, input={str(source)!r}"
        )
    found = list_images(source)
    result.notes.merge(found.notes)
    result.failed += found.problems
    if not found.images:
        passed = "".join(f"; {line}" for line in (*found.problems, *found.notes.lines()))
        raise DataError(f"{source}: no image in this folder ({', '.join(IMAGE_SUFFIXES)}){passed}.")
    return [(path, output_dir / path.relative_to(source).with_suffix("")) for path in found.images]
