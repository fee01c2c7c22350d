"""The "beta" ResNets of the DeepLab authors, whose weights are TensorFlow 1 checkpoints.

They differ from `keras.applications`: three 3x3 convolutions instead of the 7x7, the stride of a
block in the 3x3 convolution of its last unit, no biases, input in [-1, 1].

Layers are named after slim's scopes: `block1_unit_2_conv3` and its `block1_unit_2_conv3_bn` are
`block1/unit_2/bottleneck_v1/conv3`. `_checkpoint_names` maps them to the names in a checkpoint.
"""

import functools
import re

import keras
from keras import layers

from dilated_affinity.models.backbone import Backbone, CheckpointNames

UNITS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
"""Units of the four blocks, by depth."""

_SLIM_VARIABLES = {
    "kernel": "weights",
    "gamma": "BatchNorm/gamma",
    "beta": "BatchNorm/beta",
    "moving_mean": "BatchNorm/moving_mean",
    "moving_variance": "BatchNorm/moving_variance",
}

# Other parts of trained DeepLab models, which are ignored.
_DEEPLAB_SCOPES = (
    "image_pooling",
    r"aspp\d(_depthwise|_pointwise)?",
    "concat_projection",
    r"decoder/feature_projection\d",
    r"decoder/decoder_conv\d(_depthwise|_pointwise)?",
    r"logits/semantic(_\d)?",
)
_DEEPLAB_VARIABLES = (
    "weights",
    "depthwise_weights",
    "biases",
    "BatchNorm/(gamma|beta|moving_mean|moving_variance)",
)
_SLOTS = ("Momentum", "ExponentialMovingAverage", "Adam", "Adam_1")


def _checkpoint_names(scope):
    def variable(layer, name):
        place = re.sub(r"^(block\d)_(unit_\d+)_", r"\1/\2/bottleneck_v1/", layer)
        return f"{scope}/{place.removesuffix('_bn')}/{_SLIM_VARIABLES[name]}"

    deeplab = f"({'|'.join(_DEEPLAB_SCOPES)})/({'|'.join(_DEEPLAB_VARIABLES)})"
    training = r"global_step|beta[12]_power"
    classifier = f"{scope}/logits/(weights|biases)"
    return CheckpointNames(variable, "|".join((training, classifier, deeplab)), _SLOTS)


def _application(units, name, input_shape, weights=None):
    """Builds the network at output stride 32, as `keras.applications` does."""
    assert weights is None, "weights come from a checkpoint, see models/weights.py"
    features = images = keras.Input(input_shape)
    features = _convolution(features, 64, 3, "conv1_1", strides=2)
    features = _convolution(features, 64, 3, "conv1_2")
    features = _convolution(features, 128, 3, "conv1_3")
    # slim uses "same" padding here, which is symmetric at the sizes at which these networks were
    # trained (4k + 1), but would shift the features at others.
    features = layers.ZeroPadding2D(1, name="pool1_pad")(features)
    features = layers.MaxPooling2D(3, 2, name="pool1")(features)
    for block, count in enumerate(units, start=1):
        filters = 64 * 2 ** (block - 1)
        for unit in range(1, count + 1):
            strides = 2 if unit == count and block < len(units) else 1
            features = _unit(features, filters, strides, f"block{block}_unit_{unit}")
    return keras.Model(images, features, name=name)


def _unit(features, filters, strides, name):
    """A bottleneck with its shortcut."""
    if features.shape[-1] != 4 * filters:
        shortcut = _convolution(features, 4 * filters, 1, f"{name}_shortcut", strides, relu=False)
    elif strides > 1:
        shortcut = layers.MaxPooling2D(1, strides, name=f"{name}_shortcut")(features)
    else:
        shortcut = features
    features = _convolution(features, filters, 1, f"{name}_conv1")
    features = _convolution(features, filters, 3, f"{name}_conv2", strides)
    features = _convolution(features, 4 * filters, 1, f"{name}_conv3", relu=False)
    features = layers.Add(name=f"{name}_add")([shortcut, features])
    return layers.ReLU(name=f"{name}_out")(features)


def _convolution(features, filters, kernel_size, name, strides=1, relu=True):
    if strides > 1 and kernel_size > 1:
        # "same" padding would shift the features if a side is even.
        features = layers.ZeroPadding2D(kernel_size // 2, name=f"{name}_pad")(features)
        padding = "valid"
    else:
        padding = "same"
    features = layers.Conv2D(
        filters,
        kernel_size,
        strides,
        padding=padding,
        use_bias=False,
        kernel_initializer="he_normal",
        name=name,
    )(features)
    features = layers.BatchNormalization(epsilon=1e-5, name=f"{name}_bn")(features)
    return layers.ReLU(name=f"{name}_relu")(features) if relu else features


def _backbone(depth):
    name = f"resnet_v1_{depth}_beta"
    return Backbone(
        application=functools.partial(_application, UNITS[depth], name),
        preprocess=lambda: layers.Rescaling(
            1 / 127.5, offset=-1.0, name="preprocess", dtype="float32"
        ),
        low_level="block1_unit_2_conv3_bn",
        high_level="block4_unit_3_out",
        padding="symmetric",
        # The scope in a checkpoint is without "beta".
        checkpoint=_checkpoint_names(f"resnet_v1_{depth}"),
    )


BACKBONES = {f"resnet_v1_{depth}_beta": _backbone(depth) for depth in UNITS}
