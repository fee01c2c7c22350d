"""Gathers a finished run into one JSON of `experiments/results/`.

    eval_main --model_dir=runs/camvid
    eval_main --model_dir=runs/camvid --refine_with=ground_truth
    python experiments/record_run.py --model_dir=runs/camvid --name=camvid_mobilenet_v2

It holds the settings, the seed, the log, both evaluations, package versions and the hardware.
Folders of this machine are left out.
"""

import csv
import importlib.metadata
import json
import os
import platform
from pathlib import Path

from absl import flags

from dilated_affinity.cli import app
from dilated_affinity.errors import DataError
from dilated_affinity.evaluation import REFINE_WITH
from dilated_affinity.files import write_atomically
from dilated_affinity.training import CONFIG_FILE, LOG_FILE

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("tensorflow", "keras", "numpy", "tensorflow-datasets", "opencv-python-headless")
PLACES = ("data_dir", "statistics")

_MODEL_DIR = flags.DEFINE_string("model_dir", None, "Folder of the run.")
_NAME = flags.DEFINE_string("name", None, "Name of the JSON file, without .json.")


def _record():
    model_dir = Path(app.required(_MODEL_DIR.value, "model_dir"))
    output = RESULTS / f"{app.required(_NAME.value, 'name')}.json"
    content = _read(model_dir / CONFIG_FILE)
    settings = {name: value for name, value in content["config"].items() if name not in PLACES}
    settings["backbone_weights"] = Path(settings["backbone_weights"]).name
    with open(model_dir / LOG_FILE, encoding="utf-8") as file:
        log = list(csv.DictReader(file))
    record = {
        "package_version": content["package_version"],
        "config": settings,
        "packages": _versions(),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count()},
        "log": log,
        "evaluation": {name: _read(model_dir / f"evaluation_{name}.json") for name in REFINE_WITH},
    }
    write_atomically(output, (json.dumps(record, indent=1) + "\n").encode())
    print(output)


def _versions():
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _read(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror}") from None


if __name__ == "__main__":
    app.run(_record)
