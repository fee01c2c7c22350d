"""The files of a run that its report shows."""

import dataclasses
import json
import os
from pathlib import Path

from dilated_affinity.errors import DataError
from dilated_affinity.evaluation.evaluate import AFFINITY_SOURCES
from dilated_affinity.inference.refiners import RENAMED
from dilated_affinity.run_dir.layout import (
    CHECKPOINTS,
    chosen_checkpoint,
    load_calibration,
    read_log,
)


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """The log and the evaluations of a run.

    Attributes:
        model_dir: The run's folder.
        log: Rows of `log.csv`, text by column; empty where there is none.
        evaluations: The evaluations of the checkpoint by `eval_main`, by `affinity_source`, as far
            as there are any.
        checkpoint: `"best"` or `"last"`, the checkpoint that is reported.
        step: Its training steps; None if there is no checkpoint yet.
        calibration: The calibration or search of the checkpoint; None without.
    """

    model_dir: Path
    log: list[dict]
    evaluations: dict[str, dict]
    checkpoint: str = "best"
    step: int | None = None
    calibration: dict | None = None

    @classmethod
    def read(cls, model_dir: str | os.PathLike, checkpoint: str = "best"):
        """Reads the files of a run's folder, as far as they exist.

        Args:
            model_dir: The run's folder.
            checkpoint: As for `load_run`.

        Raises:
            DataError: If a file is damaged.
        """
        model_dir = Path(model_dir)
        evaluations = {kind: _evaluation(model_dir, kind) for kind in AFFINITY_SOURCES}
        step = None
        if (model_dir / CHECKPOINTS).is_dir():
            step = chosen_checkpoint(model_dir, checkpoint)[1].step
        # Training may have continued or found a better model since.
        evaluations = {
            kind: content
            for kind, content in evaluations.items()
            if content and content.get("step") == step
        }
        calibration = load_calibration(model_dir)
        if calibration is not None and calibration.get("step") != step:
            calibration = None
        return cls(model_dir, read_log(model_dir), evaluations, checkpoint, step, calibration)


_FILES_OF_0_1 = {"predicted": "prediction"}
"""Evaluations in the file names of version 0.1.0, where they differ."""


def _evaluation(model_dir, kind):
    """An evaluation, or None; one of version 0.1.0 as this version would have written it."""
    content = _json(model_dir / f"evaluation_{kind}.json")
    if content is None and kind in _FILES_OF_0_1:
        content = _json(model_dir / f"evaluation_{_FILES_OF_0_1[kind]}.json")
    if content is not None and "refine" not in content:
        content["refine"] = RENAMED[content.get("refinement", "exact")]
    return content


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
