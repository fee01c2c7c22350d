"""JSON records of runs: settings, log, environment and evaluations."""

import csv
import dataclasses
import json
from pathlib import Path

from dilated_affinity.config import Config
from dilated_affinity.errors import DataError
from dilated_affinity.run_dir.layout import CONFIG_FILE, LOG_FILE, load_calibration, trained_on
from dilated_affinity.runtime.files import write_atomically
from dilated_affinity.runtime.system import environment

RESULTS = Path(__file__).parent / "results"
PLACES = ("data_dir", "statistics")
"""Settings that name folders of a machine; records leave them out."""


def run_record(model_dir: Path) -> dict:
    """Settings and log of the run in `model_dir`, with its environment then and now."""
    content = read_json(model_dir / CONFIG_FILE)
    with open(model_dir / LOG_FILE, encoding="utf-8") as file:
        log = list(csv.DictReader(file))
    return {
        "package_version": content["package_version"],
        # By the names of this version, whichever version trained it.
        "config": recorded_settings(dataclasses.asdict(Config.load(model_dir / CONFIG_FILE))),
        "trained_on": trained_on(model_dir),
        "calibration": load_calibration(model_dir),
        **environment(),
        "log": log,
    }


def recorded_settings(settings: dict) -> dict:
    """Settings as records hold them, without folders of a machine."""
    kept = {name: value for name, value in settings.items() if name not in PLACES}
    return {**kept, "backbone_weights": Path(kept["backbone_weights"]).name}


def read_json(path: Path) -> dict:
    """Reads a JSON file; raises `DataError` naming the file where that is impossible."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{path}: not a JSON file: {error}") from None


def write_json(path: Path, content: dict):
    """Writes a JSON file atomically."""
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def record_paths(results_dir: Path, name: str) -> list[Path]:
    """Returns the file of the record of that name, or those of its seeds.

    Raises:
        DataError: If there is neither.
    """
    single = results_dir / f"{name}.json"
    paths = [single] if single.is_file() else sorted(results_dir.glob(f"{name}_seed*.json"))
    if not paths:
        raise DataError(f"{single}: expected this record or those of its seeds. Received: neither")
    return paths
