"""What training refuses before its first step, for training itself and for `--check_only`."""

from pathlib import Path

import keras

from dilated_affinity.config import Config
from dilated_affinity.datasets.classes import IGNORE_LABEL, ClassTable
from dilated_affinity.datasets.registry import Source, label_readers, load_source
from dilated_affinity.datasets.skipping import SkippingSource
from dilated_affinity.errors import DataError
from dilated_affinity.inference.refiners.decoder_stride import decoder_resize, divided_rates
from dilated_affinity.run_dir.layout import CONFIG_FILE, given_statistics, refuse_other_settings
from dilated_affinity.runtime.distribution import check_batch_split, find_replicas
from dilated_affinity.runtime.progress import progress
from dilated_affinity.training.class_weights import read_class_weights
from dilated_affinity.training.initial_model import find_initial_model, load_initial_weights
from dilated_affinity.training.run_model import build_model
from dilated_affinity.training.tensorboard import check_tensorboard


def load_sources(config: Config) -> tuple[Source, Source]:
    """The training and the validation split of a run.

    Raises:
        ConfigError: There is no such data set or split, or none to calibrate on.
        DataError: It is not there or incomplete, or nobody could train on it: it has one class, or
            a split has no example, or no pixel that is not void.
    """
    sources = []
    for split in (config.train_split, config.val_split):
        source = load_source(config.dataset, split, config.data_dir)
        if split == config.train_split and config.on_bad_example == "skip":
            source = SkippingSource(source)
        if source.classes.num_classes < 2:
            raise DataError(
                f"{config.dataset}: training needs at least 2 classes, void not counted; what is "
                "not of a class, such as the background, is one, too. "
                f"Received: the only class {source.classes.names[0]!r}"
            )
        if not len(source):
            raise DataError(f"{config.dataset}: the split {split} has no examples.")
        if not any((read() != IGNORE_LABEL).any() for read in label_readers(source)):
            raise DataError(
                f"{config.dataset}: in the labels of the split {split} every pixel is void."
            )
        sources.append(source)
    if config.calibration_split not in (None, config.train_split):
        load_source(config.dataset, config.calibration_split, config.data_dir)
    return tuple(sources)


def read_all(config: Config):
    """Reads every example that training reads, and leaves out those that it would.

    Raises:
        ConfigError: As `load_sources`.
        DataError: As `load_sources`, or for an example.
    """
    for source in load_sources(config):
        for index in progress(range(len(source)), "reading again"):
            _ = source[index]


def check_run(config: Config, classes: ClassTable, model_dir=None):
    """Raises what training would raise for the settings of a run on data with these classes.

    Only what has to be downloaded, and whether `model_dir` can be written, is not tried.

    Args:
        config: The run's settings.
        classes: The classes of the data set.
        model_dir: The run's folder; None where it is not known yet.

    Raises:
        ConfigError: Settings make no sense together, or on this machine.
        DataError: A file that they name cannot be read, or is of something else.
        RunError: `model_dir` is of a run of other settings, or statistics are of other rates.
    """
    check_batch_split(config, find_replicas(config.num_replicas))
    if model_dir is not None and (Path(model_dir) / CONFIG_FILE).is_file():
        refuse_other_settings(Path(model_dir), config)
    if config.tensorboard:
        check_tensorboard()
    if config.affinity_rates is not None and config.statistics:
        given_statistics(config, config.statistics)
    if config.class_weights not in ("none", "balanced"):
        read_class_weights(config.class_weights, classes)
    initial = find_initial_model(config.initial_model) if config.initial_model else None
    downloaded = config.backbone_weights == "imagenet"
    keep = "none" if downloaded or initial else config.backbone_weights
    model = build_model(config.replace(backbone_weights=keep), classes.num_classes)
    if initial is not None:
        load_initial_weights(model, initial, classes)
    if config.train_propagation:
        divided_rates(config.affinity_rates, decoder_resize(model).source_stride)
    keras.backend.clear_session()
