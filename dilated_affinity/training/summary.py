"""Log messages of a run before its first step."""

import keras
from absl import logging

from dilated_affinity.config import Config
from dilated_affinity.datasets.registry import Source
from dilated_affinity.run_dir.checkpoints import TrainingState
from dilated_affinity.run_dir.describe import log_run_summary


def log_training_summary(
    config: Config,
    model: keras.Model,
    source: Source,
    validation_images: int,
    state: TrainingState,
    model_dir,
    devices: int,
):
    """Logs data, model and steps of a run, and warns if batch norm keeps its initial statistics.

    Args:
        config: The run's settings.
        model: The model.
        source: The training examples.
        validation_images: Number of validation examples.
        state: Where the run begins or continues.
        model_dir: The run's folder.
        devices: Number of devices that share each batch.
    """
    left = config.head_batch_norm_momentum**config.train_steps
    if left > 0.01:
        logging.warning(
            "head_batch_norm_momentum=%g is for longer schedules: after %d steps the "
            "statistics of ASPP and decoder still hold %.0f %% of their initial values.",
            config.head_batch_norm_momentum,
            config.train_steps,
            100 * left,
        )
    untrained = config.backbone_weights == "none" and not config.initial_model
    if untrained and config.batch_norm == "frozen":
        logging.warning(
            "batch_norm=frozen keeps the backbone's statistics, which with backbone_weights=none "
            "are of no data. Take trained weights, or batch_norm=sync."
        )
    log_run_summary(
        config,
        model,
        source.classes.num_classes,
        f"{len(source)} training and {validation_images} validation images",
        f"steps {state.step} to {config.train_steps} of batch {config.batch_size}, "
        f"crop {config.crop_size}",
        model_dir,
        devices,
    )
