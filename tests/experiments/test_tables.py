import json

import numpy as np
import pytest
from scipy import stats

from dilated_affinity.errors import DataError
from experiments.paper_tables import TABLES, Row, Table
from experiments.plots import accuracy_figure, mean_accuracy
from experiments.report import figure_sections, table_sections
from experiments.tables import Records, Summary, boundary_table, filled
from experiments.variants import VARIANTS

TABLE = Table(
    "An example",
    "voc2012_aug",
    (
        Row("first", "deeplab", paper=77.93),
        Row("second", "aaf"),
        Row("refined", "deeplab", ("crf", None), 78.6),
    ),
    "Notes.",
)


def write(folder, variant, seed, mean_iou, scale="small", **evaluations):
    evaluation = {
        "predicted": {
            "iterations": [0],
            "mean_iou": [mean_iou],
            "boundary_iou": [mean_iou],
            "images": 2,
        },
        **evaluations,
    }
    record = {
        "dataset": "camvid",
        "scale": scale,
        "variant": variant,
        "config": {"seed": seed},
        "evaluation": evaluation,
    }
    (folder / f"camvid_{scale}_{variant}_seed{seed}.json").write_text(json.dumps(record))


def accuracies(seed):
    table = np.random.default_rng(seed).random((2, 9)).tolist()
    table[0][3] = None
    return {"rates": [[4, 4], [6, 12]], "by_rate_and_count": table}


def test_summary_agrees_with_scipy():
    values = [3.0, 4.5, 9.0, 2.0]
    summary = Summary.of(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    np.testing.assert_allclose(
        [summary.mean - summary.half_interval, summary.mean + summary.half_interval], [low, high]
    )
    np.testing.assert_allclose(summary.deviation, np.std(values, ddof=1))
    assert Summary.of([3.0]) == Summary(1, 3.0, None, None)


def test_two_records_of_one_run_are_refused(tmp_path):
    write(tmp_path, "deeplab", 0, 0.50)
    path = tmp_path / "camvid_small_deeplab_seed0.json"
    (tmp_path / "trial.json").write_text(path.read_text())
    with pytest.raises(DataError, match="trial.json: another record is of the same run"):
        Records(tmp_path)


def test_cell_compares_runs_of_the_same_seed(tmp_path):
    for seed, value in ((0, 0.50), (1, 0.60), (2, 0.40)):
        write(tmp_path, "deeplab", seed, value)
    for seed, value in ((1, 0.62), (2, 0.41), (7, 0.90)):
        write(tmp_path, "aaf", seed, value)
    difference = [2.0, 1.0]
    low, high = stats.ttest_1samp(difference, 0).confidence_interval(0.95)
    lines = filled(TABLE, Records(tmp_path), [("camvid", "small")]).splitlines()
    assert lines[2] == "| first | 77.93 | 50.00 ± 10.00 (3 seeds) |"
    interval = f"[{low:+.2f}, {high:+.2f}]"
    assert lines[3] == f"| second |  | 64.33 ± 24.58 (3 seeds); +1.50 {interval} (2 seeds) |"


def test_cell_counts_the_seeds_of_a_difference_over_fewer(tmp_path):
    write(tmp_path, "deeplab", 0, 0.50)
    for seed, value in ((0, 0.49), (1, 0.60)):
        write(tmp_path, "aaf", seed, value)
    lines = filled(TABLE, Records(tmp_path), [("camvid", "small")]).splitlines()
    assert lines[3] == "| second |  | 54.50 ± 7.78 (2 seeds); -1.00 (1 seed) |"


def test_boundary_iou_has_a_table_of_its_own(tmp_path):
    for seed, value in ((0, 0.30), (1, 0.32)):
        measured = {"iterations": [0], "mean_iou": [0.5], "boundary_iou": [value], "images": 2}
        refined = {"iterations": [0, 10], "mean_iou": [0.5, 0.6], "boundary_iou": [value, 0.4]}
        write(tmp_path, "deeplab", seed, 0.5, predicted=measured, crf=refined)
    lines = boundary_table(TABLE, Records(tmp_path), [("camvid", "small")]).splitlines()
    assert lines[2] == "| first | 31.00 ± 1.41 (2 seeds) |"
    assert lines[3] == "| second | not run |"
    assert lines[4].startswith("| refined | 40.00 ± 0.00 (2 seeds); +9.00 [")


def test_cell_without_runs_says_not_run(tmp_path):
    write(tmp_path, "deeplab", 0, 0.5)
    settings = [("voc2012_aug", "paper"), ("camvid", "small")]
    lines = filled(TABLE, Records(tmp_path), settings).splitlines()
    assert (
        lines[0]
        == "|  | paper, voc2012_aug | ours, voc2012_aug paper | ours, camvid small, 2 images |"
    )
    assert lines[2:] == [
        "| first | 77.93 | not run | 50.00 (1 seed) |",
        "| second |  | not run | not run |",
        "| refined | 78.60 | not run | not run |",
    ]


def test_table_omits_columns_without_runs(tmp_path):
    write(tmp_path, "deeplab", 0, 0.5)
    written = table_sections(tmp_path)
    heads = {
        title: table.splitlines()[0] for title, table in zip(*[iter(written)] * 2, strict=True)
    }
    own = "ours, camvid small, 2 images"
    assert own in heads["### Table 5, methods that use structure"]
    assert own not in heads["### Table 1, weightings of the affinity loss"]


def test_row_can_show_the_last_number_of_a_record(tmp_path):
    write(tmp_path, "deeplab", 0, 0.5, crf={"iterations": [0, 10], "mean_iou": [0.5, 0.55]})
    lines = filled(TABLE, Records(tmp_path), [("camvid", "small")]).splitlines()
    assert lines[4] == "| refined | 78.60 | 55.00 (1 seed); +5.00 |"


def test_affinity_accuracy_is_averaged_over_seeds(tmp_path):
    for seed in (0, 1):
        evaluation = {
            "iterations": [0],
            "mean_iou": [0.5],
            "affinity_accuracy": accuracies(seed),
        }
        write(tmp_path, "weighting_sqrt_neighbor", seed, 0.5, predicted=evaluation)
    records = Records(tmp_path)
    rates, accuracy = mean_accuracy(records, "camvid", "small", "weighting_sqrt_neighbor")
    assert rates == [[4, 4], [6, 12]]
    first, second = (np.array(accuracies(seed)["by_rate_and_count"], float) for seed in (0, 1))
    np.testing.assert_allclose(accuracy, 50 * (first + second))
    panels = accuracy_figure(records, "camvid", "small").axes
    assert [len(axes.lines) for axes in panels] == [2, 0, 1]
    np.testing.assert_allclose(panels[2].lines[0].get_ydata()[4:], accuracy[:, 4:].mean(axis=0))


@pytest.mark.parametrize("name", TABLES)
def test_every_row_has_a_variant_that_is_evaluated_so(name):
    for row in TABLES[name].rows:
        variant = VARIANTS[row.variant]
        assert row.measured[0] in ("predicted", "crf") or variant.has_affinity


def test_results_without_records_say_not_run(tmp_path):
    text = "\n".join([*table_sections(tmp_path), *figure_sections(tmp_path)])
    paper_columns = sum(len(table.rows) for table in TABLES.values())
    assert text.count("not run") == paper_columns and text.count("Not run.") == 2
