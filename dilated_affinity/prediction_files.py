"""Predicting the images of a folder or of a data set into files."""

import collections
import functools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dilated_affinity.datasets.classes import ClassTable
from dilated_affinity.datasets.image_files import IMAGE_SUFFIXES, decode_image, read_bytes
from dilated_affinity.datasets.loading import Source
from dilated_affinity.errors import ConfigError, DataError
from dilated_affinity.files import write_atomically
from dilated_affinity.inference import Predictor
from dilated_affinity.progress import progress
from dilated_affinity.visualization import (
    affinity_picture,
    comparison,
    error_picture,
    overlay,
    overlay_entries,
    with_legend,
)


def predict_files(
    predictor: Predictor,
    classes: ClassTable,
    source: str | os.PathLike,
    output_dir: str | os.PathLike,
    overwrite=False,
    label_ids: Sequence[int] | None = None,
) -> list[Path]:
    """Predicts an image file, or every image in a folder and its sub-folders.

    For `a/b.jpg` it writes `a/b_labels.png` (palette PNG, the class is the index),
    `a/b_overlay.png` with a legend below it and, for a model with affinity, `a/b_affinity.png`
    below `output_dir`.

    Args:
        predictor: What predicts.
        classes: Names and colours of the classes.
        source: An image file or a folder.
        output_dir: Where to write; made if missing.
        overwrite: Replace files that exist. Defaults to False.
        label_ids: What to write for each class in the label PNGs, which are grey then, such as
            `CITYSCAPES_LABEL_IDS` for its test server. None writes the classes themselves.

    Returns:
        The paths of the label PNGs.

    Raises:
        DataError: If there is nothing to predict, an image cannot be read, two images would
            write the same file or outside `output_dir`, or a file exists and `overwrite` is False.
            All but the reading is found before anything is written.
    """
    items = [
        (stem, str(path), functools.partial(_read_image, path))
        for path, stem in _images(Path(source), Path(output_dir))
    ]
    return _write_predictions(predictor, classes, items, output_dir, overwrite, label_ids)


def predict_examples(
    predictor: Predictor,
    source: Source,
    output_dir: str | os.PathLike,
    limit: int | None = None,
    overwrite=False,
    label_ids: Sequence[int] | None = None,
) -> list[Path]:
    """Predicts examples of a data set, whose labels are known.

    Writes what `predict_files` writes, and, for each, `<id>_comparison.png`: image, prediction,
    affinity, refined prediction and ground truth side by side; and `<id>_errors.png`: what is
    wrong and, for a model with affinity, what refinement has repaired and harmed.

    Args:
        predictor: What predicts.
        source: The examples.
        output_dir: Where to write; made if missing.
        limit: How many examples, from the first on; None for all.
        overwrite: As for `predict_files`.
        label_ids: As for `predict_files`.

    Returns:
        The paths of the label PNGs.

    Raises:
        DataError: As `predict_files`.
    """
    output_dir = Path(output_dir)
    items = [
        (output_dir / name, name, functools.partial(source.__getitem__, index))
        for index, name in enumerate(source.ids[:limit])
    ]
    return _write_predictions(predictor, source.classes, items, output_dir, overwrite, label_ids)


def _read_image(path):
    return {"image": decode_image(read_bytes(path), str(path))}


def _write_predictions(predictor, classes, items, output_dir, overwrite, label_ids):
    """Predicts items, each the beginning of its outputs' paths, a name, and how to read it."""
    taken = {}
    inside = Path(output_dir).resolve()
    for stem, name, _ in items:
        # Through a name with dots or a linked folder.
        if not stem.resolve().is_relative_to(inside):
            raise DataError(
                f"{name!r}: would be written outside {output_dir}, to {stem.resolve()}."
            )
        if stem in taken:
            raise DataError(f"{name} and {taken[stem]} would be written to the same files.")
        taken[stem] = name
        for kind in ("labels", "overlay", "affinity", "comparison", "errors"):
            target = _target(stem, kind)
            if target.exists() and not overwrite:
                raise DataError(
                    f"{target}: exists already; only overwrite=True (--overwrite) replaces it."
                )
    # Read while earlier ones are refined: a predictor may work on several at once.
    waiting = collections.deque()

    def images():
        for _, _, read in progress(items, "prediction"):
            waiting.append(read())
            yield waiting[-1]["image"]

    written = []
    for (stem, _, _), prediction in zip(items, predictor.map(images()), strict=True):
        pictures = _pictures(prediction, predictor.rates, classes, waiting.popleft(), label_ids)
        for kind, picture in pictures.items():
            write_atomically(_target(stem, kind), picture.save)
        written.append(_target(stem, "labels"))
    return written


def _pictures(prediction, rates, classes, example, label_ids):
    labels = (
        palette_image(prediction.labels, classes)
        if label_ids is None
        else label_id_image(prediction.labels, label_ids)
    )
    entries = overlay_entries(prediction.labels, classes)
    colored = overlay(example["image"], prediction.labels, classes)
    arrays = {"overlay": with_legend(colored, entries)}
    if prediction.affinity is not None:
        arrays["affinity"] = affinity_picture(prediction.affinity, rates)
    if "label" in example:
        arrays["comparison"] = comparison(example, prediction, rates, classes)
        arrays["errors"] = error_picture(example["label"], prediction, classes.ignore_label)
    return {"labels": labels, **{kind: Image.fromarray(array) for kind, array in arrays.items()}}


def palette_image(labels, classes: ClassTable) -> Image.Image:
    """A palette image whose indices are the labels, uint8 (H, W), in the data set's colours."""
    image = Image.frombytes("P", labels.shape[::-1], labels.tobytes())
    image.putpalette(classes.color_map().ravel().tolist())
    return image


def label_id_image(labels, label_ids: Sequence[int]) -> Image.Image:
    """A grey image of the ids that a data set's own label files have.

    Args:
        labels: Classes, uint8 (H, W).
        label_ids: The id of each class, 0 to 255.

    Example:

    >>> from dilated_affinity.datasets.classes import CITYSCAPES_LABEL_IDS
    >>> image = label_id_image(np.array([[0, 18]], np.uint8), CITYSCAPES_LABEL_IDS)
    >>> image.mode, np.asarray(image).tolist()
    ('L', [[7, 33]])
    """
    return Image.fromarray(np.array(label_ids, np.uint8)[labels])


def _target(stem: Path, kind) -> Path:
    return stem.with_name(f"{stem.name}_{kind}.png")


def _images(source, output_dir) -> list[tuple[Path, Path]]:
    """Pairs of image file and the path its outputs' names begin with."""
    if source.is_file():
        return [(source, output_dir / source.stem)]
    if not source.is_dir():
        raise DataError(f"{source}: no such file or folder.")
    resolved = output_dir.resolve()
    if resolved.is_relative_to(source.resolve()):
        raise ConfigError(
            "output_dir must not lie inside the input folder, whose images are predicted. "
            f"Received: output_dir={str(output_dir)!r}, input={str(source)!r}"
        )
    paths = sorted(
        path
        for path in source.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    )
    if not paths:
        raise DataError(f"{source}: no image in this folder ({', '.join(IMAGE_SUFFIXES)}).")
    return [(path, output_dir / path.relative_to(source).with_suffix("")) for path in paths]
