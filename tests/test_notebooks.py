"""The notebooks run from a clean kernel, as committed but for the number of steps."""

import os
import re
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
NAMES = ("quickstart", "own_folder")


def read(name):
    nbformat = pytest.importorskip("nbformat")
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def text_of(notebook):
    """Everything that the code cells printed."""
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    return "".join(out.get("text", "") for out in outputs)


def pictures_of(notebook):
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    return sum("image/png" in out.get("data", {}) for out in outputs)


def run(name, folder, steps, replacements=()):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = read(name)
    code = "".join(cell.source for cell in notebook.cells)
    for old, new in ((re.search(r"steps = \d+", code)[0], f"steps = {steps}"), *replacements):
        assert old in code
        for cell in notebook.cells:
            cell.source = cell.source.replace(old, new)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    resources = {"metadata": {"path": str(folder)}}
    client = nbclient.NotebookClient(notebook, timeout=600, resources=resources)
    return client.execute(env=environment)


@pytest.mark.parametrize("name", NAMES)
def test_no_outputs_are_committed_and_code_compiles(name):
    notebook = read(name)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
            compile(cell.source.replace("%matplotlib inline", ""), name, "exec")


@pytest.mark.slow
def test_quickstart(tmp_path):
    notebook = run("quickstart", tmp_path, steps=4)
    printed = text_of(notebook)
    assert "20 images; columns: iterations of propagation" in printed
    assert re.search(r"(9\d\.\d\d|100\.00) % of the pixels as above", printed)
    assert pictures_of(notebook) == 8
    assert (tmp_path / "runs" / "quickstart" / "export" / "saved_model.pb").is_file()


@pytest.mark.slow
def test_own_folder(tmp_path):
    notebook = run("own_folder", tmp_path, steps=3)
    printed = text_of(notebook)
    assert "3 steps, best validation mIoU" in printed
    assert "3 images; columns: iterations of propagation" in printed
    assert pictures_of(notebook) == 1
