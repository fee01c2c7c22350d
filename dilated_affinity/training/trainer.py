"""Training a run: resume, then for each interval fit, save, validate and log.

An interval is the steps between two validations, an epoch of `fit`. At step k, counted from 1,

1. the input pipeline gives batch k, which depends on the seed and k alone (`input_pipeline`);
2. the weights are updated, unless loss or gradients are not finite (`train_step`, `optimizers`);
3. a step that was not finite stops the run or is counted (`non_finite`);
4. a signal received meanwhile stops the run after a checkpoint (`signals`); otherwise, where k is
   a multiple of `checkpoint_every`, a checkpoint is written (`step_callback`).

After the last step of an interval its row of the log and a checkpoint are written, the model is
validated, becomes the best one or not, and `log.csv` and the checkpoint are written again.
"""

import dataclasses
import os
import random
from pathlib import Path

import tensorflow as tf
from absl import logging

from dilated_affinity.config import Config
from dilated_affinity.datasets.registry import data_error_from
from dilated_affinity.datasets.skipping import SkippingSource
from dilated_affinity.evaluation.metrics import mean_over_classes
from dilated_affinity.run_dir.checkpoints import Checkpoints, write_checkpoint
from dilated_affinity.run_dir.layout import (
    BEST,
    CHECKPOINTS,
    as_begun,
    lock_run_dir,
    record_environment,
    run_statistics,
    save_settings,
    write_log,
)
from dilated_affinity.runtime.distribution import (
    broadcast,
    check_batch_split,
    find_replicas,
    first_process_first,
    join_processes,
)
from dilated_affinity.runtime.progress import TrainingProgress
from dilated_affinity.runtime.reproducibility import (
    deterministic_operations,
    preserve_global_generators,
)
from dilated_affinity.training.class_weights import run_class_weights
from dilated_affinity.training.compile import compile_model
from dilated_affinity.training.input_pipeline import training_dataset
from dilated_affinity.training.metric_state import metric_values
from dilated_affinity.training.non_finite import NonFiniteSteps
from dilated_affinity.training.resume import initial_model, resume, updates
from dilated_affinity.training.run_calibration import calibrate_best
from dilated_affinity.training.run_checks import load_sources
from dilated_affinity.training.signals import StopRequest
from dilated_affinity.training.step_callback import StepCallback
from dilated_affinity.training.summary import log_training_summary
from dilated_affinity.training.tensorboard import TensorBoardMonitor
from dilated_affinity.training.validation import Validation, is_whole


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """The result of `train`.

    Attributes:
        step: Steps done, over all calls in the folder.
        best_mean_iou: The best validation mIoU so far, without refinement; None before the first.
        stopped_early: Whether it ended before all steps, see `early_stop_patience`.
    """

    step: int
    best_mean_iou: float | None
    stopped_early: bool = False


def train(config: Config, model_dir: str | os.PathLike, stop_after: int = 0) -> TrainingResult:
    """Trains, or continues to train, in `model_dir`.

    Writes `config.json`, `statistics.json`, `trained_on.json`, `log.csv` and `checkpoints/`: the
    newest as `step-*.keras`, and `best.keras` with the best validation mIoU; and at the end
    `calibration.json`, see `calibrate`, which `load_run` reads. Called again with the same
    settings it continues from the newest checkpoint that is not damaged, and ends with the
    weights and the log of an undisturbed run, bit for bit (on GPUs with `config.deterministic`, the
    default), whenever and however it was ended; on another number of devices sums are rounded
    differently. On Ctrl-C and SIGTERM it ends the step, saves, and then ends with
    `KeyboardInterrupt` or exit status 143.

    Python's and NumPy's generators, signal handlers and whether TensorFlow's operations are
    deterministic are afterwards as they were before; TensorFlow's global seed is not changed. Under
    JAX, TensorFlow, which feeds the data, is kept from the GPUs from then on. Messages go to
    `absl.logging`, which gives Python's root logger a handler if it has none.

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
        return Trainer(config, model_dir, replicas, request).train(stop_after)


class Trainer:
    """Trains one run, from validation to validation. Every process has one.

    Args:
        config: The run's settings.
        model_dir: The run's folder, locked.
        replicas: The devices that share each batch.
        request: Says whether a signal has asked to stop.
    """

    def __init__(self, config: Config, model_dir: Path, replicas, request: StopRequest):
        begun = broadcast(lambda: dataclasses.asdict(as_begun(model_dir, config)))
        self.config = config = Config(**begun)
        self.model_dir = model_dir
        self.replicas = replicas
        self.request = request
        self.source, validation = first_process_first(lambda: load_sources(config))
        save_settings(model_dir, config, self.source.classes)
        statistics = run_statistics(config, self.source, model_dir)
        class_weights = run_class_weights(config, self.source, model_dir)
        self.checkpoints = Checkpoints(model_dir / CHECKPOINTS, config.keep_checkpoints)
        # Not earlier: preparing a data set draws from Python's generator. So does Keras for
        # initial weights, and from no other.
        random.seed(config.seed)
        with replicas.building():
            self.model = initial_model(config, self.source, statistics, self.checkpoints)
            self.fitted = compile_model(self.model, config, statistics, class_weights)
        self.state = resume(self.model, config, self.source, self.checkpoints)
        if self.state.step < config.train_steps and not self._stopped_early():
            record_environment(model_dir)
        self.validation = Validation(config, self.model, validation)
        self.non_finite = NonFiniteSteps(
            config, self.fitted, self.source, replicas, self.checkpoints
        )
        log_training_summary(
            config, self.model, self.source, len(validation), self.state, model_dir, replicas.count
        )
        self.bar = self.monitor = None
        if replicas.is_first:
            self.bar = TrainingProgress(
                config.train_steps, self.state.step, config.accumulation, config.batch_size
            )
            if config.tensorboard:
                self.monitor = TensorBoardMonitor(model_dir / "tensorboard")

    def train(self, stop_after: int) -> TrainingResult:
        """Trains to the end, or for `stop_after` steps where that is not 0."""
        try:
            last = self.config.train_steps
            if stop_after:
                last = min(last, self.state.step + stop_after)
            self._validate_if_due()  # the run may have ended before this validation
            while self.state.step < last and not self._stopped_early():
                self._fit(last)
                self._validate_if_due()
            return self._finish()
        finally:
            if self.bar is not None:
                self.bar.close()

    def _fit(self, last):
        """Trains to the next validation or to `last`, and saves."""
        interval, step = self.config.validation_interval, self.state.step
        epoch = step // interval
        epoch_end = min((epoch + 1) * interval, self.config.train_steps)
        steps = min(epoch_end, last) - step
        part = self.replicas.process, self.replicas.processes
        batches = training_dataset(self.config, self.source, self.state.batches, steps, *part)
        after_step = StepCallback(
            self.config,
            self.state,
            steps,
            handle_non_finite=lambda logs: self.non_finite.handle(self.state, logs),
            stop_requested=lambda done: self.request.agreed(done, steps, self.replicas.processes),
            save=self._save_within_interval,
        )
        try:
            with self.replicas.fitting(), self.request.noted():
                self.fitted.fit(
                    batches,
                    initial_epoch=epoch,
                    epochs=epoch + 1,
                    callbacks=[after_step, *filter(None, (self.bar, self.monitor))],
                    shuffle=False,
                    verbose=0,
                )
        except tf.errors.OpError as error:
            raise data_error_from(error) or error from None

        reached = updates(self.model)
        if reached == epoch_end:
            self._add_row(epoch, reached, after_step.logs)
            path = self._save()
        else:
            path = self._save_within_interval()
        if after_step.stopped:
            logging.warning("asked to stop: saved %s; the same command continues", path)
            self.request.stop()
        self.non_finite.check_interval(self.model_dir, reached - step, steps)

    def _add_row(self, epoch, step, logs):
        """Adds the losses and metrics of a whole interval to the log."""
        skipped = len(self.source.skipped) if isinstance(self.source, SkippingSource) else 0
        counts = {"skipped_steps": self.state.skipped_steps, "skipped_examples": skipped}
        self.state.rows.append({"epoch": epoch, **logs, **counts, "step": step})
        self.state.metrics = []

    def _save_within_interval(self):
        """Saves with the metrics so far, so that the interval's row of the log counts all steps."""
        self.state.metrics = metric_values(self.fitted)
        return self._save()

    def _save(self):
        """Writes a checkpoint and returns its path, as text."""
        self.state.step = updates(self.model)
        if isinstance(self.source, SkippingSource):
            self.state.skipped_examples = dict(self.source.skipped)
        return broadcast(lambda: str(self.checkpoints.write(self.model, self.state)))

    def _validate_if_due(self):
        """Validates at the end of an interval, for its row of the log and the best model."""
        if not self.state.rows or "val_mean_iou" in self.state.rows[-1]:
            return
        ious = self.validation.measure()
        value = float(mean_over_classes(ious))
        best = self.state.best
        self.state.rows[-1]["val_mean_iou"] = value
        logging.info(
            "step %d: validation mIoU %.2f %%, before refinement", self.state.step, 100 * value
        )
        best_path = self.model_dir / BEST
        if best is None or value > best or not broadcast(lambda: is_whole(best_path)):
            broadcast(lambda: write_checkpoint(best_path, self.model, self.state))
        broadcast(lambda: write_log(self.model_dir, self.state))
        if self.monitor is not None:
            self.validation.show(self.monitor, ious, self.state.step)
        self._save()

    def _stopped_early(self):
        waited = 0 < self.config.early_stop_patience <= self.state.validations_since_best
        return waited and self.state.step < self.config.train_steps

    def _finish(self):
        """Calibrates the refinement of a run that has come to its end."""
        state, steps = self.state, self.config.train_steps
        stopped = self._stopped_early()
        if stopped:
            count = state.validations_since_best
            logging.info(
                "step %d of %d: no better validation mIoU in %s; stopped",
                *(state.step, steps),
                f"{count} validations" if count > 1 else "a validation",
            )
        if stopped or state.step >= steps:
            calibrate_best(self.model_dir, self.config, self.source)
        return TrainingResult(state.step, state.best, stopped)
