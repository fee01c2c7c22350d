"""Loading the model of a run."""

import os
from pathlib import Path

import keras

import dilated_affinity.affinity.learned
import dilated_affinity.baselines.aaf  # noqa: F401 - both register a layer of saved models
from dilated_affinity.config import Config
from dilated_affinity.errors import RunError, first_line
from dilated_affinity.run_dir.layout import CONFIG_FILE, chosen_checkpoint, load_calibration
from dilated_affinity.run_dir.model import at_output_stride


def load_run(
    model_dir: str | os.PathLike, calibrated=True, checkpoint: str = "best", **overrides
) -> tuple[Config, keras.Model]:
    """Loads the settings and the model of a run, at its evaluation output stride.

    Args:
        model_dir: The run's folder.
        calibrated: Whether to take the settings of the refinement that calibration or a search
            saved in the run, rather than those that it was trained with. Defaults to True.
        checkpoint: `"best"`, that of the highest validation mIoU, or `"last"`, the newest. On the
            split that chose the best, its scores are slightly too high. Defaults to `"best"`.
        **overrides: Settings to change, such as `eval_output_stride`.

    Returns:
        `(config, model)`; the model predicts a dict of float32 logits, `"semantic"`
        (B, H, W, C) and, for a run with affinity, `"affinity"` (B, H, W, 8|R|).

    Raises:
        ConfigError: For another `checkpoint`, or a setting that does not exist or is out of range.
        RunError: If the folder holds no run, or no such checkpoint yet.
        DataError: If its files are damaged.
    """
    model_dir = Path(model_dir)
    if not (model_dir / CONFIG_FILE).is_file():
        raise RunError(f"{model_dir}: no run here ({CONFIG_FILE} is missing).")
    config = Config.load(model_dir / CONFIG_FILE)
    calibration = load_calibration(model_dir) if calibrated else None
    if calibration is not None:
        config = config.replace(**calibration["settings"])
    config = config.replace(**overrides)
    path, _ = chosen_checkpoint(model_dir, checkpoint)
    return config, at_output_stride(load_checkpoint(path), config)


def load_checkpoint(path: str | os.PathLike) -> keras.Model:
    """Loads the model of a checkpoint as it was trained, with the layers of its objective.

    Raises:
        RunError: If Keras cannot load it.
    """
    try:
        return keras.models.load_model(path, compile=False)
    except Exception as error:  # whatever Keras raises for layers that it does not know
        raise RunError(f"{path}: cannot load this model: {first_line(error)}") from error
