"""Compiling the model of a run: the objective's outputs, optimizer, losses and metrics."""

import keras
import numpy as np
import tensorflow as tf

from dilated_affinity.config import Config
from dilated_affinity.errors import ConfigError
from dilated_affinity.evaluation.metrics import PixelAccuracy
from dilated_affinity.run_dir.model import mixed_precision
from dilated_affinity.training.losses import SemanticLoss
from dilated_affinity.training.objectives.objective import TrainedOutput
from dilated_affinity.training.objectives.registry import objective_of
from dilated_affinity.training.optimizers import MultiplierSGD, WarmupPolynomialDecay
from dilated_affinity.training.train_step import SkipNonFiniteModel


def add_objective(model: keras.Model, config: Config) -> keras.Model:
    """Returns a model of `build_model` with the outputs that the run's objective adds to it."""
    with mixed_precision(config):
        extra = objective_of(config).extra_outputs(model, config)
        if not extra:
            return model
        return keras.Model(model.input, {**model.output, **extra}, name=model.name)


def compile_model(
    model: keras.Model, config: Config, statistics=None, class_weights=None
) -> keras.Model:
    """Compiles a model with the recipe's optimizer, losses and metrics.

    Args:
        model: A model as `build_model` and `add_objective` make it. It is compiled for saving.
        config: The run's settings.
        statistics: `AffinityStatistics` of the training labels; None without an affinity head.
        class_weights: As for `SemanticLoss`.

    Returns:
        The model to fit, a `SkipNonFiniteModel` with the same layers, weights, optimizer and
        losses. Its outputs are those that the objective trains, such as affinity logits at the
        decoder's stride, where their loss takes less time and memory.

    Raises:
        ConfigError: If the objective has sample weights, but not for every target.
    """
    objective, targets = objective_of(config), _example_targets(config)
    semantic = TrainedOutput(SemanticLoss(class_weights=class_weights), 1.0, (PixelAccuracy(),))
    arguments = model, config, statistics, class_weights
    saved = {"semantic": semantic, **objective.outputs(*arguments)}
    saved = {name: each for name, each in saved.items() if each.output is None}
    _compile(model, saved, _optimizer(model, config))
    model.optimizer.build(model.trainable_variables)

    semantic = TrainedOutput(SemanticLoss(class_weights=class_weights), 1.0, (PixelAccuracy(),))
    trained = {"semantic": semantic, **objective.fitted_outputs(*arguments)}
    own = {name: each.output for name, each in trained.items() if each.output is not None}
    outputs = {name: {**model.output, **own}[name] for name in trained}
    fitted = SkipNonFiniteModel(model.input, outputs, name=model.name)
    _compile(fitted, trained, model.optimizer)
    _make_trackers(fitted, targets)
    return fitted


def _example_targets(config):
    """Targets of an image of one pixel.

    Raises:
        ConfigError: If the objective has sample weights, but not for every target.
    """
    objective, labels = objective_of(config), tf.zeros((1, 1, 1), tf.uint8)
    targets = {"semantic": labels, **objective.targets(labels, config)}
    weights = objective.sample_weights(labels, config)
    if weights is not None and weights.keys() != targets.keys():
        raise ConfigError(
            f"sample_weights of the objective {config.objective!r} must be for each of "
            f"{', '.join(targets)}. Received: {', '.join(weights)}"
        )
    return targets


def _optimizer(model, config):
    schedule = WarmupPolynomialDecay(
        config.learning_rate,
        config.train_steps,
        config.power,
        config.warmup_steps,
        config.warmup_learning_rate,
        config.accumulation,
    )
    return MultiplierSGD(
        schedule,
        momentum=config.momentum,
        multipliers=_multipliers(model, config),
        gradient_accumulation_steps=config.accumulation if config.accumulation > 1 else None,
    )


def _multipliers(model, config):
    """Learning-rate factors by variable path: of the backbone 1, of all else `head_multiplier`.

    The objective may say otherwise for its layers. Biases are multiplied once more.
    """
    by_layer = {config.backbone: 1.0, **objective_of(config).multipliers(config)}
    factors = {
        id(variable): by_layer.get(layer.name, config.head_multiplier)
        for layer in model.layers
        for variable in layer.variables
    }
    multipliers = {}
    for variable in model.trainable_variables:
        factor = factors[id(variable)]
        if variable.name == "bias":
            factor *= config.bias_multiplier
        if factor != 1:
            multipliers[variable.path] = factor
    return multipliers


def _compile(model, outputs, optimizer):
    model.compile(
        optimizer=optimizer,
        loss={name: each.loss for name, each in outputs.items()},
        loss_weights={name: each.weight for name, each in outputs.items()},
        metrics={name: list(each.metrics) for name, each in outputs.items() if each.metrics},
        # Under TensorFlow the full-resolution passes are compiled one by one, and XLA's
        # convolutions on CPU are slower than its own. JAX would run a step op by op.
        jit_compile=keras.backend.backend() == "jax",
    )


def _make_trackers(model, targets):
    """Makes the variables that Keras' losses and metrics make when they are first called.

    Within `fit` under TensorFlow that would be during its tracing, which is then done once more.
    """
    if keras.backend.backend() != "tensorflow":
        return
    predicted = {
        name: np.zeros((1, 1, 1, output.shape[-1]), "float32")
        for name, output in model.output.items()
        if name in targets
    }
    model.compute_loss(y=targets, y_pred=predicted)
    model.compute_metrics(None, targets, predicted)
    model.reset_metrics()
