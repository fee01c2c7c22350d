"""Transformations of trained networks for inference: folded batch norm, mixed precision."""

import collections

import keras
import numpy as np

from dilated_affinity.errors import ConfigError
from dilated_affinity.models.backbone import CONVOLUTIONS

PRECISIONS = {"none": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}
"""Keras' policy of the network for each `mixed_precision`."""

HEADS = ("semantic_logits", "affinity_logits")
"""Layers of `DeepLabV3Plus` that start the part computed in float32."""

_FOLDABLE = (*CONVOLUTIONS, keras.layers.SeparableConv2D)


def fold_batch_norm(model: keras.Model) -> keras.Model:
    """Folds each batch norm after a convolution into the weights of the convolution.

    With stored statistics, batch norm scales and shifts each channel. The preceding convolution can
    do both: the scale becomes part of its kernel, the shift of its bias. The outputs stay the same
    up to rounding, and one pass over the features is saved. The result is for inference only, since
    it no longer normalizes in training.

    It folds `BatchNormalization` layers over the channels that directly follow a `Conv2D`,
    `DepthwiseConv2D` or `SeparableConv2D` without activation whose output has no other reader, and
    replaces each by an `Identity` of the same name. Other layers are kept.

    Args:
        model: A functional model, such as `DeepLabV3Plus` or `inference_model` builds it; nested
            models are folded as well.

    Returns:
        A new functional `keras.Model` with the same inputs, outputs and names of layers, and its
        own weights.

    Example:

    >>> from dilated_affinity.models.deeplab import DeepLabV3Plus
    >>> model = DeepLabV3Plus(5, ((2, 2),), "mobilenet_v2_0.35", weights=None, filters=8)
    >>> fold_batch_norm(model).count_params() < model.count_params()
    True
    """
    folded = dict(_foldable(model))
    identities = {id(batch_norm) for batch_norm in folded.values()}

    def clone(layer):
        config = layer.get_config()
        if id(layer) in identities:
            return keras.layers.Identity(name=layer.name, dtype=config["dtype"])
        if layer in folded:
            config["use_bias"] = True
        return type(layer).from_config(config)

    def weights(layer):
        if id(layer) in identities:
            return []
        return _folded_weights(layer, folded[layer]) if layer in folded else layer.get_weights()

    return _rewritten(model, clone, weights)


def in_mixed_precision(model: keras.Model, mixed_precision: str) -> keras.Model:
    """Makes a network that computes in a shorter type, with the same weights in float32.

    Preprocessing, heads and all that follows them are computed in float32. On a processor without
    arithmetic of that type it is slower, not faster.

    Args:
        model: As `DeepLabV3Plus` builds it.
        mixed_precision: `"bfloat16"`, `"float16"`, or `"none"` for float32.

    Returns:
        A new functional `keras.Model` with its own weights.

    Raises:
        ConfigError: For another `mixed_precision`, or a model without the layers of
            `DeepLabV3Plus`.

    Example:

    >>> from dilated_affinity.models.deeplab import DeepLabV3Plus
    >>> model = DeepLabV3Plus(5, ((2, 2),), "mobilenet_v2_0.35", weights=None, filters=8)
    >>> shorter = in_mixed_precision(model, "bfloat16")
    >>> [shorter.get_layer(name).compute_dtype for name in ("aspp_conv1x1", "semantic_logits")]
    ['bfloat16', 'float32']
    """
    if mixed_precision not in PRECISIONS:
        raise ConfigError(
            f"mixed_precision must be one of {', '.join(PRECISIONS)}. "
            f"Received: mixed_precision={mixed_precision!r}"
        )
    network = {id(layer) for layer in _between_preprocessing_and_heads(model)}

    def clone(layer):
        config = layer.get_config()
        if "dtype" in config:
            config["dtype"] = PRECISIONS[mixed_precision if id(layer) in network else "none"]
        return type(layer).from_config(config)

    return _rewritten(model, clone, lambda layer: layer.get_weights())


def _rewritten(model, clone, weights):
    """The model with each layer, also nested, replaced by `clone(layer)` with `weights(layer)`."""
    copies = []

    def recorded(layer):
        copy = clone(layer)
        if isinstance(layer, keras.layers.Layer):  # not an operation of `keras.ops`
            copies.append((copy, layer))
        return copy

    # From a model that is not compiled; otherwise Keras compiles the clone as well.
    plain = keras.Model(model.input, model.output, name=model.name)
    rewritten = keras.models.clone_model(
        plain, clone_function=recorded, call_function=_call, recursive=True
    )
    for copy, layer in copies:
        copy.set_weights(weights(layer))
    return rewritten


def _call(layer, *args, **kwargs):
    if (
        type(layer) is keras.layers.Identity
    ):  # has no argument mask, with which batch norm was called
        kwargs.pop("mask", None)
    return layer(*args, **kwargs)


def _foldable(model):
    """Yields pairs of a convolution and the batch norm to fold into it, also of nested models."""
    graph, layers = _Graph(model), {layer.name: layer for layer in model.layers}
    for name, layer in layers.items():
        if isinstance(layer, keras.Function):
            yield from _foldable(layer)
        elif type(layer) is keras.layers.BatchNormalization and len(graph.read_by(name)) == 1:
            (source,) = graph.read_by(name)
            alone = graph.calls(source) == graph.readers(source) == 1
            convolution = layers.get(source)  # None for an operation of `keras.ops`
            if alone and _is_linear(convolution) and _is_over_channels(layer, convolution):
                yield convolution, layer


def _is_linear(layer):
    # Not subclasses, which may compute something else.
    return type(layer) in _FOLDABLE and layer.activation in (None, keras.activations.linear)


def _is_over_channels(batch_norm, convolution):
    channels = -1 if convolution.data_format == "channels_last" else 1
    return batch_norm.axis % 4 == channels % 4


def _folded_weights(convolution, batch_norm):
    """Weights, in the order of the layer, of a convolution with bias equivalent to both layers."""
    names = [variable.name for variable in batch_norm.weights]
    values = (weight.astype("float64") for weight in batch_norm.get_weights())
    stored = {"gamma": 1.0, "beta": 0.0, **dict(zip(names, values, strict=True))}
    scale = stored["gamma"] / np.sqrt(stored["moving_variance"] + batch_norm.epsilon)
    shift = stored["beta"] - stored["moving_mean"] * scale
    *before, kernel, bias = convolution.get_weights() + [0.0] * (not convolution.use_bias)
    # The output channels are the last axis, or, of a depthwise kernel, the last two.
    depthwise = isinstance(convolution, keras.layers.DepthwiseConv2D)
    channels = kernel.shape[2 if depthwise else 3 :]
    return [*before, kernel * scale.reshape(channels), bias * scale + shift]


def _between_preprocessing_and_heads(model):
    """The layers from the backbone to the heads, and those inside the backbone."""
    graph, layers = _Graph(model), {layer.name: layer for layer in model.layers}
    heads = [name for name in HEADS if name in layers]
    backbones = [name for name, layer in layers.items() if isinstance(layer, keras.Function)]
    if not heads or len(backbones) != 1:
        raise ConfigError(
            "mixed_precision needs a model of DeepLabV3Plus. "
            f"Received: the model {model.name!r} with the layers {', '.join(layers)}"
        )
    between = graph.ancestors(heads) - graph.ancestors(backbones)
    inside = layers[backbones[0]].layers
    return [layers[name] for name in between if name in layers] + inside


class _Graph:
    """The connections between layers of a functional model by name, from its config."""

    def __init__(self, model):
        config = model.get_config()
        self._calls = {layer["name"]: layer["inbound_nodes"] for layer in config["layers"]}
        read = [name for name in self._calls for name in self.read_by(name)]
        ends = [
            name for name in keras.tree.flatten(config["output_layers"]) if isinstance(name, str)
        ]
        self._readers = collections.Counter(read + ends)

    def calls(self, name):
        return len(self._calls[name])

    def readers(self, name):
        return self._readers[name]

    def read_by(self, name):
        """Names of the layers that a layer reads, over all its calls."""
        return [source for call in self._calls[name] for source in _histories(call)]

    def ancestors(self, names):
        found = set()
        waiting = list(names)
        while waiting:
            for source in self.read_by(waiting.pop()):
                if source not in found:
                    found.add(source)
                    waiting.append(source)
        return found


def _histories(value):
    """Names of the layers whose tensors occur in the arguments of a call."""
    if isinstance(value, dict):
        if "keras_history" in value:
            return [value["keras_history"][0]]
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [name for each in value for name in _histories(each)]
    return []
