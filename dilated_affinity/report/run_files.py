"""What training and evaluation have left in a run's folder."""

import csv
import dataclasses
import json
import os
from pathlib import Path

from dilated_affinity.checkpoints import read_state
from dilated_affinity.errors import DataError
from dilated_affinity.evaluation import REFINE_WITH
from dilated_affinity.run_folder import BEST, LOG_FILE, load_calibration


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """The log and the evaluations of a run.

    Attributes:
        model_dir: The run's folder.
        log: Rows of `log.csv`, text by column; empty where there is none.
        calibration: What calibration or a search has fitted to the best model; None without.
        evaluations: What `eval_main` has measured of the best model, by the affinity it propagated
            with; absent where it has not been run since that model was found.
    """

    model_dir: Path
    log: list[dict]
    evaluations: dict[str, dict]
    calibration: dict | None = None

    @classmethod
    def read(cls, model_dir: str | os.PathLike):
        """Reads what there is in a run's folder.

        Raises:
            DataError: If a file is there but damaged.
        """
        model_dir = Path(model_dir)
        evaluations = {kind: _json(model_dir / f"evaluation_{kind}.json") for kind in REFINE_WITH}
        evaluations = {kind: content for kind, content in evaluations.items() if content}
        calibration = load_calibration(model_dir)
        if evaluations or calibration:
            # A better model may have been found since.
            best = read_state(model_dir / BEST).step
            evaluations = {
                kind: content
                for kind, content in evaluations.items()
                if content.get("step") == best
            }
            if calibration and calibration.get("step") != best:
                calibration = None
        return cls(model_dir, _rows(model_dir / LOG_FILE), evaluations, calibration)


def _rows(path):
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise DataError(f"{path}: not the log of a run: {error}") from None


def _json(path):
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"{path}: not an evaluation: {error}") from None
    if not isinstance(content, dict) or "mean_iou" not in content:
        raise DataError(f"{path}: not an evaluation: mean_iou is missing.")
    return content
