"""Writes the results in README.md, docs/results.md and experiments/README.md, and the plots.

    python -m experiments.run report

A section between the lines `<!-- results: NAME -->` and `<!-- end -->` is generated. NAME is
`paper` for the paper's tables and figures, `summary` for the table of README, or the name of a
record in experiments/results. A name without `_seed0` and so on gives the mean and standard
deviation over these records.
"""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

from absl import flags
from matplotlib.figure import Figure

from dilated_affinity.affinity.statistics import AffinityStatistics
from dilated_affinity.cli import app
from dilated_affinity.errors import DataError
from dilated_affinity.runtime.files import write_atomically
from dilated_affinity.visualization import count_frequency_figure
from experiments.paper_tables import TABLES
from experiments.plots import accuracy_figure, save
from experiments.records import RESULTS, read_json, record_paths
from experiments.summary import summary_table
from experiments.tables import Records, Summary, boundary_table, filled, markdown_table

_ROOT = Path(__file__).parents[1]
READMES = (_ROOT / "experiments" / "README.md", _ROOT / "README.md", _ROOT / "docs" / "results.md")

_README = flags.DEFINE_multi_string(
    "readme",
    [str(path) for path in READMES],
    "File whose sections of results to write.",
)
_RESULTS_DIR = flags.DEFINE_string("results_dir", str(RESULTS), "Folder of the records.")

_SECTION = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end -->)", re.S)
_AFFINITIES = (
    ("predicted, the paper's settings", "given"),
    ("predicted, calibrated", "predicted"),
    ("ground truth", "ground_truth"),
)


def main():
    """Entry point."""
    app.run(_write)


def _write():
    results_dir = Path(_RESULTS_DIR.value)
    for each in figures(results_dir):
        save(each.draw(), results_dir / each.name)
    for readme in map(Path, _README.value):
        text = readme.read_text(encoding="utf-8")
        if not _SECTION.search(text):
            raise DataError(f"{readme}: needs a section of results, with the lines of --help.")
        write_atomically(readme, with_results(text, results_dir).encode())
        print(readme)


def with_results(text: str, results_dir: Path = RESULTS) -> str:
    """The text with its generated sections as the records in `results_dir` have them now."""

    def written(found):
        begin, name, end = found.groups()
        if name == "paper":
            sections = [*table_sections(results_dir), *figure_sections(results_dir)]
            content = "\n{}\n".format("\n\n".join(sections))
        elif name == "summary":
            content = summary_table(results_dir)
        else:
            content = run_table([read_json(path) for path in record_paths(results_dir, name)])
        return f"{begin}{content}\n{end}"

    return _SECTION.sub(written, text)


def table_sections(results_dir: Path) -> list[str]:
    """Title and Markdown of every table, and of the settings that were searched for its runs."""
    records = Records(results_dir)
    written = []
    for table in TABLES.values():
        paper = table.dataset, "paper"
        run = (pair for pair in records.settings() if records.has_any(*pair, table))
        settings = list(dict.fromkeys([paper, *run]))
        written += [f"### {table.title}", filled(table, records, settings)]
        if table is TABLES["table5"]:
            shown = boundary_table(table, records, settings[1:])
            written += ["### Table 5, boundary IoU", shown]
    return [*written, "### Settings searched on a part of train", _choices(results_dir)]


def _choices(results_dir):
    rows = []
    for path in sorted(results_dir.glob("choices_*.json")):
        for variant, choice in read_json(path)["choices"].items():
            best = choice["refinement"]
            rows.append(
                [
                    path.stem.removeprefix("choices_").replace("_", " "),
                    variant,
                    f"{choice['beta']:g}",
                    choice.get("affinity_reduction", "mean"),
                    f"{best['self_weight']:g}",
                    f"{best['mu']:g}",
                    str(best["propagation_iterations"]),
                    choice["decided_on"],
                ]
            )
    names = ("runs", "variant", "beta", "of the", "lambda", "mu", "iterations", "decided on")
    return markdown_table(names, rows) if rows else "Not run."


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure that records fill: its title, the name of its file, and what draws it."""

    title: str
    name: str
    draw: Callable[[], Figure]


def figures(results_dir: Path) -> list[Drawing]:
    """Figures 3 and 4 for every data set and scale that has records of them."""
    found = [
        Drawing(
            "Figure 3",
            f"figure3_{path.stem.removeprefix('frequencies_')}.png",
            lambda path=path: count_frequency_figure(AffinityStatistics.load(path)),
        )
        for path in sorted(results_dir.glob("frequencies_*.json"))
    ]
    records = Records(results_dir)
    return found + [
        Drawing(
            "Figure 4",
            f"figure4_{dataset}_{scale}.png",
            lambda dataset=dataset, scale=scale: accuracy_figure(records, dataset, scale),
        )
        for dataset, scale in records.settings()
        if records.runs(dataset, scale, "weighting_sqrt_neighbor")
    ]


def figure_sections(results_dir: Path) -> list[str]:
    """Title and Markdown of the figures."""
    shown = [
        f"{each.title}, `{each.name}`:\n\n![{each.title}]({results_dir.name}/{each.name})"
        for each in figures(results_dir)
    ]
    return ["### Figures", *(shown or ["Not run."])]


def run_table(runs: list[dict]) -> str:
    """mIoU in % by iterations of propagation, with a row for each kind of affinity, in Markdown."""
    first = runs[0]["evaluation"]
    rows = []
    for name, kind in _AFFINITIES:
        if kind not in first:
            continue
        if kind == "predicted" and not runs[0].get("calibration"):
            name = "predicted"
        values = zip(*(run["evaluation"][kind]["mean_iou"] for run in runs), strict=True)
        rows.append([name, *(str(Summary.of(100 * value for value in each)) for each in values)])
    return markdown_table(["affinity", *map(str, first["predicted"]["iterations"])], rows)
