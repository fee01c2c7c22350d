"""Description of a backbone family, and functions that all families share."""

import dataclasses
from collections.abc import Callable, Sequence

import keras

from dilated_affinity.affinity.interpolation import PADDINGS
from dilated_affinity.errors import ConfigError

OUTPUT_STRIDES = (8, 16, 32)
BATCH_NORMS = ("sync", "local", "frozen")
CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)


@dataclasses.dataclass(frozen=True)
class CheckpointNames:
    """Names of a backbone's variables in a TensorFlow 1 checkpoint.

    Attributes:
        variable: Function from the names of a layer and its variable (`"kernel"`, `"gamma"`, ...)
            to the name in the checkpoint.
        ignored: Regular expression that matches the whole names of other variables in it.
        slots: Suffixes of an optimizer's variables.
    """

    variable: Callable[[str, str], str]
    ignored: str
    slots: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A backbone family's entry in `deeplab.BACKBONES`.

    Attributes:
        application: Builds the `keras.applications` model, or a similar one, that defines layers
            and weights, without classifier, from `weights` and `input_shape`.
        preprocess: Builds the preprocessing layer, whose input is RGB in [0, 255].
        low_level: Name of the layer whose output, at stride 4, is an input of the decoder.
        high_level: Name of the layer whose output is the input of the ASPP.
        padding: Padding of the strided layers, see `AlignedResize`; `"symmetric"` for a network
            with separate padding layers that pad both sides by the same number of pixels.
        padding_pixel: RGB in [0, 255] with which training crops are padded. `preprocess` maps it to
            0, the value with which convolutions pad.
        checkpoint: Names in TensorFlow 1 checkpoints, if weights are in this format; else None.
    """

    application: Callable[..., keras.Model]
    preprocess: Callable[[], keras.layers.Layer]
    low_level: str
    high_level: str
    padding: str
    padding_pixel: tuple[float, float, float] = (127.5, 127.5, 127.5)
    checkpoint: CheckpointNames | None = None


def atrous(
    application: keras.Model,
    padding: str,
    output_stride: int = 16,
    batch_norm: str = "sync",
    batch_norm_momentum: float = 0.95,
    weight_decay: float = 0.0,
    multi_grid: Sequence[int] | None = None,
    name: str | None = None,
) -> keras.Model:
    """Clones a classification network with atrous convolutions instead of its last strides.

    Once the strides reach `output_stride`, every further stride becomes 1 and all later kernels
    are dilated to compensate, so that features at the original positions are unchanged. Layers keep
    their names, order and weight shapes, so that weights are interchangeable.

    Args:
        application: A functional model of `keras.applications`, without classifier.
        padding: Padding of its strided layers. With `"same"`, explicit padding is replaced by
            TensorFlow's, which is correct for every size; with `"symmetric"`, it is kept.
        output_stride: 8, 16 or 32.
        batch_norm: `"sync"` (statistics over all replicas of the `tf.distribute` strategy in whose
            scope the model is built), `"local"` or `"frozen"` (stored
            statistics, parameters fixed).
        batch_norm_momentum: Momentum of the moving statistics.
        weight_decay: L2 on the kernels of non-depthwise convolutions as half the sum of squares.
        multi_grid: Factors on the dilation of the spatial convolutions after the last stride,
            one for each unit of the last stage (Chen et al. 2017, section 3.2.1); None for 1.
        name: Name of the new model.

    Returns:
        A new functional model with freshly initialised weights.

    Raises:
        ConfigError: If an output stride, batch norm or padding is not supported, or `multi_grid`
            does not match the last stage.
    """
    check_choice("output_stride", output_stride, OUTPUT_STRIDES)
    check_choice("batch_norm", batch_norm, BATCH_NORMS)
    check_choice("padding", padding, PADDINGS)
    strides = _strides_before(application)
    grid = _multi_grid_by_name(application, strides, multi_grid)

    def clone(layer):
        config, stride = layer.get_config(), strides[layer.name]
        dense = stride >= output_stride
        if dense and "strides" in config:
            config["strides"] = (1, 1)
        if isinstance(layer, keras.layers.ZeroPadding2D):
            if dense or padding == "same":
                # Replaced by padding "same" below, which suits the dilated kernel at every size.
                return keras.layers.Identity(name=layer.name)
        elif isinstance(layer, keras.layers.BatchNormalization):
            config["momentum"] = batch_norm_momentum
            config["synchronized"] = synchronized(batch_norm == "sync")
            config["trainable"] = batch_norm != "frozen"
        elif isinstance(layer, CONVOLUTIONS):
            if _is_spatial(layer):
                dilation = max(1, stride // output_stride) * grid.get(layer.name, 1)
                config["dilation_rate"] = (dilation, dilation)
                if dense or padding == "same":
                    config["padding"] = "same"
            if isinstance(layer, keras.layers.Conv2D):
                config["kernel_regularizer"] = kernel_regularizer(weight_decay)
        return type(layer).from_config(config)

    cloned = keras.models.clone_model(application, clone_function=clone)
    return keras.Model(cloned.input, cloned.output, name=name or application.name)


def synchronized(over_replicas: bool) -> bool:
    """Returns the argument `synchronized` for a batch norm built in the current scope.

    False on a single replica: Keras computes synchronized variances as E[x^2] - E[x]^2, which is
    inaccurate for large means. False under backends other than TensorFlow, which do not support
    it: there statistics are over the batch of all replicas anyway.
    """
    if not over_replicas or keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync > 1


def _strides_before(application):
    """The stride of each layer's input with respect to the image, by the layer's name."""
    before, after = {}, {}
    for layer in application.layers:  # in topological order
        read = (after[id(tensor)] for tensor in keras.tree.flatten(layer.input))
        before[layer.name] = max(read, default=1)
        after[id(layer.output)] = before[layer.name] * getattr(layer, "strides", (1,))[0]
    return before


def _multi_grid_by_name(application, strides, multi_grid):
    """The factors by the names of the convolutions to which they apply."""
    if multi_grid is None:
        return {}
    last = max(strides.values())
    names = [
        layer.name
        for layer in application.layers
        if isinstance(layer, CONVOLUTIONS) and _is_spatial(layer) and strides[layer.name] == last
    ]
    fits = isinstance(multi_grid, (tuple, list)) and len(multi_grid) == len(names)
    if not fits or not all(isinstance(factor, int) and factor > 0 for factor in multi_grid):
        raise ConfigError(
            f"multi_grid must be {len(names)} positive integers, one for each unit of the last "
            f"stage of {application.name}, or None. Received: multi_grid={multi_grid!r}"
        )
    return dict(zip(names, multi_grid, strict=True))


def _is_spatial(convolution):
    return tuple(convolution.kernel_size) != (1, 1)


def kernel_regularizer(weight_decay):
    """Keras' L2 regularizer for a weight decay on half the sum of squares; None for 0."""
    return keras.regularizers.L2(weight_decay / 2) if weight_decay else None


def check_choice(name, value, choices):
    """Raises `ConfigError` unless `value` is one of `choices`."""
    if value not in choices:
        known = ", ".join(map(str, choices))
        raise ConfigError(f"{name} must be one of {known}. Received: {name}={value!r}")
