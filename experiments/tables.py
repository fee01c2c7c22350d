"""Fills the paper's tables from recorded runs."""

import dataclasses
import statistics
from pathlib import Path

from scipy import stats

from dilated_affinity.errors import DataError
from experiments.paper_tables import Row, Table
from experiments.records import read_json

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Summary:
    """A number over seeds: mean, standard deviation, half the width of the confidence interval."""

    count: int
    mean: float
    deviation: float | None
    half_interval: float | None

    @classmethod
    def of(cls, values):
        """Summarizes one or more values; from two on with deviation and 95 % t interval."""
        values = list(values)
        mean = statistics.fmean(values)
        if len(values) < 2:
            return cls(len(values), mean, None, None)
        deviation = statistics.stdev(values)
        quantile = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
        return cls(len(values), mean, deviation, float(quantile * deviation / len(values) ** 0.5))

    def __str__(self):
        deviation = "" if self.deviation is None else f" ± {self.deviation:.2f}"
        return f"{self.mean:.2f}{deviation}"


class Records:
    """The recorded runs of a folder, by data set, scale, variant and seed."""

    def __init__(self, folder: Path):
        self._records = {}
        for path in sorted(folder.glob("*.json")):
            record = read_json(path)
            if "variant" in record:
                key = record["dataset"], record["scale"], record["variant"]
                runs, seed = self._records.setdefault(key, {}), record["config"]["seed"]
                if seed in runs:
                    raise DataError(f"{path}: another record is of the same run. Received: {key}")
                runs[seed] = record

    def settings(self) -> list[tuple[str, str]]:
        """Pairs of data set and scale for which there are runs."""
        return sorted({(dataset, scale) for dataset, scale, _ in self._records})

    def head(self, dataset, scale) -> str:
        """The head of a column: data set, scale and number of evaluated images."""
        counts = {
            record["evaluation"]["predicted"]["images"]
            for (*setting, _), runs in self._records.items()
            if setting == [dataset, scale]
            for record in runs.values()
        }
        images = f", {' or '.join(map(str, sorted(counts)))} images" if counts else ""
        return f"ours, {dataset} {scale}{images}"

    def runs(self, dataset, scale, variant) -> dict[int, dict]:
        """The records by seed."""
        return self._records.get((dataset, scale, variant), {})

    def values(self, dataset, scale, row: Row, metric="mean_iou") -> dict[int, float]:
        """The row's metric in % by seed, of the runs that measured it."""
        found = {
            seed: _measured(record, *row.measured, metric)
            for seed, record in self.runs(dataset, scale, row.variant).items()
        }
        return {seed: 100 * value for seed, value in found.items() if value is not None}

    def has_any(self, dataset, scale, table: Table) -> bool:
        """Returns whether a run fills a row of the table."""
        return any(self.values(dataset, scale, row) for row in table.rows)

    def cell(self, dataset, scale, row: Row, reference: Row, metric="mean_iou") -> str:
        """Mean and deviation, and the paired difference to the reference on the same seeds.

        Where a seed of the row has no reference, the number of seeds follows the difference.
        """
        values = self.values(dataset, scale, row, metric)
        if not values:
            return "not run"
        text = f"{Summary.of(values.values())} ({_seeds_text(len(values))})"
        others = self.values(dataset, scale, reference, metric)
        shared = [values[seed] - others[seed] for seed in sorted(values.keys() & others.keys())]
        if row == reference or not shared:
            return text
        seeds = "" if len(shared) == len(values) else f" ({_seeds_text(len(shared))})"
        return f"{text}; {_difference_text(Summary.of(shared))}{seeds}"


def markdown_table(heads, rows) -> str:
    """A table in Markdown, without a newline at its end.

    Args:
        heads: Texts of the columns' heads.
        rows: For each row the texts of its cells.
    """
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, *rows)]
    return "\n".join([lines[0], f"{'|---' * len(heads)}|", *lines[1:]])


def filled(table: Table, records: Records, settings) -> str:
    """The table in Markdown: a column for the paper, one for each pair of data set and scale."""
    heads = ["", f"paper, {table.dataset}", *(records.head(*pair) for pair in settings)]
    rows = [
        [
            row.label,
            "" if row.paper is None else f"{row.paper:.2f}",
            *(records.cell(*pair, row, table.rows[0]) for pair in settings),
        ]
        for row in table.rows
    ]
    return markdown_table(heads, rows)


def boundary_table(table: Table, records: Records, settings) -> str:
    """Boundary IoU in the rows of the table, in Markdown; the paper gives none."""
    heads = ["boundary IoU", *(records.head(*pair) for pair in settings)]
    rows = [
        [
            row.label,
            *(records.cell(*pair, row, table.rows[0], "boundary_iou") for pair in settings),
        ]
        for row in table.rows
    ]
    return markdown_table(heads, rows)


def _measured(record, kind, iterations, metric):
    evaluation = record["evaluation"].get(kind)
    if evaluation is None:
        return None
    values = evaluation[metric]
    if iterations is None:
        return values[-1]
    if iterations not in evaluation["iterations"]:
        return None
    return values[evaluation["iterations"].index(iterations)]


def _seeds_text(count):
    return f"{count} seed" if count == 1 else f"{count} seeds"


def _difference_text(summary):
    if summary.half_interval is None:
        return f"{summary.mean:+.2f}"
    low, high = summary.mean - summary.half_interval, summary.mean + summary.half_interval
    return f"{summary.mean:+.2f} [{low:+.2f}, {high:+.2f}]"
