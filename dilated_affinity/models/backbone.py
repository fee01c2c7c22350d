"""What DeepLabv3+ asks of a backbone, and what all backbone families share."""

import dataclasses
from collections.abc import Callable

import keras

from dilated_affinity.errors import ConfigError

OUTPUT_STRIDES = (8, 16, 32)
BATCH_NORMS = ("sync", "local", "frozen")


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A backbone family's entry in `deeplab.BACKBONES`.

    Attributes:
        application: Builds the `keras.applications` model whose layers and weights these are,
            given `weights` and `input_shape`; without its classifier.
        preprocess: Builds the layer from RGB in [0, 255] to what the network was trained on.
        strided: Names of the layers with stride 2, in order.
        low_level: Name of the layer whose output, at stride 4, the decoder reads.
        high_level: Name of the layer whose output the ASPP reads.
        padding: Padding of the strided layers, see `AlignedResize`.
    """

    application: Callable[..., keras.Model]
    preprocess: Callable[[], keras.layers.Layer]
    strided: tuple[str, ...]
    low_level: str
    high_level: str
    padding: str


def atrous(
    application: keras.Model,
    strided: tuple[str, ...],
    output_stride: int = 16,
    batch_norm: str = "sync",
    batch_norm_momentum: float = 0.95,
    weight_decay: float = 0.0,
    name: str | None = None,
) -> keras.Model:
    """Clones a classification network with atrous convolutions in place of its last strides.

    Once the strides reach `output_stride`, every further stride becomes 1 and all later kernels
    are dilated to compensate, so that the features at the positions which remain are unchanged.
    Layers keep their names, order and weight shapes: weights are interchangeable.

    Args:
        application: A functional model of `keras.applications`, without classifier.
        strided: Names of its layers with stride 2, in order.
        output_stride: 8, 16 or 32.
        batch_norm: `"sync"` (statistics over all replicas), `"local"` or `"frozen"` (stored
            statistics, parameters fixed).
        batch_norm_momentum: Momentum of the moving statistics.
        weight_decay: L2 on the kernels of ordinary convolutions as half the sum of squares.
        name: Name of the new model.

    Returns:
        A new functional model with freshly initialised weights.

    Raises:
        ConfigError: For an output stride or batch norm that does not exist.
    """
    check_choice("output_stride", output_stride, OUTPUT_STRIDES)
    check_choice("batch_norm", batch_norm, BATCH_NORMS)
    kept = output_stride.bit_length() - 1
    removed = strided[kept:]
    dilation = 1

    def clone(layer):
        nonlocal dilation
        config = layer.get_config()
        if isinstance(layer, keras.layers.ZeroPadding2D) and layer.name.endswith("_pad"):
            # Explicit padding of the even-sized case; "same" below pads every size right.
            return keras.layers.Identity(name=layer.name)
        if isinstance(layer, keras.layers.BatchNormalization):
            config["momentum"] = batch_norm_momentum
            config["synchronized"] = batch_norm == "sync"
            config["trainable"] = batch_norm != "frozen"
        elif isinstance(layer, (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)):
            own_dilation = dilation
            if layer.name in removed:
                config["strides"] = (1, 1)
                dilation *= 2
            if tuple(config["kernel_size"]) != (1, 1):
                config["padding"] = "same"
                config["dilation_rate"] = (own_dilation, own_dilation)
            if isinstance(layer, keras.layers.Conv2D):
                config["kernel_regularizer"] = kernel_regularizer(weight_decay)
        return type(layer).from_config(config)

    cloned = keras.models.clone_model(application, clone_function=clone)
    return keras.Model(cloned.input, cloned.output, name=name or application.name)


def kernel_regularizer(weight_decay):
    """Keras' L2 for a weight decay that stands for half the sum of squares; None for 0."""
    return keras.regularizers.L2(weight_decay / 2) if weight_decay else None


def check_choice(name, value, choices):
    """Raises `ConfigError` unless `value` is one of `choices`."""
    if value not in choices:
        known = ", ".join(map(str, choices))
        raise ConfigError(f"{name} must be one of {known}. Received: {name}={value!r}")
