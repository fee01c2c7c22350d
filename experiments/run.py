"""Reproduces a table or figure of the paper, or runs what goes with them.

    python -m experiments.run table5 --dataset=shapes --scale=smoke

Without arguments it lists the commands; each explains itself and its flags with --help.
"""

import ast
import dataclasses
import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

from absl import flags

from dilated_affinity.cli import app, config_flags
from dilated_affinity.config import Config
from dilated_affinity.errors import ConfigError, did_you_mean
from dilated_affinity.runtime.system import configure_malloc
from experiments import beta_search, paper_figures
from experiments.paper_tables import DATASETS, TABLES, Table
from experiments.records import RESULTS
from experiments.run_queue import VARIED, Queue
from experiments.tables import Records, filled
from experiments.variants import SCALES

_OWN = {"module_name": "__main__"}
"""Registers a flag where --help looks for those of the command."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A command that trains and evaluates runs.

    Attributes:
        description: Its help, the first line of which is the summary.
        run: Called with the `Queue` that the flags describe.
        dataset: Default of --dataset.
        define_flags: Defines the flags of this command alone.
    """

    description: str
    run: Callable[[Queue], None]
    dataset: str = "voc2012_aug"
    define_flags: Callable[[], None] = lambda: None


def _table_experiment(name: str, table: Table) -> Experiment:
    def run(queue):
        queue.run(table.variants)
        print(f"{table.title}: mIoU in %")
        print(filled(table, Records(queue.results_dir), [(queue.dataset, queue.scale)]))

    return Experiment(_description(name, table), run, table.dataset)


def _description(name, table):
    rows = [row for row in table.rows if row.paper is not None]
    width = max(len(row.label) for row in rows)
    numbers = "\n".join(f"    {row.label:<{width}}  {row.paper:.2f}" for row in rows)
    command = f"    python -m experiments.run {name}"
    split, data_dir = DATASETS[table.dataset]
    return f"""\
{table.title}

The paper's mIoU in % on {split}:

{numbers}

{table.notes}

{command} --data_dir={data_dir}
{command} --dataset=camvid --scale=small --seeds=0,1,2 \\
        --data_dir=CamVid --backbone_weights=mobilenet_v2_imagenet_notop.weights.h5
{command} --dataset=shapes --scale=smoke"""


def _define_index():
    flags.DEFINE_integer("index", 0, "Index of the validation image.", lower_bound=0, **_OWN)


EXPERIMENTS = {
    **{name: _table_experiment(name, table) for name, table in TABLES.items()},
    "figure1": Experiment(
        inspect.getdoc(paper_figures.figure1),
        lambda queue: paper_figures.figure1(queue, flags.FLAGS.index),
        define_flags=_define_index,
    ),
    "figure3": Experiment(inspect.getdoc(paper_figures.figure3), paper_figures.figure3),
    "figure4": Experiment(inspect.getdoc(paper_figures.figure4), paper_figures.figure4),
    "beta_search": Experiment(
        inspect.getdoc(beta_search),
        beta_search.run,
        define_flags=lambda: beta_search.define_flags(**_OWN),
    ),
}
"""The commands that share the queue of runs and its flags."""

MODULES = ("refinement_variants", "mixed_affinity", "record_run", "report")
"""The other commands: modules with flags of their own and a function `main()`."""


def commands() -> dict[str, str]:
    """Name and summary of every command."""
    found = {name: each.description.splitlines()[0] for name, each in EXPERIMENTS.items()}
    for name in MODULES:
        # Not imported: their flags have the names of others.
        text = (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")
        found[name] = ast.get_docstring(ast.parse(text)).splitlines()[0]
    return {name: summary.rstrip(".") for name, summary in found.items()}


def overview() -> str:
    """The list of the commands."""
    known = commands()
    width = max(map(len, known))
    lines = [f"  {name:<{width}}  {text}" for name, text in known.items()]
    first = "The paper's tables and figures. The commands:"
    last = "Each has its --help. A first one: python -m experiments.run table5 --dataset=shapes "
    return "\n".join([first, "", *lines, "", f"{last}--scale=smoke"])


def define_flags(dataset: str) -> Callable[[], Queue]:
    """Defines the flags of every experiment.

    Args:
        dataset: Default of --dataset.

    Returns:
        A function that makes the `Queue` that the parsed flags describe.
    """
    given = config_flags.define(
        [
            field.name
            for field in dataclasses.fields(Config)
            if field.name not in VARIED
            # The tables say how runs are evaluated.
            and field.metadata["group"] not in ("evaluation", "refinement")
        ],
        default="the recipe's and the scale's",
    )
    datasets = sorted({name for scales in SCALES.values() for name in scales})
    flags.DEFINE_enum("dataset", dataset, datasets, "Data set.", **_OWN)
    flags.DEFINE_enum("scale", "paper", list(SCALES), "Size of the runs.", **_OWN)
    flags.DEFINE_list("seeds", ["0"], "Seeds of the runs; the paper names none.", **_OWN)
    flags.DEFINE_string("runs_dir", "runs/experiments", "Folder to train the runs in.", **_OWN)
    flags.DEFINE_string(
        "results_dir",
        None,
        "Folder for the records of the runs. Default: experiments/results; for smoke "
        "runs_dir/results.",
        **_OWN,
    )

    def queue():
        configure_malloc()
        values = flags.FLAGS
        results_dir = values.results_dir or (
            Path(values.runs_dir, "results") if values.scale == "smoke" else RESULTS
        )
        return Queue(
            values.dataset,
            values.scale,
            parse_seeds(values.seeds),
            Path(values.runs_dir),
            Path(results_dir),
            given(),
        )

    return queue


def parse_seeds(texts) -> tuple[int, ...]:
    """The values of --seeds as integers, or a `ConfigError`."""
    try:
        seeds = tuple(map(int, texts))
    except ValueError:
        raise ConfigError(f"--seeds must be integers. Received: {','.join(texts)}") from None
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(
            f"--seeds must be one or more different integers. Received: {','.join(texts)}"
        )
    return seeds


def main(arguments=None):
    """Entry point of `python -m experiments.run`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    known = [*EXPERIMENTS, *MODULES]
    if not arguments or arguments[0] in ("--help", "-h", "-help"):
        print(overview())
    elif arguments[0] in EXPERIMENTS:
        sys.argv = arguments
        _run(EXPERIMENTS[arguments[0]])
    elif arguments[0] in MODULES:
        sys.argv = arguments
        importlib.import_module(f"experiments.{arguments[0]}").main()
    else:
        sys.argv = ["experiments.run"]
        app.complain(
            f"no such command: {arguments[0]!r}.{did_you_mean(arguments[0], known)} "
            "Without one it lists them."
        )
        sys.exit(app.USAGE_ERROR)


def _run(experiment):
    make_queue = define_flags(experiment.dataset)
    experiment.define_flags()
    app.run(lambda: experiment.run(make_queue()), experiment.description)


if __name__ == "__main__":
    main()
