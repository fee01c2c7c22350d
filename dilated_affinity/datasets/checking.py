"""Reading all of a data set once, to say what is in it and what is wrong with it."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dilated_affinity.datasets.classes import IGNORE_LABEL
from dilated_affinity.datasets.loading import make_builder
from dilated_affinity.errors import DataError
from dilated_affinity.progress import progress


def check_dataset(name: str, data_dir: str | os.PathLike, splits: Sequence[str]):
    """Reads every example of some splits and reports what it found.

    Args:
        name: A name that `load_dataset` knows. For `folder` see `check_folder`, which reads all
            splits and compares them.
        data_dir: See `make_builder`.
        splits: The splits to read.

    Returns:
        A `FolderReport`. Files that cannot be used are among its `problems`; where the data set
        is refused as a whole, as one with an image without a label is, that is the only one.

    Raises:
        ConfigError: There is no data set or no split of that name.
    """
    # TensorFlow Datasets takes seconds to import.
    from dilated_affinity.datasets.folder import FolderReport, check_folder

    if name == "folder":
        return check_folder(data_dir)
    report = FolderReport(os.fspath(data_dir))
    try:
        builder = make_builder(name, data_dir)
        report.classes = builder.classes
        for split in dict.fromkeys(splits):
            _read_split(report, split, builder.source(split))
    except DataError as error:
        report.problems.append(str(error))
    return report


def _read_split(report, split, source):
    def read(index):
        try:
            example = source[index]
        except DataError as error:
            return error
        return example["label"].shape, np.bincount(example["label"].ravel(), minlength=256)

    totals = np.zeros(256, np.int64)
    report.images[split] = 0
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        results = threads.map(read, range(len(source)))
        for result in progress(results, f"reading {split}", len(source)):
            if isinstance(result, DataError):
                report.problems.append(str(result))
                continue
            (height, width), counts = result
            report.images[split] += 1
            report.sizes[width, height] += 1
            totals += counts
    report.class_pixels[split] = totals[: report.classes.num_classes]
    report.void_pixels[split] = int(totals[IGNORE_LABEL])
