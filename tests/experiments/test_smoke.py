"""Every experiment at smoke scale, from the command line; the tests share their runs."""

from pathlib import Path

import pytest
from helpers.commands import run_module

from experiments.paper_tables import TABLES

FIGURES = ("figure1", "figure4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("smoke")


def command(*arguments):
    done = run_module("experiments.run", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(folder, name, *arguments, dataset="shapes"):
    return command(
        name,
        *(f"--dataset={dataset}", "--scale=smoke"),
        *(f"--data_dir={folder / 'data'}", f"--runs_dir={folder / 'runs'}"),
        *arguments,
    )


@pytest.mark.slow
def test_figure3(folder):
    printed = run(folder, "figure3")
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
def test_beta_search_fills_its_row(tmp_path, folder):
    shared = f"--data_dir={folder / 'data'}"
    run(tmp_path, "beta_search", "--multiples=1", "--variant=rates_8_16", shared)
    assert "searched | " in run(tmp_path, "table3", shared).replace("not run", "")


@pytest.mark.slow
def test_report(folder, tmp_path):
    run(folder, "table6")
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- results: paper -->\nold\n<!-- end -->\nafter\n")
    results = folder / "runs" / "results"
    command("report", f"--readme={readme}", f"--results_dir={results}")
    text = readme.read_text()
    assert text.startswith("before\n<!--") and text.endswith("-->\nafter\n") and "old" not in text
    assert "ours, cityscapes paper | ours, shapes smoke" in text
