"""Training: a run that can stop at any moment and continue, in a folder that says what it holds."""

import dataclasses
import math
import os
import random
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from dilated_affinity.config import Config
from dilated_affinity.datasets.registry import data_error_from
from dilated_affinity.datasets.skipping import SkippingSource
from dilated_affinity.errors import DataError, RunError, first_line
from dilated_affinity.evaluation.evaluate import class_iou
from dilated_affinity.evaluation.metrics import mean_over_classes
from dilated_affinity.inference.predictor import Predictor, logits_fn
from dilated_affinity.inference.refinement import Refinement
from dilated_affinity.run_dir.checkpoints import (
    Checkpoints,
    TrainingState,
    read_state,
    write_checkpoint,
)
from dilated_affinity.run_dir.describe import log_run_summary
from dilated_affinity.run_dir.layout import (
    BEST,
    CHECKPOINTS,
    CONFIG_FILE,
    chosen_checkpoint,
    load_calibration,
    lock_run_dir,
    record_environment,
    run_statistics,
    save_settings,
    write_log,
)
from dilated_affinity.runtime.distribution import (
    any_process,
    broadcast,
    check_batch_split,
    file_of_first_process,
    find_replicas,
    first_process_first,
    join_processes,
    on_own_devices,
)
from dilated_affinity.runtime.progress import TrainingProgress
from dilated_affinity.runtime.reproducibility import (
    deterministic_operations,
    preserve_global_generators,
)
from dilated_affinity.training.class_weights import run_class_weights
from dilated_affinity.training.initial_model import (
    InitialModel,
    find_initial_model,
    load_initial_weights,
)
from dilated_affinity.training.input_pipeline import batch_ids, training_dataset
from dilated_affinity.training.run_calibration import calibrate_run, is_calibrated
from dilated_affinity.training.run_checks import load_sources
from dilated_affinity.training.run_model import at_output_stride, build_model, compile_model
from dilated_affinity.training.signals import StopRequest
from dilated_affinity.training.tensorboard import TensorBoardMonitor
from dilated_affinity.training.train_step import heads_not_finite

_SCALING = 20
"""Steps within which float16's loss scale must have fallen so far that gradients are finite."""

_ASK_OTHERS_EVERY = 10
"""Steps after which processes tell each other whether one of them has been asked to stop."""


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """What a run of `train` came to.

    Attributes:
        step: Steps done, over all runs in the folder.
        best_mean_iou: The best validation mIoU so far, without propagation; None before the first.
        stopped_early: Whether it ended before all iterations, see `early_stop_patience`.
    """

    step: int
    best_mean_iou: float | None
    stopped_early: bool = False


def train(config: Config, model_dir: str | os.PathLike, stop_after: int = 0) -> TrainingResult:
    """Trains, or continues to train, in `model_dir`.

    Writes `config.json`, `statistics.json`, `trained_on.json`, `log.csv` and `checkpoints/`: the
    newest as `step-*.keras`, and `best.keras` with the best validation mIoU; and at the end
    `calibration.json`, see `calibrate`, which `load_run` reads. Started again with the
    same settings it continues from the newest checkpoint that is not damaged, and ends with the
    weights and the log of an undisturbed run, bit for bit (on GPUs with `config.deterministic`, the
    default), whenever and however it was ended; on another number of devices sums are rounded
    otherwise. On Ctrl-C and SIGTERM it ends the step, saves, and then ends with `KeyboardInterrupt`
    or exit status 143.

    Python's and NumPy's generators, signal handlers and whether TensorFlow's operations are
    deterministic are afterwards as they were before; TensorFlow's global seed is not touched. Under
    JAX TensorFlow, which feeds the data, is kept from the GPUs from then on.

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
        RunError: If `model_dir` belongs to a run of other settings or to one that is running, or
            cannot be used or written; or if a loss or gradient is not finite, unless
            `config.on_nan` is `"skip"`.
        ConfigError: If the devices cannot share the batch, or processes have different settings.
    """
    model_dir = Path(model_dir)
    join_processes()
    replicas = find_replicas(config.num_replicas)
    check_batch_split(config, replicas)
    with (
        preserve_global_generators(),
        deterministic_operations(config.deterministic),
        StopRequest() as request,
        lock_run_dir(model_dir, config),
    ):
        run = _Run(config, model_dir, replicas, request)
        return run.train(stop_after)


def load_run(
    model_dir: str | os.PathLike, calibrated=True, checkpoint: str = "best", **overrides
) -> tuple[Config, keras.Model]:
    """Settings and model of a run, at its evaluation output stride.

    Args:
        model_dir: The run's folder.
        calibrated: Whether settings of the refinement are those that calibration or a search left
            in the run, rather than those that it was trained with. Defaults to True.
        checkpoint: `"best"`, that of the highest validation mIoU, or `"last"`, the newest; what is
            measured on the split that chose the best is a little too high. Defaults to `"best"`.
        **overrides: Settings to change, such as `eval_output_stride`.

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
    try:
        model = keras.models.load_model(path, compile=False)
    except Exception as error:  # whatever Keras raises on what it does not know
        raise RunError(f"{path}: cannot load this model: {first_line(error)}") from error
    return config, at_output_stride(model, config)


class _Run:
    """Trains one model from validation to validation."""

    def __init__(self, config, model_dir, replicas, request):
        self.config = config
        self.model_dir = model_dir
        self.replicas = replicas
        self.request = request
        self.source, self.validation = first_process_first(lambda: load_sources(config))
        save_settings(model_dir, config, self.source.classes)
        statistics = run_statistics(config, self.source, model_dir)
        class_weights = run_class_weights(config, self.source, model_dir)
        self.checkpoints = Checkpoints(model_dir / CHECKPOINTS, config.keep_checkpoints)
        # Here, and not before: preparing a data set draws from Python's generator. So does Keras
        # for initial weights, and from no other.
        random.seed(config.seed)
        with replicas.building():
            self.model = self._fresh_model(statistics)
            self.trained = compile_model(self.model, config, statistics, class_weights)
        self.state = self._restored()
        if self.state.step < config.train_steps and not self._stopped_early():
            record_environment(model_dir)
        self._evaluated = self._predict = self._predictor = None
        self._bar = self._monitor = None
        self._log_summary()
        if replicas.is_first:
            self._bar = TrainingProgress(
                config.train_steps, self.state.step, config.accumulation, config.batch_size
            )
            if config.tensorboard:
                self._monitor = TensorBoardMonitor(model_dir / "tensorboard")

    def train(self, stop_after):
        """Trains to the end, or for some steps."""
        try:
            return self._train(stop_after)
        finally:
            if self._bar is not None:
                self._bar.close()

    def _train(self, stop_after):
        last = self.config.train_steps
        if stop_after:
            last = min(last, self.state.step + stop_after)
        while True:
            if self.state.rows and "val_mean_iou" not in self.state.rows[-1]:
                self._validate()
            stopped = self._stopped_early()
            if stopped or self.state.step >= last:
                if stopped:
                    logging.info(
                        "step %d of %d: no better validation mIoU in %d validations; stopped",
                        self.state.step,
                        self.config.train_steps,
                        self.state.validations_since_best,
                    )
                if stopped or self.state.step >= self.config.train_steps:
                    self._calibrate()
                return TrainingResult(self.state.step, self.state.best, stopped)
            self._fit(last)

    def _stopped_early(self):
        patience = self.config.early_stop_patience
        return 0 < patience <= self.state.validations_since_best

    def save(self):
        """Writes a checkpoint of where the run stands now; returns its path, as text."""
        self.state.step = self._steps_done()
        if isinstance(self.source, SkippingSource):
            self.state.skipped_examples = dict(self.source.skipped)
        return broadcast(lambda: str(self.checkpoints.write(self.model, self.state)))

    def keep_metrics(self):
        """Notes the metrics in the middle of an epoch, so that its row of the log counts all."""
        self.state.metrics = [
            {"replicas": [np.asarray(part).tolist() for part in _of_replicas(variable)]}
            for variable in self.trained.metrics_variables
        ]

    def not_finite(self, logs):
        """Stops the run, or counts the step, whose loss or gradients are not finite."""
        step = self.state.batches
        ids = batch_ids(self.config, self.source, step - 1)
        images = f"Images of its batch: {', '.join(ids)}"
        if self.config.on_nan == "skip":
            self.state.skipped_steps += 1
            logging.warning("step %d skipped: %s. %s", step, _wrong_losses(logs), images)
            return
        what = _wrong_losses(logs) if _wrong_heads(logs) else self._wrong_gradients(step - 1)
        raise RunError(
            f"step {step}: {what}; training stopped. {self._kept()} {self._remedies()} {images}"
        )

    def _kept(self):
        """Which checkpoint there is, for a run that cannot go on."""
        newest = broadcast(lambda: [each.name for each in self.checkpoints.paths()[-1:]])
        return f"{newest[0]} is kept." if newest else "There is no checkpoint yet."

    def _remedies(self):
        """What to change when numbers are not finite."""
        config = self.config
        changes = [f"a lower learning_rate than {config.learning_rate:g}"]
        if config.head_multiplier > 1:
            changes.append(f"a lower head_multiplier than {config.head_multiplier:g}")
        if not config.warmup_steps:
            changes.append("warmup_steps")
        if config.mixed_precision == "float16":
            changes.append("mixed_precision=bfloat16")
        return (
            f"Try {' or '.join(changes)} in another model_dir, or, if it is a single batch, "
            "on_nan=skip here."
        )

    def _wrong_gradients(self, step):
        found = {}
        for part in range(self.replicas.count):
            share = part, self.replicas.count
            for images, targets, *_ in training_dataset(self.config, self.source, step, 1, *share):
                found.update(dict.fromkeys(heads_not_finite(self.trained, images, targets)))
        heads = f" of {' and '.join(found)}" if found else ""
        return f"the loss or gradients{heads} are not finite"

    def _fit(self, last):
        """Trains to the next validation or to `last`, and saves."""
        interval, step = self.config.validation_interval, self.state.step
        epoch = step // interval
        epoch_end = min((epoch + 1) * interval, self.config.train_steps)
        steps = min(epoch_end, last) - step
        part = self.replicas.process, self.replicas.processes
        batches = training_dataset(self.config, self.source, self.state.batches, steps, *part)
        step_callback = _StepCallback(self, steps)
        try:
            with self.replicas.fitting(), self.request.noted():
                self.trained.fit(
                    batches,
                    initial_epoch=epoch,
                    epochs=epoch + 1,
                    callbacks=[step_callback, *filter(None, (self._bar, self._monitor))],
                    shuffle=False,
                    verbose=0,
                )
        except tf.errors.OpError as error:
            raise data_error_from(error) or error from None
        reached = self._steps_done()
        if reached == epoch_end:
            self.state.metrics = []
            self._add_row(epoch, reached, step_callback.logs)
        else:
            self.keep_metrics()
        path = self.save()
        if step_callback.stopped:
            logging.warning("asked to stop: saved %s; the same command continues", path)
            self.request.stop()
        if reached == step and steps >= _SCALING:
            # float16 leaves out steps whose gradients overflow.
            raise RunError(
                f"{self.model_dir}: no gradient was finite in {steps} steps. {self._remedies()}"
            )

    def _add_row(self, epoch, step, logs):
        skipped = len(self.source.skipped) if isinstance(self.source, SkippingSource) else 0
        counts = {"skipped_steps": self.state.skipped_steps, "skipped_examples": skipped}
        self.state.rows.append({"epoch": epoch, **logs, **counts, "step": step})

    def _validate(self):
        """Adds the validation mIoU to the last row of the log and keeps the best model."""
        # The first process computes and writes alone here.
        with on_own_devices():
            ious = broadcast(lambda: self._class_iou().tolist())
        value = float(mean_over_classes(ious))
        best = self.state.best
        self.state.rows[-1]["val_mean_iou"] = value
        logging.info(
            "step %d: validation mIoU %.2f %%, before refinement", self.state.step, 100 * value
        )
        if best is None or value > best or not broadcast(self._has_best):
            broadcast(lambda: write_checkpoint(self.model_dir / BEST, self.model, self.state))
        broadcast(lambda: write_log(self.model_dir, self.state))
        if self._monitor is not None:
            self._show(ious)
        self.save()

    def _class_iou(self):
        if self._evaluated is None:
            self._evaluated = at_output_stride(self.model, self.config)
            self._predict = logits_fn(self._evaluated)
        self._evaluated.set_weights(self.model.get_weights())
        return class_iou(self._predict, self.validation)

    def _calibrate(self):
        """Fits the refinement of the best model, unless that was done before."""
        if self.config.calibration_split is None:
            return
        with on_own_devices():
            broadcast(self._calibrate_best)

    def _calibrate_best(self):
        step = read_state(self.model_dir / BEST).step
        if is_calibrated(self.model_dir, step):
            return
        _, model = load_run(self.model_dir, calibrated=False)
        logging.info("%s", calibrate_run(self.model_dir, self.config, model, step, self.source))

    def _show(self, ious):
        """Writes a validation, and pictures of its first images, for TensorBoard."""
        if self._predictor is None:
            self._predictor = Predictor(
                self._evaluated, refinement=Refinement.from_config(self.config)
            )
        names, step = self.validation.classes.names, self.state.step
        self._monitor.write_class_iou(names, ious, step=step)
        self._monitor.write_pictures(self._predictor, self.validation, step=step)

    def _has_best(self):
        try:
            read_state(self.model_dir / BEST)
        except DataError as error:
            logging.warning("%s. It is replaced by the model of this validation.", error)
            return False
        return True

    def _fresh_model(self, statistics):
        config, classes = self.config, self.source.classes
        begun = broadcast(lambda: bool(self.checkpoints.paths()))
        if begun or not config.initial_model:
            return build_model(config, classes.num_classes, statistics)
        initial = InitialModel.from_json(
            broadcast(lambda: find_initial_model(config.initial_model).to_json())
        )
        model = build_model(
            config.replace(backbone_weights="none"), classes.num_classes, statistics
        )
        with file_of_first_process(initial.path) as file:
            load_initial_weights(model, initial, classes, file)
        return model

    def _restored(self):
        """Brings the model to where the newest checkpoint, if any, left it."""
        newest = broadcast(lambda: str(self.checkpoints.latest() or ""))
        state = TrainingState()
        if newest:
            with file_of_first_process(newest) as checkpoint:
                state = read_state(checkpoint)
                _load(self.model, checkpoint, newest)
        step = self._steps_done()
        if step != state.step:
            raise RunError(f"{newest}: holds step {step}, but says that it is {state.step}.")
        # Keras does not save this state. It counts calls, so the batches decide it.
        calls = state.batches * self.config.accumulation
        for layer in self.model.layers:
            if isinstance(layer, keras.layers.Dropout) and layer.rate > 0:
                layer.seed_generator.state.assign([self.config.seed, calls])
        if isinstance(self.source, SkippingSource):
            self.source.skipped.update(state.skipped_examples)
        return state

    def _steps_done(self):
        # int() does not know the variables of several replicas.
        return int(np.asarray(self.model.optimizer.iterations))

    def _log_summary(self):
        config = self.config
        left = config.head_batch_norm_momentum**config.train_steps
        if left > 0.01:
            logging.warning(
                "head_batch_norm_momentum=%g is for longer schedules: after %d steps the "
                "statistics of ASPP and decoder still hold %.0f %% of their initial values.",
                config.head_batch_norm_momentum,
                config.train_steps,
                100 * left,
            )
        log_run_summary(
            config,
            self.model,
            self.source.classes.num_classes,
            f"{len(self.source)} training and {len(self.validation)} validation images",
            f"steps {self.state.step} to {config.train_steps} of batch {config.batch_size}, "
            f"crop {config.crop_size}",
            self.model_dir,
            self.replicas.count,
        )


class _StepCallback(keras.callbacks.Callback):
    """What a run does between two steps of `fit`.

    Attributes:
        logs: Means of losses and metrics over the epoch.
        stopped: Whether it ended because the run was asked to.
    """

    def __init__(self, run, steps):
        super().__init__()
        self._run = run
        self._steps = steps
        self._finite = True
        self.logs = {}
        self.stopped = False

    def on_epoch_begin(self, epoch, logs=None):
        values = self._run.state.metrics
        if values:
            for variable, value in zip(self.model.metrics_variables, values, strict=True):
                # Checkpoints of before hold the sum alone.
                parts = value["replicas"] if isinstance(value, dict) else [value]
                replicas = _of_replicas(variable)
                if len(parts) != len(replicas):
                    # Now there are more or fewer; the first gets all, for shares would be rounded.
                    parts = [np.sum(parts, axis=0)]
                for replica, part in zip(replicas, parts, strict=False):
                    replica.assign(part)

    def on_train_batch_end(self, batch, logs=None):
        run = self._run
        self._finite &= math.isfinite(logs["loss"])
        done, part = divmod(batch + 1, run.config.accumulation)
        if part:
            return
        run.state.batches += 1
        if not self._finite:
            run.not_finite(logs)
            self._finite = True
        if self._asked_to_stop(done):
            self.stopped = self.model.stop_training = True
        elif run.state.batches % run.config.checkpoint_every == 0 and done < self._steps:
            # Under JAX, reading it gives the model the values of this step.
            _ = self.model
            run.keep_metrics()
            run.save()

    def on_epoch_end(self, epoch, logs=None):
        self.logs = {name: float(value) for name, value in logs.items()}

    def _asked_to_stop(self, done):
        received = self._run.request.received is not None
        if self._run.replicas.processes == 1:
            return received
        now = done % _ASK_OTHERS_EVERY == 0 or done == self._steps
        return now and any_process(received)


def _of_replicas(variable):
    """The values of a metric's variable on each replica, which add up to its own."""
    return getattr(variable.value, "values", [variable])


def _load(model, checkpoint, name):
    try:
        model.load_weights(checkpoint)
    except Exception as error:  # whatever Keras raises on weights of another model
        raise RunError(
            f"{name}: cannot continue from this checkpoint: {first_line(error)}"
        ) from error


def _wrong_heads(logs):
    return [
        name.removesuffix("_loss")
        for name, value in logs.items()
        if name.endswith("_loss") and not math.isfinite(value)
    ]


def _wrong_losses(logs):
    heads = _wrong_heads(logs)
    return f"the loss of {' and '.join(heads)} is not finite" if heads else "not finite"
