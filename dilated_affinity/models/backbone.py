"""What DeepLabv3+ asks of a backbone, and what all backbone families share."""

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
    """How a TensorFlow 1 checkpoint names what a backbone's layers hold.

    Attributes:
        variable: Name in the checkpoint of a layer's variable, from the layer's name and the
            variable's (`"kernel"`, `"gamma"`, ...).
        ignored: Regular expression of the names, whole, that such a checkpoint holds beside them.
        slots: What an optimizer appends to the name of a variable for its own.
    """

    variable: Callable[[str, str], str]
    ignored: str
    slots: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A backbone family's entry in `deeplab.BACKBONES`.

    Attributes:
        application: Builds the `keras.applications` model whose layers and weights these are,
            or one of the same kind, given `weights` and `input_shape`; without its classifier.
        preprocess: Builds the layer from RGB in [0, 255] to what the network was trained on.
        low_level: Name of the layer whose output, at stride 4, the decoder reads.
        high_level: Name of the layer whose output the ASPP reads.
        padding: Padding of the strided layers, see `AlignedResize`; `"symmetric"` for a network
            that pads in layers of its own, by the same number of pixels on either side.
        padding_pixel: RGB in [0, 255] of what training crops show beyond the image: what
            `preprocess` makes 0, which is also what convolutions pad with.
        checkpoint: Names in TensorFlow 1 checkpoints, where weights come as such; else None.
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
    """Clones a classification network with atrous convolutions in place of its last strides.

    Once the strides reach `output_stride`, every further stride becomes 1 and all later kernels
    are dilated to compensate, so that the features at the positions which remain are unchanged.
    Layers keep their names, order and weight shapes: weights are interchangeable.

    Args:
        application: A functional model of `keras.applications`, without classifier.
        padding: Padding of its strided layers. For `"same"` explicit padding gives way to
            TensorFlow's, which is right for every size; for `"symmetric"` it is kept as it is.
        output_stride: 8, 16 or 32.
        batch_norm: `"sync"` (statistics over all replicas of the `tf.distribute` strategy in whose
            scope the model is built), `"local"` or `"frozen"` (stored
            statistics, parameters fixed).
        batch_norm_momentum: Momentum of the moving statistics.
        weight_decay: L2 on the kernels of ordinary convolutions as half the sum of squares.
        multi_grid: Factors on the dilation of the spatial convolutions behind the last stride,
            one for each unit of the last stage (Chen et al. 2017, section 3.2.1); None for 1.
        name: Name of the new model.

    Returns:
        A new functional model with freshly initialised weights.

    Raises:
        ConfigError: For an output stride, batch norm or padding that does not exist, or a
            `multi_grid` that does not fit the last stage.
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
                # "same" below pads by what the dilated kernel needs, at every size.
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
    """Keras' `synchronized` of a batch norm, built here, whose statistics are over all replicas.

    Not on a single replica, which has nothing to share: Keras computes shared variances as
    E[x^2] - E[x]^2, whose digits cancel where the mean is large. Other backends than TensorFlow
    refuse it: there a program sees the batch of all replicas.
    """
    if not over_replicas or keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync > 1


def _strides_before(application):
    """The stride in the whole network of what each layer reads, by the layer's name."""
    before, after = {}, {}
    for layer in application.layers:  # ordered so that what a layer reads comes before it
        read = (after[id(tensor)] for tensor in keras.tree.flatten(layer.input))
        before[layer.name] = max(read, default=1)
        after[id(layer.output)] = before[layer.name] * getattr(layer, "strides", (1,))[0]
    return before


def _multi_grid_by_name(application, strides, multi_grid):
    """The factors by the names of the convolutions that they apply to."""
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
    """Keras' L2 for a weight decay that stands for half the sum of squares; None for 0."""
    return keras.regularizers.L2(weight_decay / 2) if weight_decay else None


def check_choice(name, value, choices):
    """Raises `ConfigError` unless `value` is one of `choices`."""
    if value not in choices:
        known = ", ".join(map(str, choices))
        raise ConfigError(f"{name} must be one of {known}. Received: {name}={value!r}")
