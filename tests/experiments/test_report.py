"""The results in the READMEs are those of the records, and the command lists all experiments."""

import re
import sys

import pytest
from helpers.commands import ROOT, run_module

from dilated_affinity.errors import ConfigError, DataError
from experiments import report, run

VERSION_0_1 = ROOT / "experiments" / "results" / "version_0.1.0.md"


@pytest.mark.parametrize(
    "path", [*report.READMES, VERSION_0_1], ids=lambda path: str(path.relative_to(ROOT))
)
def test_committed_results_are_those_of_the_records(path):
    folder = report.RESULTS / "0.1.0" if path == VERSION_0_1 else report.RESULTS
    text = path.read_text(encoding="utf-8")
    assert report.with_results(text, folder) == text
    emptied, count = re.subn(
        r"(<!-- results: \w+ -->\n).*?(<!-- end -->)", r"\1\2", text, flags=re.S
    )
    assert count == text.count("<!-- results: ") > 0
    assert report.with_results(emptied, folder) == text


def test_every_miou_table_of_the_readme_is_generated():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    by_hand = re.sub(r"<!-- results: \w+ -->.*?<!-- end -->", "", text, flags=re.S)
    assert not re.search(r"^\| predicted[^|]*\| \d\d\.\d\d", by_hand, re.M)


def test_unknown_record_is_refused(tmp_path):
    text = "<!-- results: nothing -->\n<!-- end -->"
    with pytest.raises(DataError, match="nothing.json: expected this record .* Received: neither"):
        report.with_results(text, tmp_path)


@pytest.mark.parametrize("seeds", [["a"], ["1", "1"], []])
def test_seeds_that_make_no_sense_are_refused(seeds):
    with pytest.raises(ConfigError, match="--seeds must"):
        run.parse_seeds(seeds)


def test_overview_lists_every_table_figure_and_other_command():
    lines = run.overview().splitlines()
    expected = [f"table{number}" for number in range(1, 7)]
    expected += ["figure1", "figure3", "figure4", "beta_search", *run.MODULES]
    assert [line.split()[0] for line in lines if line.startswith("  ")] == expected
    assert "  Table 5, methods that use structure" in next(
        line for line in lines if "table5" in line
    )


def test_help_of_a_table_has_the_papers_numbers_and_the_flags():
    done = run_module("experiments.run", "table6", "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("table6: Table 6, Cityscapes\n")
    assert "+ dilated affinity, 10 iterations  78.70" in done.stdout
    assert "--scale=paper|small|medium|animals|animals_800|smoke" in done.stdout
    assert "Default: cityscapes." in done.stdout and "--index" not in done.stdout


def test_unknown_command_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run.py"])
    with pytest.raises(SystemExit) as caught:
        run.main(["tabel5"])
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("experiments.run: no such command: 'tabel5'.")
    assert "table5" in printed.err
