"""Writes the tables of `experiments/README.md`, and the plots, from the recorded runs.

    python -m experiments.report

Nothing in the generated part is written by hand: a cell without a run says "not run".
"""

from pathlib import Path

from absl import flags

from dilated_affinity.affinity.statistics import AffinityStatistics
from dilated_affinity.cli import app
from dilated_affinity.errors import DataError
from dilated_affinity.runtime.files import write_atomically
from dilated_affinity.visualization import count_frequency_figure
from experiments import (
    table1_weighting,
    table2_rates,
    table3_propagation,
    table4_propagation_large,
    table5_methods,
    table6_cityscapes,
)
from experiments.plots import accuracy_figure, save
from experiments.records import RESULTS, read_json
from experiments.tables import Records, markdown

TABLES = (
    table1_weighting.TABLE,
    table2_rates.TABLE,
    table3_propagation.TABLE,
    table4_propagation_large.TABLE,
    table5_methods.TABLE,
    table6_cityscapes.TABLE,
)
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"

_README = flags.DEFINE_string(
    "readme", str(Path(__file__).parent / "README.md"), "File whose results to write."
)
_RESULTS_DIR = flags.DEFINE_string("results_dir", str(RESULTS), "Where the runs' JSON are.")


def main():
    """Entry point."""
    app.run(_write)


def _write():
    results_dir, readme = Path(_RESULTS_DIR.value), Path(_README.value)
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DataError(f"{readme}: needs the lines {BEGIN} and {END}.")
    generated = "\n\n".join([*sections(results_dir), *figures(results_dir)])
    content = f"{before}{BEGIN}\n\n{generated}\n\n{END}{after}"
    write_atomically(readme, content.encode())
    print(readme)


def sections(results_dir: Path) -> list[str]:
    """Every table in Markdown, with the choices that its runs were made with."""
    records = Records(results_dir)
    written = []
    for table in TABLES:
        paper = table.dataset, "paper"
        run = (pair for pair in records.settings() if records.has_any(*pair, table))
        settings = list(dict.fromkeys([paper, *run]))
        written += [f"### {table.title}", markdown(table, records, settings)]
    return [*written, *_choices(results_dir)]


def figures(results_dir: Path) -> list[str]:
    """Draws Figures 3 and 4 where there is something to draw; returns Markdown that shows them."""
    drawn = []
    for path in sorted(results_dir.glob("frequencies_*.json")):
        name = f"figure3_{path.stem.removeprefix('frequencies_')}.png"
        save(count_frequency_figure(AffinityStatistics.load(path)), results_dir / name)
        drawn.append(_shown("Figure 3", name, results_dir))
    records = Records(results_dir)
    for dataset, scale in records.settings():
        if records.runs(dataset, scale, "weighting_sqrt_neighbor"):
            name = f"figure4_{dataset}_{scale}.png"
            save(accuracy_figure(records, dataset, scale), results_dir / name)
            drawn.append(_shown("Figure 4", name, results_dir))
    return ["### Figures", *(drawn or ["Not run."])]


def _choices(results_dir):
    lines = []
    for path in sorted(results_dir.glob("choices_*.json")):
        for variant, choice in read_json(path)["choices"].items():
            best = choice["refinement"]
            lines.append(
                f"| {path.stem.removeprefix('choices_').replace('_', ' ')} | {variant} | "
                f"{choice['beta']:g} | {choice.get('affinity_reduction', 'mean')} | "
                f"{best['self_weight']:g} | {best['mu']:g} | "
                f"{best['propagation_iterations']} | {choice['decided_on']} |"
            )
    if not lines:
        return ["### Settings searched on a part of train", "Not run."]
    names = ("runs", "variant", "beta", "of the", "lambda", "mu", "iterations", "decided on")
    head = f"| {' | '.join(names)} |\n{'|---' * len(names)}|"
    return ["### Settings searched on a part of train", "\n".join([head, *lines])]


def _shown(title, name, results_dir):
    return f"{title}, `{name}`:\n\n![{title}]({results_dir.name}/{name})"


if __name__ == "__main__":
    main()
