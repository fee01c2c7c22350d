"""Executes the notebooks; as a script, writes their outputs anew.

    PYTHONPATH=tests python -m helpers.notebooks quickstart own_folder

Outputs that are kept are small, so that a repository can hold them and show them: what cells print,
and pictures with fewer pixels or colours. Messages on standard error, progress bars and paths are
not kept.
"""

import base64
import io
import os
import re
import sys
import tempfile
from pathlib import Path

import nbclient
import nbformat
from PIL import Image

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
LARGEST = 200_000
"""Bytes of a notebook with its outputs."""

WIDEST = 800
"""Pixels of a picture."""


def read(name):
    """Returns a notebook as committed."""
    return nbformat.read(path_of(name), as_version=4)


def path_of(name):
    return NOTEBOOKS / f"{name}.ipynb"


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs_of(notebook):
    """All outputs of all cells in one list."""
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def printed(notebook):
    """Everything that the code cells wrote to standard output."""
    return "".join(each.text for each in outputs_of(notebook) if each.get("name") == "stdout")


def pictures(notebook):
    """The pictures that the code cells show, as PIL images."""
    found = []
    for output in outputs_of(notebook):
        data = output.get("data", {})
        encoded = data.get("image/png") or data.get("image/jpeg")
        if encoded:
            found.append(Image.open(io.BytesIO(base64.b64decode(encoded))))
    return found


def execute(name, folder, replacements=()):
    """Runs a notebook in a folder, on the CPU.

    Args:
        name: Its file's name without the suffix.
        folder: The working folder of its kernel.
        replacements: Pairs of a regular expression, which must occur once in its code, and a text.

    Returns:
        The notebook with its new outputs.
    """
    notebook = read(name)
    for pattern, text in replacements:
        count = sum(len(re.findall(pattern, cell.source)) for cell in code_cells(notebook))
        assert count == 1, f"{pattern}: {count} times in the code of {name}"
        for cell in code_cells(notebook):
            cell.source = re.sub(pattern, text, cell.source)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    client = nbclient.NotebookClient(
        notebook, timeout=None, record_timing=False, resources={"metadata": {"path": str(folder)}}
    )
    return client.execute(env=environment)


def keep_small_outputs(notebook):
    """Leaves out of an executed notebook what is not kept, in place."""
    for cell in code_cells(notebook):
        cell.outputs = [output for output in cell.outputs if is_kept(output)]
        for output in cell.outputs:
            if "data" in output and ("image/png" in output.data or "image/jpeg" in output.data):
                output.data = small_picture(output.data)
    notebook.metadata.pop("widgets", None)
    notebook.metadata.language_info = {"name": "python"}


def is_kept(output):
    is_bar = "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    return output.get("name") != "stderr" and not is_bar


def small_picture(data):
    """The data of an output with one picture, as PNG or JPEG, whichever is smaller."""
    encoded = data.get("image/png") or data["image/jpeg"]
    picture = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    if picture.width > WIDEST:
        height = round(picture.height * WIDEST / picture.width)
        picture = picture.resize((WIDEST, height), Image.Resampling.LANCZOS)
    drawn = picture.quantize(64)
    ways = {
        "image/png": saved(drawn, "PNG", optimize=True),
        "image/jpeg": saved(picture, "JPEG", quality=80, optimize=True),
    }
    kind = min(ways, key=lambda name: len(ways[name]))
    text = {"text/plain": data["text/plain"]} if "text/plain" in data else {}
    return {**text, kind: base64.b64encode(ways[kind]).decode()}


def saved(picture, image_format, **options):
    file = io.BytesIO()
    picture.save(file, image_format, **options)
    return file.getvalue()


def main(names):
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(name, folder)
        keep_small_outputs(notebook)
        nbformat.write(notebook, path_of(name))
        print(f"{path_of(name).name}: {path_of(name).stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
