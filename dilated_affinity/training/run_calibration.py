"""Calibration of a run: on which images, and what its folder keeps of it."""

from pathlib import Path

import keras

from dilated_affinity.config import Config
from dilated_affinity.datasets.registry import Source, load_source
from dilated_affinity.evaluation.calibration import IMAGES, calibrate
from dilated_affinity.inference.refinement import Refinement
from dilated_affinity.run_dir.layout import load_calibration, save_calibration


def is_calibrated(model_dir: Path, step: int) -> bool:
    """Whether the folder holds settings fitted to the model of a step, by calibration or search."""
    found = load_calibration(model_dir)
    return found is not None and found.get("step") == step


def calibrate_run(
    model_dir: Path,
    config: Config,
    model: keras.Model,
    step: int,
    source: Source | None = None,
    images=IMAGES,
) -> str:
    """Calibrates a run's model and keeps the settings in its folder, for every command to use.

    Args:
        model_dir: The run's folder.
        config: The run's settings, whose `calibration_split` is not None.
        model: The model, at its evaluation output stride.
        step: Step of the model.
        source: The training examples, loaded when None.
        images: How many images to take.

    Returns:
        One line of what was found.

    Raises:
        ConfigError: As `calibrate`.
        DataError: If the images cannot be read.
        RunError: If the folder cannot be written.
    """
    split = config.calibration_split
    if source is None or split != config.train_split:
        source = load_source(config.dataset, split, config.data_dir)
    found = calibrate(model, source, Refinement.from_config(config), images)
    fitted = {"by": "calibration", "split": split, "step": step}
    save_calibration(model_dir, {**fitted, **found.to_json()})
    return f"calibrated on {found.images} images of {split}: {found}"


def save_searched(model_dir: Path, refinement: Refinement, split: str, step: int):
    """Keeps the settings that a search found best in a run's folder, as calibration does.

    Raises:
        RunError: If the folder cannot be written.
    """
    content = {"by": "search", "split": split, "step": step, "settings": refinement.to_config()}
    save_calibration(model_dir, content)
