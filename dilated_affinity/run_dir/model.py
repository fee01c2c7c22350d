"""The network that the settings of a run describe."""

import contextlib

import keras

from dilated_affinity.config import Config
from dilated_affinity.models.deeplab import DeepLabV3Plus


def build_model(config: Config, num_classes: int, statistics=None) -> keras.Model:
    """Builds the network of a run, with fresh weights as its settings say.

    Args:
        config: The run's settings.
        num_classes: Number of classes of the data set.
        statistics: `AffinityStatistics` for the bias prior; None where there is no affinity head
            or its weights are to be loaded.

    Returns:
        A model as of `DeepLabV3Plus`, which predicts classes and, if the run has it, affinity.

    Raises:
        ConfigError: If a setting is out of its range.
        DataError: If the backbone's weights cannot be read.
    """
    with mixed_precision(config):
        return DeepLabV3Plus(
            num_classes,
            config.affinity_rates,
            backbone=config.backbone,
            output_stride=config.output_stride,
            weights=None if config.backbone_weights == "none" else config.backbone_weights,
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


@contextlib.contextmanager
def mixed_precision(config: Config):
    """Context in which new layers have the dtype policy of a run."""
    policy = keras.config.dtype_policy()
    if config.mixed_precision != "none":
        keras.config.set_dtype_policy(f"mixed_{config.mixed_precision}")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)


def at_output_stride(model: keras.Model, config: Config) -> keras.Model:
    """Builds a model with the same weights at the config's `eval_output_stride`.

    Args:
        model: The model of a run. Outputs that an objective added are left out.
        config: The run's settings.
    """
    num_classes = model.get_layer("semantic_logits").filters
    other = build_model(
        config.replace(output_stride=config.eval_output_stride, backbone_weights="none"),
        num_classes,
    )
    copy_weights(model, other)
    return other


def copy_weights(model: keras.Model, other: keras.Model):
    """Copies the weights of a run's model, which may have more outputs, to one of `build_model`."""
    # Without the layers of an objective, weights have the same order in both.
    outputs = {name: model.output[name] for name in other.output}
    other.set_weights(keras.Model(model.input, outputs).get_weights())
