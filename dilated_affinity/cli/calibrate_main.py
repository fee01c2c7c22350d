"""Fits the refinement's settings to the best model of a run, as training does at its end.

    calibrate_main --model_dir=runs/camvid

It finds the threshold tau and steepness mu of the affinity's sigmoid, the weight lambda of a
pixel's own prediction, and whether to average both directions of a pair, for the highest mIoU after
the run's iterations of propagation. Every other command then uses these settings; with
--nocalibrated it uses those that the run was trained with. The fit uses training images, not those
of the validation split, unless --calibrate names it.
"""

from pathlib import Path

from absl import flags

from dilated_affinity.cli import app, config_flags
from dilated_affinity.errors import ConfigError
from dilated_affinity.evaluation.calibration import IMAGES
from dilated_affinity.run_dir.describe import log_run_summary
from dilated_affinity.run_dir.layout import CALIBRATION_FILE, chosen_checkpoint
from dilated_affinity.run_dir.load import load_run
from dilated_affinity.training.run_calibration import calibrate_run

_given = config_flags.define(
    ("data_dir", "calibrate", "eval_output_stride", "propagation_iterations")
)
_MODEL_DIR = flags.DEFINE_string("model_dir", None, "Folder of the run.")
_CHECKPOINT = config_flags.define_checkpoint()
_IMAGES = flags.DEFINE_integer(
    "images", IMAGES, "Number of images to take, drawn evenly from all.", lower_bound=1
)


def _calibrate():
    model_dir = Path(app.required(_MODEL_DIR.value, "model_dir"))
    config, model = load_run(model_dir, False, _CHECKPOINT.value, **_given())
    if config.calibration_split is None:
        raise ConfigError(
            "calibration needs a run with affinity, iterations of propagation, and images: "
            "--calibrate=training, or a split. "
            f"Received: rates={config.rates!r}, refine={config.refine!r}, "
            f"propagation_iterations={config.propagation_iterations}, "
            f"calibrate={config.calibrate!r}"
        )
    step = chosen_checkpoint(model_dir, _CHECKPOINT.value)[1].step
    images = f"up to {_IMAGES.value} images of {config.calibration_split}"
    work = f"calibration of the {_CHECKPOINT.value} checkpoint"
    num_classes = model.get_layer("semantic_logits").filters
    log_run_summary(config, model, num_classes, images, work, model_dir / CALIBRATION_FILE)
    found = calibrate_run(model_dir, config, model, step, images=_IMAGES.value)
    print(f"{model_dir}: {found}")


def main():
    """Entry point of the console script."""
    app.run(_calibrate)


if __name__ == "__main__":
    main()
