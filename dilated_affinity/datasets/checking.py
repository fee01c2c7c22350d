"""Checks a data set by reading all of its examples once."""

import functools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dilated_affinity.datasets.classes import IGNORE_LABEL
from dilated_affinity.datasets.data_dir import open_data_dir
from dilated_affinity.datasets.files.pairs import classes_of_values
from dilated_affinity.datasets.inspection import Survey
from dilated_affinity.datasets.registry import make_builder
from dilated_affinity.errors import DataError, MissingDataError
from dilated_affinity.runtime.progress import progress


def check_dataset(name: str, data_dir: str | os.PathLike, splits: Sequence[str]):
    """Reads every example of some splits and reports contents and problems.

    Args:
        name: A name that `load_dataset` knows. For `folder` see `check_folder`, which reads all
            splits and compares them.
        data_dir: See `make_builder`.
        splits: The splits to read.

    Returns:
        A `FolderReport`. Files that cannot be used are listed in `problems`. If the whole data set
        is refused, for example for an image without a label, that is the only problem.

    Raises:
        ConfigError: If there is no data set or no split of that name.
    """
    # TensorFlow Datasets takes seconds to import.
    from dilated_affinity.datasets.folder import FolderReport, check_folder

    report = FolderReport(os.fspath(data_dir))
    try:
        if name == "folder":
            return check_folder(_find_folder(data_dir))
        builder = make_builder(name, data_dir)
        report.classes = builder.classes
        report.notes += getattr(builder, "notes", ())
        survey, source = Survey(), None
        for split in dict.fromkeys(splits):
            source = builder.source(split)
            _read_split(report, split, source, survey)
        if _has_files(source):
            report.notes += survey.lines(source.table)
    except DataError as error:
        report.problems.append(str(error))
    return report


def _find_folder(data_dir):
    """Returns the folder of the data set `folder`, whether complete or not."""
    from dilated_affinity.datasets.folder.layout import find_splits

    def find(root):
        try:
            find_splits(root)
        except MissingDataError:
            raise
        except DataError:
            pass  # It is here, and `check_folder` reports what is wrong with it.
        return root

    return open_data_dir("folder", data_dir, find)


def _read_split(report, split, source, survey):
    read = _inspect if _has_files(source) else _read
    totals = np.zeros(256, np.int64)
    report.images[split] = 0
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        results = threads.map(functools.partial(read, source), range(len(source)))
        for result in progress(results, f"reading {split}", len(source)):
            if isinstance(result, DataError):
                report.problems.append(str(result))
                continue
            size, counts, inspected = result
            report.images[split] += 1
            report.sizes[size] += 1
            totals += counts
            if inspected:
                survey.add(*inspected)
    report.class_pixels[split] = totals[: report.classes.num_classes]
    report.void_pixels[split] = int(totals[IGNORE_LABEL])


def _has_files(source):
    # An instance check would need its class, which is slow to import.
    return hasattr(source, "inspect")


def _read(source, index):
    """Returns the size and the class counts of an example, or the error if it cannot be used."""
    try:
        example = source[index]
    except DataError as error:
        return error
    label = example["label"]
    return label.shape[::-1], np.bincount(label.ravel(), minlength=256), None


def _inspect(source, index):
    """Does the same for a `PairedFilesSource`, and inspects its files."""
    try:
        pair, found = source.inspect(index)
        values = np.flatnonzero(found.counts.values)
        labels = classes_of_values(
            values.astype(np.uint8), pair.label_path, source.classes, source.table
        )
    except DataError as error:
        return error
    counts = np.zeros(256, np.int64)
    np.add.at(counts, labels, found.counts.values[values])
    return found.size, counts, (pair, found)
