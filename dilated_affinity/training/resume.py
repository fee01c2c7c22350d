"""The model of a run as it begins or continues."""

import keras
import numpy as np

from dilated_affinity.config import Config
from dilated_affinity.datasets.registry import Source
from dilated_affinity.datasets.skipping import SkippingSource
from dilated_affinity.errors import RunError, first_line
from dilated_affinity.run_dir.checkpoints import Checkpoints, TrainingState, read_state
from dilated_affinity.run_dir.model import build_model
from dilated_affinity.runtime.distribution import broadcast, file_of_first_process
from dilated_affinity.training.compile import add_objective
from dilated_affinity.training.initial_model import (
    InitialModel,
    find_initial_model,
    load_initial_weights,
)


def initial_model(
    config: Config, source: Source, statistics, checkpoints: Checkpoints
) -> keras.Model:
    """Builds the model of a run with its initial weights.

    Files of weights are read unless a checkpoint will replace them.

    Args:
        config: The run's settings.
        source: The training examples.
        statistics: `AffinityStatistics` for the bias prior; None without affinity.
        checkpoints: Of the run.

    Raises:
        ConfigError: If `config.initial_model` is neither a run nor a file of weights.
        DataError: If weights cannot be read.
    """
    classes = source.classes
    begun = broadcast(lambda: bool(checkpoints.paths()))
    without_weights = config.replace(backbone_weights="none")
    if begun or not config.initial_model:
        given = without_weights if begun else config
        return add_objective(build_model(given, classes.num_classes, statistics), config)
    initial = InitialModel.from_json(
        broadcast(lambda: find_initial_model(config.initial_model).to_json())
    )
    model = build_model(without_weights, classes.num_classes, statistics)
    model = add_objective(model, config)
    with file_of_first_process(initial.path) as file:
        load_initial_weights(model, initial, classes, file)
    return model


def resume(
    model: keras.Model, config: Config, source: Source, checkpoints: Checkpoints
) -> TrainingState:
    """Brings a model to the state of the newest checkpoint, if there is one.

    Args:
        model: The model, compiled.
        config: The run's settings.
        source: The training examples, which learn which of them were left out.
        checkpoints: Of the run.

    Returns:
        The state of the run; that of step 0 where there is no checkpoint.

    Raises:
        RunError: If the checkpoint is of another model, or all checkpoints are damaged.
    """
    newest = broadcast(lambda: str(checkpoints.latest() or ""))
    state = TrainingState()
    if newest:
        with file_of_first_process(newest) as checkpoint:
            state = read_state(checkpoint)
            _load(model, checkpoint, newest)
    step = updates(model)
    if step != state.step:
        raise RunError(f"{newest}: holds step {step}, but says that it is {state.step}.")
    # Keras does not save this state. It counts calls, so the batches decide it.
    calls = state.batches * config.accumulation
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dropout) and layer.rate > 0:
            layer.seed_generator.state.assign([config.seed, calls])
    if isinstance(source, SkippingSource):
        source.skipped.update(state.skipped_examples)
    return state


def updates(model: keras.Model) -> int:
    """Returns the number of steps that a model's optimizer has done."""
    # int() does not know the variables of several replicas.
    return int(np.asarray(model.optimizer.iterations))


def _load(model, checkpoint, name):
    try:
        model.load_weights(checkpoint)
    except Exception as error:  # whatever Keras raises for weights of another model
        raise RunError(
            f"{name}: cannot continue from this checkpoint: {first_line(error)}"
        ) from error
