"""Calibration of a run: on which images, and what is saved in its folder."""

from pathlib import Path

import keras
from absl import logging

from dilated_affinity.config import Config
from dilated_affinity.datasets.registry import Source, load_source
from dilated_affinity.evaluation.calibration import IMAGES, calibrate
from dilated_affinity.evaluation.search import settings_as_flags
from dilated_affinity.inference.refinement import Refinement
from dilated_affinity.run_dir.checkpoints import read_state
from dilated_affinity.run_dir.layout import (
    BEST,
    chosen_checkpoint,
    load_calibration,
    save_calibration,
)
from dilated_affinity.run_dir.load import load_checkpoint, load_run
from dilated_affinity.runtime.distribution import broadcast, on_own_devices
from dilated_affinity.training.objectives.affinity import LEARNED


def calibrate_best(model_dir: Path, config: Config, source: Source):
    """Calibrates the refinement of a run's best model, unless that was done before.

    In several processes all must call this together; the first one computes.

    Args:
        model_dir: The run's folder.
        config: The run's settings.
        source: The training examples.

    Raises:
        DataError: If the model or the images cannot be read.
        RunError: If the folder cannot be written.
    """
    if config.calibration_split is None and not config.train_refinement:
        return

    def calibrate_once():
        step = read_state(model_dir / BEST).step
        # A search or `calibrate_main` may have saved settings for the last checkpoint.
        if is_calibrated(model_dir, step, chosen_checkpoint(model_dir, "last")[1].step):
            return
        given = Refinement.from_config(config)
        if config.train_refinement:
            layer = load_checkpoint(model_dir / BEST).get_layer(LEARNED)
            given = given.replace(**layer.settings())
            logging.info("learned in training: %s", settings_as_flags(given))
        if config.calibration_split is None:
            _save(model_dir, "training", config.train_split, step, given)
            return
        _, model = load_run(model_dir, calibrated=False)
        logging.info("%s", calibrate_run(model_dir, config, model, step, source, given=given))

    with on_own_devices():
        broadcast(calibrate_once)


def is_calibrated(model_dir: Path, *steps: int) -> bool:
    """Returns whether the folder holds settings that were fitted to the model of one of the steps.

    If they are of another model, they are about to be replaced, and the log says so.
    """
    found = load_calibration(model_dir)
    if found is None or found.get("step") in steps:
        return found is not None
    by, at = found.get("by", "calibration"), found.get("step")
    logging.info("the refinement that a %s saved at step %s is replaced", by, at)
    return False


def calibrate_run(
    model_dir: Path,
    config: Config,
    model: keras.Model,
    step: int,
    source: Source | None = None,
    images=IMAGES,
    given: Refinement | None = None,
) -> str:
    """Calibrates a run's model and saves the settings in its folder, for every command to use.

    Args:
        model_dir: The run's folder.
        config: The run's settings, whose `calibration_split` is not None.
        model: The model, at its evaluation output stride.
        step: Step of the model.
        source: The training examples, loaded when None.
        images: How many images to take.
        given: The refinement to compare with, and whose method and iterations to keep; None for
            that of the config.

    Returns:
        One line that says what was found.

    Raises:
        ConfigError: As `calibrate`.
        DataError: If the images cannot be read.
        RunError: If the folder cannot be written.
    """
    split = config.calibration_split
    if source is None or split != config.train_split:
        source = load_source(config.dataset, split, config.data_dir)
    found = calibrate(model, source, given or Refinement.from_config(config), images)
    fitted = {"by": "calibration", "split": split, "step": step}
    save_calibration(model_dir, {**fitted, **found.to_json()})
    return f"calibrated on {found.images} images of {split}: {found}"


def save_searched(model_dir: Path, refinement: Refinement, split: str, step: int):
    """Saves the settings that a search found best in a run's folder, as calibration does.

    Raises:
        RunError: If the folder cannot be written.
    """
    _save(model_dir, "search", split, step, refinement)


def _save(model_dir, by, split, step, refinement):
    content = {"by": by, "split": split, "step": step, "settings": refinement.to_config()}
    save_calibration(model_dir, content)
