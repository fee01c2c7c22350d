"""The callback after each step of `fit`."""

import math

import keras

from dilated_affinity.config import Config
from dilated_affinity.run_dir.checkpoints import TrainingState
from dilated_affinity.training.metric_state import assign_metric_values


class StepCallback(keras.callbacks.Callback):
    """Counts batches, handles steps that are not finite, stops on request, and saves.

    Args:
        config: The run's settings.
        state: The run's state, whose `batches` it counts.
        steps: Steps of this call of `fit`.
        handle_non_finite: Function of the logs of a step whose loss or gradients are not finite.
        stop_requested: Function of the number of steps done in this call of `fit`; whether to stop.
        save: Function that writes a checkpoint in the middle of an epoch.

    Attributes:
        logs: Means of losses and metrics over the epoch.
        stopped: Whether it stopped `fit`.
    """

    def __init__(
        self, config: Config, state: TrainingState, steps, handle_non_finite, stop_requested, save
    ):
        super().__init__()
        self._config = config
        self._state = state
        self._steps = steps
        self._handle_non_finite = handle_non_finite
        self._stop_requested = stop_requested
        self._save = save
        self._finite = True
        self.logs = {}
        self.stopped = False

    def on_epoch_begin(self, epoch, logs=None):
        if self._state.metrics:
            assign_metric_values(self.model, self._state.metrics)

    def on_train_batch_end(self, batch, logs=None):
        self._finite &= math.isfinite(logs["loss"])
        done, part = divmod(batch + 1, self._config.accumulation)
        if part:
            return
        self._state.batches += 1
        if not self._finite:
            self._handle_non_finite(logs)
            self._finite = True
        if self._stop_requested(done):
            self.stopped = self.model.stop_training = True
        elif self._state.batches % self._config.checkpoint_every == 0 and done < self._steps:
            # Under JAX, reading it gives the model the values of this step.
            _ = self.model
            self._save()

    def on_epoch_end(self, epoch, logs=None):
        self.logs = {name: float(value) for name, value in logs.items()}
