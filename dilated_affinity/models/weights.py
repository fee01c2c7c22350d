"""Loads backbone weights: downloaded by Keras, from its files, or a TensorFlow 1 checkpoint."""

import os
import re
from pathlib import Path

import keras
import tensorflow as tf

from dilated_affinity.errors import ConfigError, DataError, first_line
from dilated_affinity.models.backbone import Backbone

UNREADABLE = (tf.errors.OpError, ValueError, LookupError, RuntimeError)
"""Errors of TensorFlow's checkpoint reader; a truncated file raises IndexError."""

MAX_NAMED = 3
"""Largest number of faults of a checkpoint that a message lists."""


def load_backbone_weights(model: keras.Model, backbone: Backbone, weights) -> None:
    """Assigns the weights of the original network to an atrous clone, layer by layer.

    Args:
        model: The result of `atrous`, or a part of it.
        backbone: The application's entry.
        weights: Path of a `.weights.h5` file of `application(include_top=False)`; `"imagenet"`
            (downloaded by Keras); for a backbone with `checkpoint`, the prefix of a TensorFlow 1
            checkpoint, or its folder for the latest one; or None to keep the initial values.

    Raises:
        ConfigError: If `weights` is none of these.
        DataError: If the file cannot be read or is of another network, or the download fails. The
            message lists missing and unexpected variables and those of another shape.
    """
    if weights is None:
        return
    path = os.fspath(weights)
    if path.endswith(".weights.h5"):
        _copy(_read_application(backbone, Path(path)), model)
    elif backbone.checkpoint is None:
        if path != "imagenet":
            raise ConfigError(
                "backbone weights must be 'imagenet', None or the path of a .weights.h5 file. "
                f"Received: {path!r}"
            )
        _copy(_download_application(backbone), model)
    else:
        if path in ("", "imagenet"):
            raise ConfigError(
                f"weights of {model.name} must be None or the path of a .weights.h5 file or of a "
                f"TensorFlow 1 checkpoint, of which Keras has none to download. Received: {path!r}"
            )
        _read_checkpoint(model, backbone.checkpoint, path)


def _copy(source, model):
    for layer in model.layers:
        if layer.weights:
            layer.set_weights(source.get_layer(layer.name).get_weights())


def _download_application(backbone):
    try:
        return backbone.application(weights="imagenet", input_shape=(224, 224, 3))
    except Exception as error:  # keras raises a bare Exception when a download fails
        raise DataError(
            "ImageNet weights could not be downloaded; on a machine without network, set "
            "backbone_weights to the path of a .weights.h5 file. "
            f"Received: {first_line(error)}"
        ) from error


def _read_application(backbone, path):
    if not path.is_file():
        raise DataError(f"{path}: no such file of backbone weights.")
    model = backbone.application(weights=None, input_shape=(224, 224, 3))
    try:
        model.load_weights(path)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path}: not the weights of Keras' {model.name} without classifier: "
            f"{first_line(error)}"
        ) from error
    return model


def _read_checkpoint(model, names, path):
    """Assigns every variable of the model, or raises an error and leaves the model unchanged."""
    variables = {
        names.variable(layer.name, variable.name): variable
        for layer in model.layers
        for variable in layer.weights
    }
    try:
        reader = tf.train.load_checkpoint(path.removesuffix(".index"))
        faults = _faults(variables, reader.get_variable_to_shape_map(), names)
        values = {} if faults else {name: reader.get_tensor(name) for name in variables}
    except UNREADABLE as error:
        raise DataError(
            f"{path}: cannot be read as a TensorFlow 1 checkpoint: {first_line(error)}"
        ) from error
    if faults:
        rest = f"; and {len(faults) - MAX_NAMED} more" if len(faults) > MAX_NAMED else ""
        raise DataError(
            f"{path}: not a checkpoint of {model.name}: {'; '.join(faults[:MAX_NAMED])}{rest}."
        )
    for name, variable in variables.items():
        variable.assign(values[name])


def _faults(variables, shapes, names):
    """Returns the differences between a checkpoint's variables and those of the model."""
    slot = re.compile(f"/({'|'.join(names.slots)})$")
    missing = [f"{name} is missing" for name in variables if name not in shapes]
    misshapen = [
        f"{name} has shape {tuple(shapes[name])}, not {tuple(variable.shape)}"
        for name, variable in variables.items()
        if name in shapes and tuple(shapes[name]) != tuple(variable.shape)
    ]
    beside = (name for name in sorted(shapes) if slot.sub("", name) not in variables)
    unexpected = [
        f"{name} is unexpected"
        for name in beside
        if not re.fullmatch(names.ignored, slot.sub("", name))
    ]
    return missing + misshapen + unexpected
