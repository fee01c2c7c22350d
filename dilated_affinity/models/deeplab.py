"""DeepLabv3+ (Chen et al., ECCV 2018) with the paper's affinity head (section 3.2, Fig. 2)."""

import keras
import numpy as np
from keras import layers, ops

from dilated_affinity.affinity.geometry import NEIGHBORS, check_rates
from dilated_affinity.affinity.propagation import AffinityPropagation
from dilated_affinity.errors import ConfigError
from dilated_affinity.models import mobilenet_v2, resnet, resnet_beta
from dilated_affinity.models.backbone import (
    atrous,
    check_choice,
    kernel_regularizer,
    synchronized,
)
from dilated_affinity.models.resize import AlignedResize
from dilated_affinity.models.weights import load_backbone_weights

BACKBONES = {**mobilenet_v2.BACKBONES, **resnet.BACKBONES, **resnet_beta.BACKBONES}
"""Every backbone by name. A new family is one file and one line here."""

ATROUS_RATES = (6, 12, 18)
"""At other output strides, atrous rates are scaled to the same distances in the image."""

LOW_LEVEL_STRIDE = 4


@keras.saving.register_keras_serializable("dilated_affinity")
class AffinityHead(layers.Conv2D):
    """1x1 convolution that predicts dilated affinity: 8|R| logits per position, in float32.

    Channel 8*i + c belongs to neighbour c of rate i, in the order of `neighbor_offsets`.

    Args:
        rates: Text such as `"8,(12,24),16"`, or numbers and (vertical, horizontal) pairs; saved in
            the layer's config.
    """

    def __init__(self, rates, **kwargs):
        self.rates = check_rates(rates)
        # A saved config includes these arguments of Conv2D, which are determined by the rates.
        kwargs = {k: v for k, v in kwargs.items() if k not in ("filters", "kernel_size")}
        super().__init__(NEIGHBORS * len(self.rates), 1, **kwargs)

    def get_config(self):
        return {**super().get_config(), "rates": [list(rate) for rate in self.rates]}


def DeepLabV3Plus(  # noqa: N802 - a model, named as Keras names them
    num_classes,
    rates=((8, 8), (12, 24), (24, 12), (16, 16)),
    backbone="resnet101",
    output_stride=16,
    weights="imagenet",
    affinity_bias=None,
    batch_norm="sync",
    batch_norm_momentum=0.95,
    weight_decay=1e-4,
    separable=True,
    filters=256,
    dropout=0.1,
    multi_grid=None,
    atrous_rates=ATROUS_RATES,
    normalize_by_batch=True,
    propagation_iterations=0,
    head_batch_norm_momentum=None,
    name="deeplab_v3_plus",
):
    """Builds DeepLabv3+ with a parallel affinity head as a functional `keras.Model`.

    The input is RGB in [0, 255], uint8 or float, of any size; each backbone's own preprocessing
    is part of the model. For sides of the form k * output_stride + 1 features align with corners.

    Args:
        num_classes: Number of classes without void; at least 2.
        rates: Text such as `"8,(12,24),16"`, or numbers and (vertical, horizontal) pairs; None
            for plain DeepLabv3+ without an affinity head.
        backbone: A name in `BACKBONES`. Defaults to `"resnet101"`.
        output_stride: 8, 16 or 32. Weights can be used at every output stride.
        weights: Weights of the backbone: `"imagenet"` (downloaded by Keras), the path of a
            `.weights.h5` file of the `keras.applications` model without classifier, or None. For a
            "beta" backbone, the prefix of a TensorFlow 1 checkpoint of DeepLab or slim.
        affinity_bias: 8|R| initial biases of the affinity head, `AffinityStatistics.bias()`;
            None for 0.
        batch_norm: `"sync"`, `"local"`, or `"frozen"`: the backbone keeps its stored statistics
            and parameters (its layers have `trainable=False`), while the new layers normalise by
            the batch on all replicas.
        batch_norm_momentum: Momentum of the moving statistics. Defaults to 0.95.
        head_batch_norm_momentum: Momentum in ASPP and decoder; None for the same. With DeepLab's
            0.9997 the statistics converge only after tens of thousands of steps.
        weight_decay: On kernels of non-depthwise convolutions, as half the sum of squares; not on
            biases or batch norm. Defaults to 1e-4.
        separable: Depthwise separable 3x3 convolutions in ASPP and decoder. Defaults to True.
        filters: Channels of ASPP and decoder. Defaults to 256.
        dropout: Dropout rate after the ASPP's projection. Defaults to 0.1.
        multi_grid: Factors on the dilation of the units of the backbone's last stage, such as
            `(1, 2, 4)`; None for 1.
        atrous_rates: Dilations of the ASPP's 3x3 convolutions at output stride 16, scaled at other
            output strides. Distances larger than a training crop should be avoided: their weights
            are not trained, but used in larger images. Defaults to DeepLab's (6, 12, 18), at most
            288 pixels.
        normalize_by_batch: If False, batch norm of the new layers also keeps its stored statistics
            and parameters, initially the identity. For batches of one image: over a single image
            batch norm cancels constant features, such as the image-level ones, in training, but not
            in inference. Defaults to True.
        propagation_iterations: Iterations of affinity propagation inside the model, through which
            it is trained: the semantic logits are those of the refined probabilities. Defaults to
            0 as in the paper, which applies propagation to the trained model.
        name: Name of the model.

    Returns:
        `keras.Model` from images (B, H, W, 3) to a dict of float32 logits: `"semantic"`
        (B, H, W, num_classes) and, unless `rates` is None, `"affinity"` (B, H, W, 8|R|).

    Raises:
        ConfigError: If an argument is out of range.
        DataError: If the weights cannot be read or downloaded, or are those of another network.

    Example:

    >>> model = DeepLabV3Plus(5, rates=((2, 2),), backbone="mobilenet_v2", weights=None)
    >>> {name: tuple(logits.shape) for name, logits in model(np.zeros((1, 33, 41, 3))).items()}
    {'semantic': (1, 33, 41, 5), 'affinity': (1, 33, 41, 8)}
    """
    check_choice("backbone", backbone, BACKBONES)
    if num_classes < 2:
        raise ConfigError(f"num_classes must be at least 2. Received: num_classes={num_classes}")
    if rates is not None:
        rates = check_rates(rates)
    if affinity_bias is not None:
        affinity_bias = _checked_bias(affinity_bias, rates)
    entry = BACKBONES[backbone]
    options = {
        "batch_norm": batch_norm,
        "batch_norm_momentum": batch_norm_momentum,
        "weight_decay": weight_decay,
    }
    network = atrous(
        entry.application(weights=None, input_shape=(None, None, 3)),
        entry.padding,
        output_stride,
        multi_grid=multi_grid,
        **options,
    )
    dilations = _dilations(atrous_rates, output_stride)
    ends = [network.get_layer(end).output for end in (entry.low_level, entry.high_level)]
    extractor = keras.Model(network.input, ends, name=backbone)
    load_backbone_weights(extractor, entry, weights)

    if head_batch_norm_momentum is None:
        head_batch_norm_momentum = batch_norm_momentum
    block = _Blocks(
        filters, separable, batch_norm, head_batch_norm_momentum, weight_decay, normalize_by_batch
    )
    images = keras.Input((None, None, 3), name="images")
    low_level, features = extractor(entry.preprocess()(images))

    features = _aspp(block, features, dilations, dropout)
    features = AlignedResize(output_stride, LOW_LEVEL_STRIDE, entry.padding, name="decoder_resize")(
        [features, images]
    )
    low_level = block.conv1x1(low_level, "decoder_low_level", filters=48)
    features = layers.Concatenate(name="decoder_concat")([features, low_level])
    for index in range(2):
        features = block.conv3x3(features, f"decoder_conv{index}")

    heads = {
        "semantic": layers.Conv2D(
            num_classes, 1, **_head_arguments("semantic_logits", weight_decay)
        )
    }
    if rates is not None:
        heads["affinity"] = AffinityHead(rates, **_head_arguments("affinity_logits", weight_decay))
    outputs = {
        key: AlignedResize(LOW_LEVEL_STRIDE, 1, entry.padding, dtype="float32", name=key)(
            [head(features), images]
        )
        for key, head in heads.items()
    }
    if affinity_bias is not None:
        heads["affinity"].bias.assign(affinity_bias)
    if propagation_iterations:
        outputs["semantic"] = _refined_logits(outputs, rates, propagation_iterations)
    return keras.Model(images, outputs, name=name)


def _refined_logits(outputs, rates, iterations):
    if rates is None:
        raise ConfigError(
            "Propagation needs rates; a model without them has no affinity head. "
            f"Received: rates=None, propagation_iterations={iterations}"
        )
    refined = AffinityPropagation(rates, iterations, name="propagation")(
        [ops.softmax(outputs["semantic"]), outputs["affinity"]]
    )
    return ops.log(ops.maximum(refined, keras.config.epsilon()))


def affinity_rates(model):
    """Returns the rates of a model built by `DeepLabV3Plus` or loaded; None without affinity.

    Raises:
        ConfigError: If the model has an affinity output but no `AffinityHead`.
    """
    for layer in model.layers:
        if isinstance(layer, AffinityHead):
            return layer.rates
    if "affinity" in getattr(model, "output_names", ()):
        raise ConfigError(f"The model {model.name!r} has no AffinityHead, which defines the rates.")
    return None


def _head_arguments(name, weight_decay):
    return {
        "kernel_initializer": keras.initializers.RandomNormal(stddev=0.01),
        "kernel_regularizer": kernel_regularizer(weight_decay),
        "dtype": "float32",
        "name": name,
    }


def _checked_bias(bias, rates):
    if rates is None:
        raise ConfigError("affinity_bias needs rates; a model without them has no affinity head.")
    bias, channels = np.asarray(bias, "float32"), NEIGHBORS * len(rates)
    if bias.shape != (channels,) or not np.isfinite(bias).all():
        raise ConfigError(
            f"affinity_bias must be {channels} finite numbers. "
            f"Received: shape {bias.shape}, values {bias.tolist()}"
        )
    return bias


def _dilations(atrous_rates, output_stride):
    """The ASPP's dilations at an output stride."""
    valid = isinstance(atrous_rates, (tuple, list)) and len(atrous_rates) > 0
    if not valid or not all(isinstance(rate, int) and rate > 0 for rate in atrous_rates):
        raise ConfigError(
            f"atrous_rates must be positive integers. Received: atrous_rates={atrous_rates!r}"
        )
    return [max(1, rate * 16 // output_stride) for rate in atrous_rates]


def _aspp(block, features, dilations, dropout):
    """Atrous spatial pyramid pooling with image-level features."""
    branches = [block.conv1x1(features, "aspp_conv1x1")]
    for index, rate in enumerate(dilations):
        branches.append(block.conv3x3(features, f"aspp_atrous{index}", dilation_rate=rate))
    pooled = layers.GlobalAveragePooling2D(keepdims=True, name="aspp_pool")(features)
    pooled = block.conv1x1(pooled, "aspp_pool_conv")
    branches.append(BroadcastLike(name="aspp_pool_broadcast")([pooled, features]))
    features = layers.Concatenate(name="aspp_concat")(branches)
    features = block.conv1x1(features, "aspp_projection")
    return layers.Dropout(dropout, name="aspp_dropout")(features)


@keras.saving.register_keras_serializable("dilated_affinity")
class BroadcastLike(layers.Layer):
    """Broadcasts image-level features (B, 1, 1, C) to the positions of other features."""

    def call(self, inputs):
        pooled, like = inputs
        batch, height, width = ops.shape(like)[:3]
        return ops.broadcast_to(pooled, (batch, height, width, pooled.shape[-1]))

    def compute_output_shape(self, input_shape):
        pooled, like = input_shape
        return (*like[:3], pooled[-1])


class _Blocks:
    """Convolution, batch norm and ReLU as ASPP and decoder use them."""

    def __init__(self, filters, separable, batch_norm, momentum, weight_decay, normalize_by_batch):
        self.filters = filters
        self.normalize_by_batch = normalize_by_batch
        self.separable = separable
        self.synchronized = synchronized(batch_norm != "local")
        self.momentum = momentum
        self.regularizer = kernel_regularizer(weight_decay)

    def conv1x1(self, features, name, filters=None):
        return self._conv(features, name, filters or self.filters, 1, 1)

    def conv3x3(self, features, name, dilation_rate=1):
        if not self.separable:
            return self._conv(features, name, self.filters, 3, dilation_rate)
        features = layers.DepthwiseConv2D(
            3,
            padding="same",
            dilation_rate=dilation_rate,
            use_bias=False,
            name=f"{name}_depthwise",
        )(features)
        features = self._normalize(features, f"{name}_depthwise")
        return self._conv(features, name, self.filters, 1, 1)

    def _conv(self, features, name, filters, kernel_size, dilation_rate):
        features = layers.Conv2D(
            filters,
            kernel_size,
            padding="same",
            dilation_rate=dilation_rate,
            use_bias=False,
            kernel_initializer="he_normal",
            kernel_regularizer=self.regularizer,
            name=name,
        )(features)
        return self._normalize(features, name)

    def _normalize(self, features, name):
        features = layers.BatchNormalization(
            momentum=self.momentum,
            epsilon=1e-5,
            synchronized=self.synchronized,
            trainable=self.normalize_by_batch,
            name=f"{name}_bn",
        )(features)
        return layers.ReLU(name=f"{name}_relu")(features)
