"""Training: one `model.fit` that can stop and continue, in a folder that says what it holds."""

import dataclasses
import json
import os
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from dilated_affinity.affinity.geometry import format_rates
from dilated_affinity.affinity.loss import AffinityLoss
from dilated_affinity.affinity.statistics import AffinityStatistics
from dilated_affinity.affinity.targets import NOT_A_PAIR
from dilated_affinity.config import Config
from dilated_affinity.datasets.loading import (
    Source,
    data_error_from,
    label_readers,
    load_source,
)
from dilated_affinity.distribution import (
    check_shares,
    file_of_first_process,
    find_replicas,
    first_process_first,
    from_process,
    join_processes,
    on_own_devices,
)
from dilated_affinity.errors import RunError, first_line
from dilated_affinity.evaluation import mean_iou
from dilated_affinity.files import write_atomically
from dilated_affinity.inference import network
from dilated_affinity.losses import SemanticLoss
from dilated_affinity.metrics import AffinityAccuracy, PixelAccuracy
from dilated_affinity.models.deeplab import DeepLabV3Plus
from dilated_affinity.optimizers import MultiplierSGD, WarmupPolynomialDecay
from dilated_affinity.pipeline import training_dataset
from dilated_affinity.progress import progress, watched
from dilated_affinity.version import __version__

CONFIG_FILE = "config.json"
STATISTICS_FILE = "statistics.json"
LOG_FILE = "log.csv"
LATEST = Path("checkpoints", "latest.keras")
BEST = Path("checkpoints", "best.keras")
BEST_NOTE = Path("checkpoints", "best.json")


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """What a run of `train` came to.

    Attributes:
        step: Steps done, over all runs in the folder.
        best_mean_iou: The best validation mIoU so far, without propagation; None before the first.
    """

    step: int
    best_mean_iou: float | None


def build_model(config: Config, num_classes: int, statistics=None) -> keras.Model:
    """The model of a run, with fresh weights as its settings say.

    Args:
        config: The run's settings.
        num_classes: Number of classes of the data set.
        statistics: `AffinityStatistics` for the bias prior; None where there is no affinity head
            or its weights are to be loaded.
    """
    weights = None if config.backbone_weights == "none" else config.backbone_weights
    policy = keras.config.dtype_policy()
    if config.mixed_precision != "none":
        keras.config.set_dtype_policy(f"mixed_{config.mixed_precision}")
    try:
        return _deeplab(config, num_classes, statistics, weights)
    finally:
        keras.config.set_dtype_policy(policy)


def _deeplab(config, num_classes, statistics, weights):
    return DeepLabV3Plus(
        num_classes,
        config.affinity_rates,
        backbone=config.backbone,
        output_stride=config.output_stride,
        weights=weights,
        affinity_bias=None if statistics is None else statistics.bias(),
        batch_norm=config.batch_norm,
        batch_norm_momentum=config.batch_norm_momentum,
        weight_decay=config.weight_decay,
        separable=config.separable,
        filters=config.filters,
        dropout=config.dropout,
        multi_grid=config.multi_grid_factors,
    )


def compile_model(model: keras.Model, config: Config, statistics=None) -> keras.Model:
    """Compiles a model with the recipe's optimizer, losses and progress metrics.

    Args:
        model: A model as `build_model` makes it.
        config: The run's settings.
        statistics: `AffinityStatistics` of the training labels; None without an affinity head.

    Returns:
        The model to train: one with the same layers, weights, optimizer and losses, whose affinity
        logits stand at the decoder's stride. There the affinity loss resizes them itself, which
        takes less time and memory than in the model. Without an affinity head it is `model`.
    """
    schedule = WarmupPolynomialDecay(
        config.learning_rate,
        config.iterations,
        config.power,
        config.warmup_steps,
        config.warmup_learning_rate,
        config.accumulation,
    )
    backbone = {id(variable) for variable in model.get_layer(config.backbone).variables}
    multipliers = {
        variable.path: config.head_multiplier
        for variable in model.trainable_variables
        if id(variable) not in backbone
    }
    optimizer = MultiplierSGD(
        schedule,
        momentum=config.momentum,
        multipliers=multipliers,
        gradient_accumulation_steps=config.accumulation if config.accumulation > 1 else None,
    )
    _compile(model, config, optimizer, statistics)
    if statistics is None:
        _make_trackers(model)
        return model
    resize = model.get_layer("affinity")
    # In the place of the resize, or Keras would order the variables otherwise than in the whole
    # model; under JAX an optimizer knows them by their order alone.
    logits = keras.layers.Identity(dtype="float32")(model.get_layer("affinity_logits").output)
    small = {**model.output, "affinity": logits}
    trained = keras.Model(model.input, small, name=model.name)
    grid = {"logits_stride": resize.source_stride, "padding": resize.padding}
    _compile(trained, config, model.optimizer, statistics, **grid)
    _make_trackers(trained)
    return trained


def _make_trackers(model):
    """Makes the variables that Keras' losses and metrics make when they are first called.

    Within `fit` under TensorFlow that would be during its tracing, which is then done once more.
    """
    if keras.backend.backend() != "tensorflow":
        return
    predicted = {
        name: np.zeros((1, 1, 1, output.shape[-1]), "float32")
        for name, output in model.output.items()
    }
    targets = {"semantic": np.zeros((1, 1, 1), "uint8")}
    if "affinity" in predicted:
        targets["affinity"] = np.full(predicted["affinity"].shape, NOT_A_PAIR, "uint8")
    model.compute_loss(y=targets, y_pred=predicted)
    model.compute_metrics(None, targets, predicted)
    model.reset_metrics()


def _compile(model, config, optimizer, statistics, **grid):
    losses, loss_weights = {"semantic": SemanticLoss()}, {"semantic": 1.0}
    metrics = {"semantic": [PixelAccuracy()]}
    if statistics is not None:
        losses["affinity"] = AffinityLoss(statistics, config.weighting, config.gamma, **grid)
        loss_weights["affinity"] = config.beta
        metrics["affinity"] = [AffinityAccuracy(statistics.rates, **grid)]
    model.compile(
        optimizer=optimizer,
        loss=losses,
        loss_weights=loss_weights,
        metrics=metrics,
        # Under TensorFlow the full-resolution passes are compiled where they stand, and XLA's
        # convolutions on CPU are slower than its own. JAX would run a step op by op.
        jit_compile=keras.backend.backend() == "jax",
    )


def train(config: Config, model_dir: str | os.PathLike, stop_after: int = 0) -> TrainingResult:
    """Trains, or continues to train, in `model_dir`.

    Writes `config.json`, `statistics.json`, `log.csv` and `checkpoints/` (`latest.keras` with the
    optimizer's state, `best.keras` with the best validation mIoU). Started again with the same
    settings it continues from `latest.keras` and ends with the weights of an undisturbed run. On
    an interrupt (Ctrl-C) it saves first.

    In several processes (see `distribution.join_processes`) each calls this with the same settings.
    They compute every batch together; the first one alone reads and writes `model_dir`.

    Args:
        config: The run's settings.
        model_dir: The run's folder, made if missing.
        stop_after: Stop, with a checkpoint, after this many steps of this call; 0 for no limit.

    Returns:
        `TrainingResult`.

    Raises:
        DataError: If data or weights cannot be read.
        RunError: If `model_dir` belongs to a run of other settings, or cannot be used.
        ConfigError: If the devices cannot share the batch, or processes have different settings.
    """
    model_dir = Path(model_dir)
    join_processes()
    keras.utils.set_random_seed(config.seed)
    tf.config.experimental.enable_op_determinism()
    replicas = find_replicas(config.num_replicas)
    check_shares(config, replicas)
    from_process(lambda: _claim(model_dir, config))
    source, validation = first_process_first(
        lambda: [
            load_source(config.dataset, split, config.data_dir)
            for split in (config.train_split, config.val_split)
        ]
    )
    statistics = from_process(lambda: _statistics(config, source, model_dir))
    with replicas.building():
        model = build_model(config, source.classes.num_classes, statistics)
        trained = compile_model(model, config, statistics)
        model.optimizer.build(model.trainable_variables)
    step = _restore(model, model_dir, config)
    logging.info(
        "%s: %d training and %d validation images, %d classes, rates %s; %s with %s parameters; "
        "steps %d to %d of batch %d, replicas: %d, %s; writing to %s",
        config.dataset,
        len(source),
        len(validation),
        source.classes.num_classes,
        "none" if statistics is None else format_rates(statistics.rates),
        config.backbone,
        f"{model.count_params():,}",
        step,
        config.iterations,
        config.batch_size,
        replicas.count,
        model.dtype_policy.name,
        model_dir,
    )
    run = _Run(config, model, trained, model_dir, source, validation, replicas)
    last = min(config.iterations, step + stop_after) if stop_after else config.iterations
    while step < last:
        step = run.segment(step, last)
    return TrainingResult(step, run.best)


class _Run:
    """Trains one model from validation to validation."""

    def __init__(self, config, model, trained, model_dir, source, validation, replicas):
        self.config = config
        self.model = model
        self.trained = trained
        self.model_dir = model_dir
        self.source = source
        self.validation = validation
        self.replicas = replicas
        self.best = from_process(lambda: _best_so_far(model_dir))
        self._evaluated = self._predict = None

    def segment(self, step, last):
        """Trains from `step` to the next validation or to `last`; returns the step reached."""
        interval = self.config.validation_interval
        end = min((step // interval + 1) * interval, last)
        epoch = step // interval
        part = self.replicas.process, self.replicas.processes
        batches = training_dataset(self.config, self.source, step, end - step, *part)
        callbacks, verbose = [], 0
        if end % interval == 0 or end == self.config.iterations:
            callbacks.append(keras.callbacks.LambdaCallback(on_epoch_end=self._validate))
        if self.replicas.is_first:
            callbacks.append(keras.callbacks.CSVLogger(self.model_dir / LOG_FILE, append=True))
            verbose = "auto" if watched() else 2
        try:
            with self.replicas.fitting():
                self.trained.fit(
                    batches,
                    initial_epoch=epoch,
                    epochs=epoch + 1,
                    callbacks=callbacks,
                    shuffle=False,
                    verbose=verbose,
                )
        except tf.errors.OpError as error:
            raise data_error_from(error) or error from None
        except KeyboardInterrupt:
            self._write(LATEST, self.model.save)
            logging.warning("interrupted: saved %s", self.model_dir / LATEST)
            raise
        self._write(LATEST, self.model.save)
        reached = int(self.model.optimizer.iterations)
        if reached == step:
            # float16 leaves out steps whose gradients overflow.
            raise RunError(f"{self.model_dir}: no gradient was finite in steps {step} to {end}.")
        return reached

    def _validate(self, epoch, logs):
        """Adds the validation mIoU to the epoch's logs and keeps the best model."""
        del epoch
        # The first process computes and writes alone here, and Keras inside `fit` would have all
        # processes make every variable together.
        with on_own_devices():
            value = from_process(self._mean_iou)
            logs["step"] = int(self.model.optimizer.iterations)
            logs["val_mean_iou"] = value
            if self.best is None or value > self.best:
                self.best = value
                self._write(BEST, self.model.save)
                note = json.dumps({"step": logs["step"], "val_mean_iou": value})
                self._write(BEST_NOTE, note.encode())

    def _mean_iou(self):
        if self._evaluated is None:
            self._evaluated = at_output_stride(self.model, self.config)
            self._predict = network(self._evaluated)
        self._evaluated.set_weights(self.model.get_weights())
        return mean_iou(self._predict, self.validation)

    def _write(self, name, content):
        if self.replicas.is_first:
            write_atomically(self.model_dir / name, content)


def at_output_stride(model: keras.Model, config: Config) -> keras.Model:
    """A model with the same weights at the config's `eval_output_stride`."""
    num_classes = model.get_layer("semantic_logits").filters
    other = build_model(
        config.replace(output_stride=config.eval_output_stride, backbone_weights="none"),
        num_classes,
    )
    other.set_weights(model.get_weights())
    return other


def load_run(model_dir: str | os.PathLike, **overrides) -> tuple[Config, keras.Model]:
    """Settings and best model of a run, at its evaluation output stride.

    Args:
        model_dir: The run's folder.
        **overrides: Settings to change, such as `eval_output_stride`.

    Raises:
        RunError: If the folder holds no run, or none that has been validated yet.
        DataError: If its files are damaged.
    """
    model_dir = Path(model_dir)
    if not (model_dir / CONFIG_FILE).is_file():
        raise RunError(f"{model_dir}: no run here ({CONFIG_FILE} is missing).")
    config = Config.load(model_dir / CONFIG_FILE).replace(**overrides)
    if not (model_dir / BEST).is_file():
        raise RunError(f"{model_dir}: this run has no {BEST} yet; it was never validated.")
    return config, at_output_stride(_load_model(model_dir / BEST), config)


def _load_model(path):
    try:
        return keras.models.load_model(path, compile=False)
    except Exception as error:  # whatever a damaged zip, JSON or HDF5 file makes Keras raise
        raise RunError(f"{path}: cannot load this model: {first_line(error)}") from error


def _claim(model_dir, config):
    """Makes `model_dir` this run's, or refuses it."""
    path = model_dir / CONFIG_FILE
    if path.is_file():
        earlier = Config.load(path)
        changes = earlier.changes(config, "now")
        if changes:
            raise RunError(
                f"{model_dir}: holds a run of another configuration: {changes}. "
                "Choose another model_dir, or the same settings to continue it."
            )
    try:
        config.save(path, __version__)
    except OSError as error:
        raise RunError(f"{model_dir}: cannot write here: {error.strerror}") from None


def _statistics(config, source: Source, model_dir):
    """Statistics of the training labels: from the run, from the given file, or counted now."""
    rates = config.affinity_rates
    if rates is None:
        return None
    path = model_dir / STATISTICS_FILE
    if path.is_file() or config.statistics:
        given = path if path.is_file() else config.statistics
        statistics = AffinityStatistics.load(given)
        if statistics.rates != rates:
            raise RunError(
                f"{given}: statistics of rates {format_rates(statistics.rates)}, "
                f"but the run has rates {config.rates}."
            )
    else:
        readers = progress(label_readers(source), "affinity statistics")
        statistics = AffinityStatistics.from_labels(readers, rates)
    statistics.save(path)
    return statistics


def _restore(model, model_dir, config):
    """Brings the model to where the latest checkpoint, if any, left it; returns the steps done."""
    path = model_dir / LATEST
    with file_of_first_process(path) as checkpoint:
        try:
            if checkpoint is not None:
                model.load_weights(checkpoint)
        except Exception as error:  # as in _load_model
            raise RunError(
                f"{path}: cannot continue from this checkpoint: {first_line(error)}"
            ) from error
    step = int(np.asarray(model.optimizer.iterations))
    # Keras does not save this state. It counts calls, so the step decides it.
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dropout) and layer.rate > 0:
            layer.seed_generator.state.assign([config.seed, step * config.accumulation])
    return step


def _best_so_far(model_dir):
    path = model_dir / BEST_NOTE
    if not path.is_file():
        return None
    return float(json.loads(path.read_text(encoding="utf-8"))["val_mean_iou"])
