"""Weights of the classes in the semantic loss: none, balanced, or from a file."""

import json
import os
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from absl import logging

from dilated_affinity.config import Config
from dilated_affinity.datasets.classes import ClassTable
from dilated_affinity.datasets.registry import Source, label_readers
from dilated_affinity.errors import ConfigError, DataError, first_line
from dilated_affinity.run_dir.layout import CLASS_WEIGHTS_FILE, has_trained
from dilated_affinity.runtime.distribution import broadcast
from dilated_affinity.runtime.files import write_atomically
from dilated_affinity.runtime.progress import progress
from dilated_affinity.training.losses import check_class_weights


def count_class_pixels(source: Source) -> np.ndarray:
    """Returns the number of pixels of each class over the labels of a split, int64 (C,)."""

    def count(read):
        return np.bincount(read().ravel(), minlength=256)[: source.classes.num_classes]

    readers = label_readers(source)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        counts = progress(threads.map(count, readers), "class weights", len(readers))
        return sum(counts, np.zeros(source.classes.num_classes, np.int64))


def balanced_weights(pixels) -> np.ndarray:
    """Returns weights with which each class that occurs has the same total over all pixels.

    They are inversely proportional to the classes' pixels, N / (C * n_c) as in scikit-learn, where
    N is the number of all pixels, C that of the classes that occur, and n_c that of the pixels of
    class c. Their mean over the pixels is 1. A class that does not occur has weight 0.

    Args:
        pixels: Number of pixels of each class, integers (C,).

    Returns:
        float64 array (C,).

    Raises:
        DataError: If there are no pixels.

    Example:

    >>> balanced_weights([30, 10, 0]).round(3).tolist()
    [0.667, 2.0, 0.0]
    """
    pixels = np.asarray(pixels, np.float64)
    if not pixels.any():
        raise DataError("Balanced class weights need at least one pixel that is not void.")
    occurs = pixels > 0
    return np.where(occurs, pixels.sum() / (occurs.sum() * np.maximum(pixels, 1)), 0.0)


def read_class_weights(path: str | os.PathLike, classes: ClassTable) -> list[float]:
    """Reads the weights of classes from a JSON file.

    Args:
        path: A file with an object of weights by class name, or with a list of weights in the
            order of the classes.
        classes: The classes.

    Returns:
        A weight, at least 0, for each class in order.

    Raises:
        DataError: If the file cannot be read, names other classes, or contains anything but
            numbers of at least 0, one of them above 0.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_by_name)
    except OSError as error:
        raise DataError(f"{path}: cannot read class weights: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: class weights must be JSON: {first_line(error)}") from None
    except ConfigError as error:
        raise DataError(f"{path}: {error}") from None
    if isinstance(content, dict):
        names = [_composed(name) for name in classes.names]
        if content.keys() != set(names):
            missing = sorted(set(names) - content.keys())
            others = sorted(content.keys() - set(names))
            raise DataError(
                f"{path}: class weights must name each class once. "
                f"Received: no weight for {missing}, and weights for unknown classes {others}"
            )
        content = [content[name] for name in names]
    try:
        return list(check_class_weights(content, classes.num_classes))
    except ConfigError as error:
        raise DataError(f"{path}: {error}") from None


def _by_name(pairs):
    content = {_composed(name): value for name, value in pairs}
    if len(content) < len(pairs):
        raise ConfigError(
            "class weights must name each class once. "
            f"Received: {', '.join(name for name, _ in pairs)}"
        )
    return content


def _composed(name):
    """The name with accents as part of their letters, which macOS separates."""
    return unicodedata.normalize("NFC", name)


def check_classes_occur(config: Config, source: Source):
    """Raises `DataError` if a file of weights has only classes above 0 that no label contains."""
    if config.class_weights in ("none", "balanced"):
        return
    weights = read_class_weights(config.class_weights, source.classes)
    counted = np.flatnonzero(weights)
    if not any(np.isin(read(), counted).any() for read in label_readers(source)):
        names = ", ".join(source.classes.names[index] for index in counted)
        raise DataError(
            f"{config.class_weights}: a class with a weight above 0 must occur in "
            f"{config.train_split}, or the loss is always 0. Received: weights for {names} alone"
        )


def run_class_weights(config: Config, source: Source, model_dir: Path) -> list[float] | None:
    """Returns the class weights of a run, or None for a run without.

    They come from its folder, or for a new run from its settings, and are then saved there. With
    several processes the first one reads, counts and writes.

    Raises:
        DataError: If the file or a label cannot be read.
    """
    if config.class_weights == "none":
        return None
    return broadcast(lambda: _class_weights(config, source, model_dir / CLASS_WEIGHTS_FILE))


def _class_weights(config, source, path):
    classes, given = source.classes, None
    if config.class_weights != "balanced" and Path(config.class_weights).is_file():
        given = read_class_weights(config.class_weights, classes)
    saved = read_class_weights(path, classes) if path.is_file() else None
    if saved is not None and has_trained(path.parent):
        if given not in (None, saved):
            logging.warning(
                "%s: its weights have changed since training began, and are not read; those of %s "
                "are used",
                config.class_weights,
                path,
            )
        weights = saved
    elif config.class_weights == "balanced":
        weights = saved or balanced_weights(count_class_pixels(source)).tolist()
    else:
        weights = given or saved or read_class_weights(config.class_weights, classes)
    if weights != saved:
        content = dict(zip(classes.names, weights, strict=True))
        write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
    logging.info("%s", class_weights_in_words(weights, classes))
    return weights


def class_weights_in_words(weights: Sequence[float], classes: ClassTable) -> str:
    """Names the smallest and the largest weight and their classes."""
    named = sorted(zip(weights, classes.names, strict=True))
    (low, lowest), (high, highest) = named[0], named[-1]
    return f"class weights from {low:.3g} ({lowest}) to {high:.3g} ({highest})"
