"""Checks before the first step, for training itself and for `--check_only`."""

from pathlib import Path

import keras

from dilated_affinity.config import Config
from dilated_affinity.datasets.classes import IGNORE_LABEL, ClassTable
from dilated_affinity.datasets.registry import Source, label_readers, load_source
from dilated_affinity.datasets.skipping import SkippingSource
from dilated_affinity.errors import DataError
from dilated_affinity.run_dir.checkpoints import Checkpoints
from dilated_affinity.run_dir.layout import (
    CHECKPOINTS,
    as_begun,
    given_statistics,
    refuse_other_settings,
)
from dilated_affinity.run_dir.model import build_model
from dilated_affinity.runtime.distribution import check_batch_split, find_replicas
from dilated_affinity.runtime.progress import progress
from dilated_affinity.training.class_weights import check_classes_occur, read_class_weights
from dilated_affinity.training.compile import add_objective
from dilated_affinity.training.initial_model import find_initial_model, load_initial_weights
from dilated_affinity.training.objectives.registry import objective_of
from dilated_affinity.training.tensorboard import check_tensorboard


def load_sources(config: Config) -> tuple[Source, Source]:
    """Returns the training and the validation split of a run.

    Raises:
        ConfigError: If there is no such data set or split, or none to calibrate on.
        DataError: If the data set is missing or incomplete, has only one class, or a split has no
            examples or only void pixels, or none of a class with a weight above 0.
    """
    sources = []
    for split in (config.train_split, config.val_split):
        source = load_source(config.dataset, split, config.data_dir)
        if split == config.train_split and config.on_bad_example == "skip":
            source = SkippingSource(source)
        if source.classes.num_classes < 2:
            raise DataError(
                f"{config.dataset}: training needs at least 2 classes, not counting void; the "
                "background is a class as well. "
                f"Received: the only class {source.classes.names[0]!r}"
            )
        if not len(source):
            raise DataError(f"{config.dataset}: the split {split} has no examples.")
        if not any((read() != IGNORE_LABEL).any() for read in label_readers(source)):
            raise DataError(
                f"{config.dataset}: in the labels of the split {split} every pixel is void."
            )
        sources.append(source)
    check_classes_occur(config, sources[0])
    if config.calibration_split not in (None, config.train_split):
        load_source(config.dataset, config.calibration_split, config.data_dir)
    return tuple(sources)


def read_all(config: Config):
    """Reads every example that training reads, and skips those that it would skip.

    Raises:
        ConfigError: As `load_sources`.
        DataError: As `load_sources`, or if an example cannot be used.
    """
    for source in load_sources(config):
        for index in progress(range(len(source)), "reading again"):
            _ = source[index]


def check_run(config: Config, classes: ClassTable, model_dir=None):
    """Raises the errors that training would raise for the settings of a run.

    Downloads, and whether `model_dir` can be written, are not tried.

    Args:
        config: The run's settings.
        classes: The classes of the data set.
        model_dir: The run's folder; None if it is not known yet.

    Raises:
        ConfigError: If settings are not possible together, or on this machine.
        DataError: If a file that they name cannot be read or has other content.
        RunError: If `model_dir` belongs to a run of other settings, or statistics are of other
            rates.
    """
    check_batch_split(config, find_replicas(config.num_replicas))
    begun = False
    if model_dir is not None:
        refuse_other_settings(Path(model_dir), config)
        config = as_begun(Path(model_dir), config)
        begun = bool(Checkpoints(Path(model_dir, CHECKPOINTS)).paths())
    if config.tensorboard:
        check_tensorboard()
    if config.affinity_rates is not None and config.statistics and not begun:
        given_statistics(config, config.statistics)
    if config.class_weights not in ("none", "balanced"):
        read_class_weights(config.class_weights, classes)
    starts_from_model = config.initial_model and not begun
    initial = find_initial_model(config.initial_model) if starts_from_model else None
    downloaded = config.backbone_weights == "imagenet"
    keep = "none" if downloaded or initial or begun else config.backbone_weights
    model = build_model(config.replace(backbone_weights=keep), classes.num_classes)
    model = add_objective(model, config)
    if initial is not None:
        load_initial_weights(model, initial, classes)
    objective_of(config).check(model, config)
    keras.backend.clear_session()
