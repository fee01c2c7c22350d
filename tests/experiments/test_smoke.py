"""Every experiment at smoke scale, as a user types it; they share their runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLES = (
    "table1_weighting",
    "table2_rates",
    "table3_propagation",
    "table4_propagation_large",
    "table5_methods",
    "table6_cityscapes",
)
FIGURES = ("figure1_affinity", "figure4_affinity_accuracy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("smoke")


def run(folder, name, *arguments, dataset="shapes"):
    completed = subprocess.run(
        [
            *(sys.executable, "-m", f"experiments.{name}"),
            *(f"--dataset={dataset}", "--scale=smoke"),
            *(f"--data_dir={folder / 'data'}", f"--runs_dir={folder / 'runs'}"),
            *arguments,
        ],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


@pytest.mark.slow
def test_figure3(folder):
    printed = run(folder, "figure3_frequencies")
    assert "shapes_smoke, 8 label maps, rates 2,4,6,8,10,12,14,16" in printed
    written = {path.name for path in (folder / "runs" / "results").iterdir()}
    assert written == {"frequencies_shapes_smoke.json", "figure3_shapes_smoke.png"}


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_table(folder, name):
    printed = run(folder, name)
    assert "ours, shapes smoke" in printed and "(1 seed)" in printed


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_figure(folder, name):
    path = Path(run(folder, name).splitlines()[-1])
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_beta_search_and_the_row_that_reads_it(tmp_path, folder):
    shared = f"--data_dir={folder / 'data'}"
    run(tmp_path, "beta_search", "--multiples=1", "--variant=rates_8_16", shared)
    assert "searched | " in run(tmp_path, "table3_propagation", shared).replace("not run", "")


@pytest.mark.slow
def test_report(folder, tmp_path):
    run(folder, "table6_cityscapes")
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- results: begin -->\nold\n<!-- results: end -->\nafter\n")
    results = folder / "runs" / "results"
    subprocess.run(
        [
            *(sys.executable, "-m", "experiments.report"),
            *(f"--readme={readme}", f"--results_dir={results}"),
        ],
        cwd=ROOT,
        check=True,
    )
    text = readme.read_text()
    assert text.startswith("before\n<!--") and text.endswith("-->\nafter\n") and "old" not in text
    assert "ours, cityscapes paper | ours, shapes smoke" in text
