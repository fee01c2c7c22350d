"""The model of a run: built and compiled as its settings say."""

import keras
import numpy as np
from keras import ops

from dilated_affinity.affinity.loss import AffinityLoss
from dilated_affinity.affinity.targets import NOT_A_PAIR
from dilated_affinity.baselines.aaf import AdaptiveAffinityFieldLoss, AdaptiveSizeWeights
from dilated_affinity.config import Config
from dilated_affinity.evaluation.metrics import AffinityAccuracy, PixelAccuracy
from dilated_affinity.inference.refinement import Refinement
from dilated_affinity.inference.refiners.decoder_stride import decoder_resize, divided_rates
from dilated_affinity.models.deeplab import DeepLabV3Plus
from dilated_affinity.models.resize import AlignedResize
from dilated_affinity.models.training_model import at_decoder_stride
from dilated_affinity.training.losses import SemanticLoss
from dilated_affinity.training.optimizers import MultiplierSGD, WarmupPolynomialDecay
from dilated_affinity.training.train_step import SkipNonFiniteModel

_SMALLEST_PROBABILITY = 1e-7


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
    model = DeepLabV3Plus(
        num_classes,
        config.affinity_rates,
        backbone=config.backbone,
        output_stride=config.output_stride,
        weights=weights,
        affinity_bias=None if statistics is None else statistics.bias(),
        batch_norm=config.batch_norm,
        batch_norm_momentum=config.batch_norm_momentum,
        head_batch_norm_momentum=config.head_batch_norm_momentum or None,
        weight_decay=config.weight_decay,
        separable=config.separable,
        filters=config.filters,
        dropout=config.dropout,
        multi_grid=config.multi_grid_factors,
        atrous_rates=config.aspp_rates,
        normalize_by_batch=config.images_at_once > 1,
    )
    if config.structure != "aaf":
        return model
    # A part of the model, so that the optimizer trains it and checkpoints hold it.
    size_weights = AdaptiveSizeWeights(num_classes, name="aaf")
    outputs = {**model.output, "aaf": size_weights(model.output["semantic"])}
    return keras.Model(model.input, outputs, name=model.name)


def compile_model(
    model: keras.Model, config: Config, statistics=None, class_weights=None
) -> keras.Model:
    """Compiles a model with the recipe's optimizer, losses and progress metrics.

    Args:
        model: A model as `build_model` makes it.
        config: The run's settings.
        statistics: `AffinityStatistics` of the training labels; None without an affinity head.
        class_weights: As for `SemanticLoss`.

    Returns:
        The model to train, a `SkipNonFiniteModel`: one with the same layers, weights, optimizer and
        losses, whose affinity logits, if any, stand at the decoder's stride. There the affinity
        loss resizes them itself, which takes less time and memory than in the model.
    """
    schedule = WarmupPolynomialDecay(
        config.learning_rate,
        config.train_steps,
        config.power,
        config.warmup_steps,
        config.warmup_learning_rate,
        config.accumulation,
    )
    # AAF's size weights have the backbone's learning rate in its authors' code.
    plain = {
        id(variable)
        for layer in model.layers
        if layer.name in (config.backbone, "aaf")
        for variable in layer.variables
    }
    multipliers = {
        variable.path: config.head_multiplier
        for variable in model.trainable_variables
        if id(variable) not in plain
    }
    if statistics is not None:
        for variable in model.get_layer("affinity_logits").trainable_variables:
            multipliers[variable.path] *= config.affinity_head_multiplier
    if config.bias_multiplier != 1:
        for variable in model.trainable_variables:
            if variable.name == "bias":
                factor = multipliers.get(variable.path, 1.0)
                multipliers[variable.path] = factor * config.bias_multiplier
    optimizer = MultiplierSGD(
        schedule,
        momentum=config.momentum,
        multipliers=multipliers,
        gradient_accumulation_steps=config.accumulation if config.accumulation > 1 else None,
    )
    _compile(model, config, optimizer, statistics, class_weights)
    model.optimizer.build(model.trainable_variables)
    outputs, grid = dict(model.output), {}
    if statistics is not None:
        outputs, grid = at_decoder_stride(model)
    if config.train_propagation:
        outputs["refined"] = _refined(model, outputs["affinity"], config)
    trained = SkipNonFiniteModel(model.input, outputs, name=model.name)
    _compile(trained, config, model.optimizer, statistics, class_weights, **grid)
    _make_trackers(trained)
    return trained


def _refined(model, affinity_logits, config):
    """Logarithms of the probabilities refined at the decoder's stride, at full resolution.

    As logits they give these probabilities again, so that the semantic loss takes them.
    """
    resize = decoder_resize(model)
    semantic, images = resize.input
    refinement = Refinement.from_config(config).replace(
        iterations=config.train_propagation, variant="propagation"
    )
    propagation = refinement.layer(divided_rates(config.affinity_rates, resize.source_stride))
    probabilities = keras.layers.Softmax(dtype="float32")(semantic)
    refined = propagation([probabilities, affinity_logits])
    enlarge = AlignedResize(resize.source_stride, 1, resize.padding, dtype="float32")
    return ops.log(ops.maximum(enlarge([refined, images]), _SMALLEST_PROBABILITY))


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
    for name in predicted.keys() & {"aaf", "refined"}:
        targets[name] = targets["semantic"]
    model.compute_loss(y=targets, y_pred=predicted)
    model.compute_metrics(None, targets, predicted)
    model.reset_metrics()


def _compile(model, config, optimizer, statistics, class_weights, **grid):
    losses = {"semantic": SemanticLoss(class_weights=class_weights)}
    loss_weights = {"semantic": 1.0}
    metrics = {"semantic": [PixelAccuracy()]}
    if statistics is not None:
        losses["affinity"] = AffinityLoss(
            statistics,
            config.weighting,
            config.gamma,
            affinity_reduction=config.affinity_reduction,
            **grid,
        )
        loss_weights["affinity"] = config.beta
        metrics["affinity"] = [AffinityAccuracy(statistics.rates, **grid)]
    if config.train_propagation and grid:
        losses["refined"] = SemanticLoss(class_weights=class_weights)
        loss_weights["refined"] = config.train_propagation_weight
        metrics["refined"] = [PixelAccuracy()]
    if config.structure == "aaf":
        batches = config.train_steps * config.accumulation
        losses["aaf"] = AdaptiveAffinityFieldLoss(model.get_layer("aaf"), batches)
        loss_weights["aaf"] = 1.0
    model.compile(
        optimizer=optimizer,
        loss=losses,
        loss_weights=loss_weights,
        metrics=metrics,
        # Under TensorFlow the full-resolution passes are compiled where they stand, and XLA's
        # convolutions on CPU are slower than its own. JAX would run a step op by op.
        jit_compile=keras.backend.backend() == "jax",
    )


def at_output_stride(model: keras.Model, config: Config) -> keras.Model:
    """A model with the same weights at the config's `eval_output_stride`."""
    num_classes = model.get_layer("semantic_logits").filters
    other = build_model(
        config.replace(output_stride=config.eval_output_stride, backbone_weights="none"),
        num_classes,
    )
    other.set_weights(model.get_weights())
    return other
