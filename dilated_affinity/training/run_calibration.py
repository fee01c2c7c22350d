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
    CALIBRATION_FILE,
    CONFIG_FILE,
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
        if config.affinity_rates is not None and load_calibration(model_dir) is not None:
            logging.warning("%s stays in force; --nocalibrated ignores it", _file(model_dir))
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
            _save(model_dir, "training", config.train_split, step, given.to_config())
            return
        _, model = load_run(model_dir, calibrated=False)
        logging.info("%s", calibrate_run(model_dir, config, model, step, source, given=given))

    with on_own_devices():
        broadcast(calibrate_once)


def is_calibrated(model_dir: Path, *steps: int) -> bool:
    """Returns whether the folder holds settings that were fitted to the model of one of the steps.

    If they are of another model, or were fitted to a refinement that the run no longer has, they
    are about to be replaced, and the log says so. Those of a search are kept, as its user chose
    them.
    """
    found = load_calibration(model_dir)
    if found is None:
        return False
    by, at = found.get("by", "calibration"), found.get("step")
    changed = found.get("run") not in (None, _refinement_of_run(model_dir))
    if at not in steps:
        logging.info("the refinement that a %s saved at step %s is replaced", by, at)
        return False
    if changed and by == "search":
        logging.warning(
            "%s, saved by a search, stays in force though the settings of the refinement have "
            "changed since; --nocalibrated ignores it",
            _file(model_dir),
        )
        return True
    if changed:
        logging.info("the settings of the refinement have changed: it is calibrated again")
    return not changed


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
    _save(model_dir, "calibration", split, step, **found.to_json())
    return f"calibrated on {found.images} images of {split}: {found}"


def save_searched(model_dir: Path, refinement: Refinement, split: str, step: int) -> str:
    """Saves the settings that a search found best in a run's folder, as calibration does.

    Returns:
        One line that says where.

    Raises:
        RunError: If the folder cannot be written.
    """
    settings = {**refinement.to_config(), "refine": refinement.variant}
    if refinement.variant == "propagation_early_stop":
        settings["stop_patience"] = refinement.stop.patience
        settings["stop_tolerance"] = refinement.stop.tolerance
    _save(model_dir, "search", split, step, settings)
    return f"saved in {_file(model_dir)}, which every command uses (--nocalibrated ignores it)"


def _save(model_dir, by, split, step, settings, **more):
    content = {"by": by, "split": split, "step": step, "run": _refinement_of_run(model_dir)}
    save_calibration(model_dir, {**content, "settings": settings, **more})


def _refinement_of_run(model_dir):
    """The settings that the run itself has, without those that were fitted."""
    refinement = Refinement.from_config(Config.load(model_dir / CONFIG_FILE))
    return {**refinement.to_config(), "refine": refinement.variant}


def _file(model_dir):
    return model_dir / CALIBRATION_FILE
