"""The one table of results in README: a row for each kind of run, methods as columns."""

import dataclasses
from pathlib import Path

from experiments.paper_tables import TABLES
from experiments.records import read_json, record_paths
from experiments.tables import Records, Summary, markdown_table

_HEADS = (
    *("data, validation images", "backbone, steps", "seeds"),
    *("DeepLabv3+", "+ AAF", "+ boundary", "+ CRF"),
    *("+ affinity", "+ propagation", "oracle", "record"),
)
_METHODS = ("deeplab", "aaf", "boundary")
_AFFINITY = "rates_8_12x24_16"


@dataclasses.dataclass(frozen=True)
class _Runs:
    """Runs of one row: single records by name, or those of a queue by data set and scale."""

    title: str
    record: str
    setting: tuple[str, str] | None = None


_ROWS = (
    _Runs("VOC 2012, animals", "animals_mobilenet_v2"),
    _Runs("VOC 2012, animals", "folder_animals_800_*", ("folder", "animals_800")),
    _Runs("VOC 2012, animals", "folder_animals_*", ("folder", "animals")),
    _Runs("shapes", "shapes"),
    _Runs("CamVid", "camvid_recipe"),
)


def summary_table(results_dir: Path) -> str:
    """Returns the table in Markdown: mIoU in %, mean over seeds; a dash where nothing was run."""
    records = Records(results_dir)
    shown = [
        each for each in _ROWS if each.setting is None or records.runs(*each.setting, _AFFINITY)
    ]
    rows = [_row(each, records, results_dir) for each in shown]
    return markdown_table(_HEADS, [*rows, _paper()])


def _row(runs, records, results_dir):
    if runs.setting is None:
        found, others = [read_json(path) for path in record_paths(results_dir, runs.record)], {}
    else:
        others = {name: list(records.runs(*runs.setting, name).values()) for name in _METHODS}
        found = list(records.runs(*runs.setting, _AFFINITY).values())
    config, evaluation = found[0]["config"], found[0]["evaluation"]["predicted"]
    calibrated = "predicted" if runs.setting is None else "calibrated"
    return [
        f"{runs.title}, {evaluation['images']}",
        f"{config['backbone']}, {config['train_steps']:,}",
        str(len(found)),
        *(_cell(others.get(name, []), "predicted", 0) for name in _METHODS),
        _cell(others.get("deeplab", []), "crf", -1),
        _cell(found, "predicted", 0),
        _cell(found, calibrated, -1),
        _cell(found, "ground_truth", -1),
        f"`{runs.record}`",
    ]


def _cell(runs, kind, position):
    values = [
        100 * run["evaluation"][kind]["mean_iou"][position]
        for run in runs
        if kind in run["evaluation"]
    ]
    return f"{Summary.of(values).mean:.2f}" if values else "-"


def _paper():
    """The paper's own numbers, from its Tables 4 and 5."""
    methods = {row.label: row.paper for row in TABLES["table5"].rows}
    labels = ("DeepLabv3+", "+ AAF", "+ boundary reweighting", "+ CRF")
    labels += ("+ dilated affinity, no propagation", "+ dilated affinity, 10 iterations")
    oracle = max(row.paper for row in TABLES["table4"].rows if row.paper is not None)
    numbers = (*(methods[label] for label in labels), oracle)
    return [
        "*the paper:* VOC 2012, 1,449",
        "resnet101, 30,000",
        "-",
        *(f"{number:.2f}" for number in numbers),
        "-",
    ]
