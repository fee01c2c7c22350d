"""Checks a folder of images and masks by reading all of its files once."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dilated_affinity.datasets.classes import IGNORE_LABEL, ClassTable
from dilated_affinity.datasets.files.pairs import INVALID, Pair, invalid_values_error
from dilated_affinity.datasets.folder.class_file import (
    ColoredMaskError,
    MaskClasses,
    class_file_hint,
    classes_from_values,
    decode_indices,
    format_colors,
)
from dilated_affinity.datasets.folder.folder_dataset_builder import read_classes
from dilated_affinity.datasets.folder.layout import find_splits
from dilated_affinity.datasets.inspection import Survey, inspect_pair
from dilated_affinity.datasets.notes import Notes, abbreviate
from dilated_affinity.errors import DataError, printable
from dilated_affinity.runtime.progress import progress


@dataclass
class FolderReport:
    """Result of `check_folder`.

    Attributes:
        data_dir: The folder.
        classes: Its classes, or `None` if they could not be determined.
        images: The number of images of each split that can be read with their masks.
        sizes: The number of images of each size, `(width, height)`.
        class_pixels: The pixels of each class in each split, int64 `(C,)`.
        void_pixels: The void pixels of each split.
        problems: Problems, one line each, beginning with the file.
        notes: Possible mistakes and ignored files, one line each.
    """

    data_dir: str
    classes: ClassTable | None = None
    images: dict[str, int] = field(default_factory=dict)
    sizes: Counter = field(default_factory=Counter)
    class_pixels: dict[str, np.ndarray] = field(default_factory=dict)
    void_pixels: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def class_shares(self, split: str) -> np.ndarray:
        """Returns the share of each class in the non-void pixels of a split, `(C,)`."""
        pixels = self.class_pixels[split]
        return pixels / max(pixels.sum(), 1)

    def void_share(self, split: str) -> float:
        """Returns the share of void in all pixels of a split."""
        void = self.void_pixels[split]
        return void / max(self.class_pixels[split].sum() + void, 1)

    def text(self) -> str:
        """Returns the report as text to print, with the problems last."""
        lines = [self.data_dir]
        counts = ", ".join(f"{count} of {split}" for split, count in self.images.items())
        lines.append(f"images   {counts or 'none'}")
        if self.sizes:
            (width, height), count = self.sizes.most_common(1)[0]
            widths, heights = zip(*self.sizes, strict=True)
            lines.append(
                f"sizes    {len(self.sizes)} different, {min(widths)} to {max(widths)} wide, "
                f"{min(heights)} to {max(heights)} high; {width}x{height} most often ({count})"
            )
        if self.classes and self.class_pixels:
            lines += ["", *self._table()]
        for title, entries in (("note", self.notes), ("problem", self.problems)):
            if entries:
                lines += ["", _counted(len(entries), title)]
                lines += [f"  {entry}" for entry in entries]
        if not self.problems:
            read = f"; {_counted(len(self.notes), 'note')} to read above" if self.notes else ""
            lines += ["", f"no problems{read}"]
        return "\n".join(map(printable, lines))

    def _table(self) -> Iterator[str]:
        splits = list(self.class_pixels)
        width = max(len("class"), *(len(name) for name in self.classes.names)) + 4
        columns = [max(8, len(split)) for split in splits]
        heads = (f"{split:>{size}}" for split, size in zip(splits, columns, strict=True))
        yield f"{'class':<{width}}  " + "  ".join(heads) + "   (share of labelled pixels)"
        shares = [self.class_shares(split) for split in splits]
        for label, name in enumerate(self.classes.names):
            cells = (
                f"{share[label]:>{size}.2%}" if share[label] else f"{'-':>{size}}"
                for share, size in zip(shares, columns, strict=True)
            )
            yield f"{label:>3} {name:<{width - 4}}  " + "  ".join(cells)
        cells = (
            f"{self.void_share(split):>{size}.2%}"
            for split, size in zip(splits, columns, strict=True)
        )
        yield f"{'void':<{width}}  " + "  ".join(cells) + "   (share of all pixels)"


def check_folder(data_dir: str | os.PathLike) -> FolderReport:
    """Reads every image and mask of a `folder` data set once and reports contents and problems.

    Args:
        data_dir: The folder; see `Folder`.

    Returns:
        A `FolderReport`. `DataError` is never raised; its messages are listed in `problems`.
    """
    root = Path(data_dir).expanduser()
    report = FolderReport(str(root))
    notes = Notes()
    try:
        known = read_classes(root, notes)
    except DataError as error:
        report.problems.append(str(error))
        # Without the classes masks cannot be checked.
        return report
    try:
        layout = find_splits(root)
    except DataError as error:
        report.problems.append(str(error))
        return report
    report.problems += layout.problems
    notes.merge(layout.notes)
    report.notes += notes.lines()
    survey = Survey()
    counts = _read_all(report, layout.splits, known.decode if known else decode_indices, survey)
    if known is None:
        values, mixed = survey.masks.values(), survey.masks.mixed_values()
        try:
            known = classes_from_values(values, str(root), mixed)
        except DataError as error:
            if values:
                report.problems.append(str(error))
            return report
    report.notes += survey.lines(known.table(), known.reads_indices)
    _count_classes(report, counts, known)
    return report


def _read_all(
    report: FolderReport, splits: Mapping[str, tuple[Pair, ...]], decode, survey: Survey
) -> dict[str, dict[str, np.ndarray]]:
    """Reads all pairs; returns the counts of the values in each mask that can be read."""

    def read(pair: Pair):
        try:
            return pair, inspect_pair(pair, decode)
        except DataError as error:
            return pair, error

    counts: dict[str, dict[str, np.ndarray]] = {split: {} for split in splits}
    jobs = [(split, pair) for split, pairs in splits.items() for pair in pairs]
    failed: set[str] = set()
    colored: dict[str, frozenset] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(read, (pair for _, pair in jobs))
        for (split, _), (pair, result) in zip(
            jobs, progress(results, "reading", len(jobs)), strict=True
        ):
            if isinstance(result, ColoredMaskError):
                colored[pair.label_path] = result.colors
            elif isinstance(result, DataError):
                # A file in several lists is reported once.
                if str(result) not in failed:
                    failed.add(str(result))
                    report.problems.append(str(result))
            else:
                survey.add(pair, result)
                counts[split][pair.label_path] = result.counts.values
                report.sizes[result.size] += 1
    if colored:
        colors = frozenset().union(*colored.values())
        report.problems.append(
            f"{report.data_dir}: {class_file_hint(colors)} "
            f"Received: {len(colored)} such masks ({abbreviate(colored)}), {format_colors(colors)}"
        )
    report.images = {split: len(masks) for split, masks in counts.items()}
    return counts


def _count_classes(
    report: FolderReport, counts: Mapping[str, Mapping[str, np.ndarray]], known: MaskClasses
) -> None:
    table = known.table()
    report.classes = known.classes
    failed: set[str] = set()
    for split, masks in counts.items():
        totals = np.zeros(256, np.int64)
        for path, values in masks.items():
            if values[table == INVALID].any():
                if path not in failed:
                    failed.add(path)
                    report.problems.append(
                        str(invalid_values_error(path, values.nonzero()[0], known.classes, table))
                    )
                continue
            np.add.at(totals, table[values > 0], values[values > 0])
        report.class_pixels[split] = totals[: known.classes.num_classes]
        report.void_pixels[split] = int(totals[IGNORE_LABEL])
        absent = [
            repr(name)
            for name, count in zip(known.classes.names, report.class_pixels[split], strict=True)
            if not count
        ]
        if absent and report.images[split]:
            several = len(absent) > 1
            report.notes.append(
                f"class{'es' if several else ''} {abbreviate(absent, 8)} "
                f"do{'' if several else 'es'} not occur in {split}"
            )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count != 1 else ''}"
