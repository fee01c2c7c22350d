"""Steps whose loss or gradients are not finite: the run stops, or leaves them out and counts."""

import math

from absl import logging

from dilated_affinity.config import Config
from dilated_affinity.datasets.registry import Source
from dilated_affinity.errors import RunError
from dilated_affinity.run_dir.checkpoints import Checkpoints, TrainingState
from dilated_affinity.runtime.distribution import Replicas, broadcast
from dilated_affinity.training.input_pipeline import batch_ids, training_dataset
from dilated_affinity.training.train_step import SkipNonFiniteModel, heads_not_finite

_SCALING = 20
"""Steps within which float16's loss scale has become so small that gradients are finite."""


class NonFiniteSteps:
    """Applies the setting `on_nan`.

    `SkipNonFiniteModel` has already undone such a step; this reports its images, its losses, and
    what to change.

    Args:
        config: The run's settings.
        fitted: The model that is fitted.
        source: The training examples.
        replicas: The devices that share each batch.
        checkpoints: Of the run.
    """

    def __init__(
        self,
        config: Config,
        fitted: SkipNonFiniteModel,
        source: Source,
        replicas: Replicas,
        checkpoints: Checkpoints,
    ):
        self._config = config
        self._fitted = fitted
        self._source = source
        self._replicas = replicas
        self._checkpoints = checkpoints

    def handle(self, state: TrainingState, logs: dict):
        """Counts a step that is not finite in `state.skipped_steps`, or stops the run.

        Args:
            state: The run's state, after the step.
            logs: Losses and metrics as Keras reported them at the step.

        Raises:
            RunError: Unless `on_nan` is `"skip"`.
        """
        step = state.batches
        ids = batch_ids(self._config, self._source, step - 1)
        images = f"Images of its batch: {', '.join(ids)}"
        if self._config.on_nan == "skip":
            state.skipped_steps += 1
            logging.warning("step %d skipped: %s. %s", step, _describe_losses(logs), images)
            return
        found = _describe_losses(logs) if _losses(logs) else self._describe_gradients(step - 1)
        raise RunError(
            f"step {step}: {found}; training stopped. {self._describe_checkpoint()} "
            f"{self._remedies()} {images}"
        )

    def check_interval(self, model_dir, updates: int, steps: int):
        """Raises `RunError` if float16 has left out all of many steps.

        Args:
            model_dir: The run's folder, for the message.
            updates: How many steps have updated the weights.
            steps: How many there were.
        """
        if not updates and steps >= _SCALING:
            raise RunError(
                f"{model_dir}: no gradient was finite in {steps} steps. {self._remedies()}"
            )

    def _describe_checkpoint(self):
        newest = broadcast(lambda: [each.name for each in self._checkpoints.paths()[-1:]])
        return f"{newest[0]} is kept." if newest else "There is no checkpoint yet."

    def _describe_gradients(self, step):
        found = {}
        for part in range(self._replicas.count):
            share = part, self._replicas.count
            batches = training_dataset(self._config, self._source, step, 1, *share)
            for images, targets, *_ in batches:
                found.update(dict.fromkeys(heads_not_finite(self._fitted, images, targets)))
        heads = f" of {' and '.join(found)}" if found else ""
        return f"the loss or gradients{heads} are not finite"

    def _remedies(self):
        config = self._config
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


def _losses(logs):
    """Names of the outputs whose loss is not finite."""
    return [
        name.removesuffix("_loss")
        for name, value in logs.items()
        if name.endswith("_loss") and not math.isfinite(value)
    ]


def _describe_losses(logs):
    found = _losses(logs)
    return f"the loss of {' and '.join(found)} is not finite" if found else "not finite"
