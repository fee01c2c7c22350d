"""The notebooks run from a clean kernel, as committed but for the amount of work."""

import importlib.util
import re

import pytest

for package in ("nbclient", "ipykernel"):
    # Not imported: in a process with ipykernel, progress is shown as in a notebook.
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed", allow_module_level=True)

from helpers import notebooks  # noqa: E402

NAMES = ("quickstart", "own_folder")
PICTURES = {"quickstart": 8, "own_folder": 1}
LOWEST = {"quickstart": 50, "own_folder": 25}
"""mIoU in % that fewer steps of training do not reach."""


def refined_miou(notebook):
    """The first line of the table of mIoU by iterations, as numbers in %."""
    (row,) = re.findall(r"^ *mIoU +([\d. ]+)$", notebooks.printed(notebook), re.M)
    return [float(value) for value in row.split()]


@pytest.mark.parametrize("name", NAMES)
def test_committed_outputs_are_whole_and_of_one_execution(name):
    notebook = notebooks.read(name)
    cells = notebooks.code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output.output_type for output in notebooks.outputs_of(notebook)}
    assert kinds <= {"stream", "display_data", "execute_result"}
    assert len(notebooks.pictures(notebook)) == PICTURES[name]
    assert max(refined_miou(notebook)) > LOWEST[name]


@pytest.mark.parametrize("name", NAMES)
def test_committed_outputs_are_small_and_of_no_machine(name):
    assert notebooks.path_of(name).stat().st_size < notebooks.LARGEST
    notebook = notebooks.read(name)
    assert max(each.width for each in notebooks.pictures(notebook)) <= notebooks.WIDEST
    for output in notebooks.outputs_of(notebook):
        assert notebooks.is_kept(output)
        text = output.get("text", "") + output.get("data", {}).get("text/plain", "")
        assert not re.search(r"(^|[\s'\"(=])(/|~|[A-Z]:\\)\w", text), text
        assert not re.search(r"\b[IWEF]\d{4} |tensorflow/|cuda|oneDNN", text), text


@pytest.mark.slow
def test_quickstart(tmp_path):
    fewer = (
        (r"steps = \d+", "steps = 4"),
        (r"val\[:20\]", "val[:3]"),
        (r"calibrate\(model, train\)", "calibrate(model, train, images=3)"),
    )
    notebook = notebooks.execute("quickstart", tmp_path, fewer)
    printed = notebooks.printed(notebook)
    assert "3 images; columns: iterations of propagation" in printed
    assert re.search(r"(9\d\.\d\d|100\.00) % of the pixels as above", printed)
    assert len(notebooks.pictures(notebook)) == PICTURES["quickstart"]
    assert (tmp_path / "runs" / "quickstart" / "export" / "saved_model.pb").is_file()


@pytest.mark.slow
def test_own_folder(tmp_path):
    notebook = notebooks.execute("own_folder", tmp_path, [(r"steps = \d+", "steps = 3")])
    printed = notebooks.printed(notebook)
    assert "3 steps, best validation mIoU" in printed
    assert "3 images; columns: iterations of propagation" in printed
    assert len(notebooks.pictures(notebook)) == PICTURES["own_folder"]
