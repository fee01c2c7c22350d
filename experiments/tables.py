"""A table of the paper: its rows, and what the recorded runs say in their place."""

import dataclasses
import statistics
from pathlib import Path

from scipy import stats

from dilated_affinity.evaluation.evaluate import ITERATIONS
from experiments.records import read_json

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        label: What the paper calls it.
        variant: Name of the runs that fill it, a key of `variants.VARIANTS`.
        measured: Which of a record's evaluations, and at how many iterations of its refinement;
            None for the last one of it.
        paper: The paper's mIoU in %, None where it gives none.
    """

    label: str
    variant: str
    measured: tuple[str, int | None] = ("predicted", 0)
    paper: float | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: Name of its module.
        title: A line above it.
        dataset: The paper's data set.
        rows: The first one is what the others are compared with.
    """

    name: str
    title: str
    dataset: str
    rows: tuple[Row, ...]

    @property
    def variants(self) -> tuple[str, ...]:
        """The runs that fill the table, each once."""
        return tuple(dict.fromkeys(row.variant for row in self.rows))


@dataclasses.dataclass(frozen=True)
class Summary:
    """A number over seeds: mean, standard deviation and half width of the mean's interval."""

    count: int
    mean: float
    deviation: float | None
    half_interval: float | None

    @classmethod
    def of(cls, values):
        """Of one value at least; the rest needs two. The interval is Student's, of 95 %."""
        values = list(values)
        mean = statistics.fmean(values)
        if len(values) < 2:
            return cls(len(values), mean, None, None)
        deviation = statistics.stdev(values)
        quantile = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
        return cls(len(values), mean, deviation, float(quantile * deviation / len(values) ** 0.5))


class Records:
    """The recorded runs of a folder, by data set, scale, variant and seed."""

    def __init__(self, folder: Path):
        self._records = {}
        for path in sorted(folder.glob("*.json")):
            record = read_json(path)
            if "variant" in record:
                key = record["dataset"], record["scale"], record["variant"]
                self._records.setdefault(key, {})[record["config"]["seed"]] = record

    def settings(self) -> list[tuple[str, str]]:
        """Pairs of data set and scale that have runs."""
        return sorted({(dataset, scale) for dataset, scale, _ in self._records})

    def head(self, dataset, scale) -> str:
        """What stands over a column: the runs, and how many images measured them."""
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

    def values(self, dataset, scale, row: Row) -> dict[int, float]:
        """mIoU in % by seed, of the runs that measured it."""
        found = {
            seed: _measured(record, *row.measured)
            for seed, record in self.runs(dataset, scale, row.variant).items()
        }
        return {seed: 100 * value for seed, value in found.items() if value is not None}

    def has_any(self, dataset, scale, table: Table) -> bool:
        """Whether a run fills a row of the table."""
        return any(self.values(dataset, scale, row) for row in table.rows)

    def cell(self, dataset, scale, row: Row, reference: Row) -> str:
        """Mean and deviation, and the paired difference to the reference on the same seeds.

        The difference says how many seeds it has where that is not all of them.
        """
        values = self.values(dataset, scale, row)
        if not values:
            return "not run"
        text = _mean_text(Summary.of(values.values()))
        others = self.values(dataset, scale, reference)
        shared = [values[seed] - others[seed] for seed in sorted(values.keys() & others.keys())]
        if row == reference or not shared:
            return text
        seeds = "" if len(shared) == len(values) else f" ({_count_text(len(shared), 'seed')})"
        return f"{text}; {_difference_text(Summary.of(shared))}{seeds}"


def markdown(table: Table, records: Records, settings) -> str:
    """The table in Markdown: a column for the paper, one for each pair of data set and scale."""
    heads = ["", f"paper, {table.dataset}", *(records.head(*pair) for pair in settings)]
    lines = [" | ".join(heads), " | ".join(["---"] * len(heads))]
    for row in table.rows:
        paper = "" if row.paper is None else f"{row.paper:.2f}"
        ours = [records.cell(*pair, row, table.rows[0]) for pair in settings]
        lines.append(" | ".join([row.label, paper, *ours]))
    return "\n".join(f"| {line} |" for line in lines)


def _measured(record, kind, iterations):
    evaluation = record["evaluation"].get(kind)
    if evaluation is None:
        return None
    values = evaluation["mean_iou"]
    if iterations is None:
        return values[-1]
    if iterations not in evaluation["iterations"]:
        return None
    return values[evaluation["iterations"].index(iterations)]


def _mean_text(summary):
    deviation = "" if summary.deviation is None else f" ± {summary.deviation:.2f}"
    return f"{summary.mean:.2f}{deviation} ({_count_text(summary.count, 'seed')})"


def _count_text(count, noun):
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _difference_text(summary):
    if summary.half_interval is None:
        return f"{summary.mean:+.2f}"
    low, high = summary.mean - summary.half_interval, summary.mean + summary.half_interval
    return f"{summary.mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def propagation_table(name, title, variant, predicted, ground_truth) -> Table:
    """Table 3 or 4: a row for each number of iterations and kind of affinity.

    Args:
        name: As for `Table`.
        title: As for `Table`.
        variant: The runs.
        predicted: The paper's mIoU with predicted affinity, by `ITERATIONS`.
        ground_truth: The same with ground-truth affinity.
    """
    rows = [
        Row(f"{label}, {_count_text(iterations, 'iteration')}", variant, (kind, iterations), paper)
        for label, kind, numbers in (
            ("predicted", "predicted", predicted),
            ("ground truth", "ground_truth", ground_truth),
        )
        for iterations, paper in zip(ITERATIONS, numbers, strict=True)
    ]
    rows += [
        Row(
            f"predicted, calibrated, {_count_text(count, 'iteration')}",
            variant,
            ("calibrated", count),
        )
        for count in ITERATIONS[1:]
    ]
    rows.append(Row("predicted, settings searched", variant, ("chosen", None)))
    return Table(name, title, "voc2012_aug", tuple(rows))
