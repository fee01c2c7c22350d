"""Every experiment at smoke scale, from the command line; the tests share their runs.

All but one have the small network of the tests, which is built and compiled ten times as fast.
"""

from pathlib import Path

import pytest
from helpers.commands import run_module
from helpers.forked import run_forked

from experiments.paper_tables import TABLES

FIGURES = ("figure1", "figure4")
SMALLER = ("--backbone=tiny", "--noseparable")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("smoke")


def flags(folder, runs_dir):
    places = (f"--data_dir={folder / 'data'}", f"--runs_dir={runs_dir}")
    return "--dataset=shapes", "--scale=smoke", *places


def run(folder, name, *arguments, runs_dir=None):
    given = flags(folder, runs_dir or folder / "runs")
    done = run_forked("experiments.run", name, *given, *SMALLER, *arguments, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_as_a_user_types_it(folder, tmp_path):
    """With the backbone of the scale."""
    done = run_module("experiments.run", "table3", *flags(folder, tmp_path))
    assert done.returncode == 0, done.stderr
    assert "ours, shapes smoke" in done.stdout and "(1 seed)" in done.stdout
    (record,) = (tmp_path / "results").iterdir()
    assert '"backbone": "mobilenet_v2_0.35"' in record.read_text()


def test_figure3(folder):
    printed = run(folder, "figure3")
    assert "shapes_smoke, 8 label maps, rates 2,4,6,8,10,12,14,16" in printed
    written = {path.name for path in (folder / "runs" / "results").iterdir()}
    assert {"frequencies_shapes_smoke.json", "figure3_shapes_smoke.png"} <= written


@pytest.mark.parametrize("name", TABLES)
def test_table(folder, name):
    printed = run(folder, name)
    assert "ours, shapes smoke" in printed and "(1 seed)" in printed


@pytest.mark.parametrize("name", FIGURES)
def test_figure(folder, name):
    path = Path(run(folder, name).splitlines()[-1])
    assert path.read_bytes().startswith(b"\x89PNG")


def test_beta_search_fills_its_row(folder, tmp_path):
    run(folder, "beta_search", "--multiples=1", "--variant=rates_8_16", runs_dir=tmp_path)
    printed = run(folder, "table3", runs_dir=tmp_path)
    assert "searched | " in printed.replace("not run", "")


def test_report(folder, tmp_path):
    run(folder, "table6")
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- results: paper -->\nold\n<!-- end -->\nafter\n")
    results = folder / "runs" / "results"
    done = run_forked("experiments.run", "report", f"--readme={readme}", f"--results_dir={results}")
    assert done.returncode == 0, done.stderr
    text = readme.read_text()
    assert text.startswith("before\n<!--") and text.endswith("-->\nafter\n") and "old" not in text
    assert "ours, cityscapes paper | ours, shapes smoke" in text
