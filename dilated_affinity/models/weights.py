"""ImageNet weights for a backbone, from a file or from `keras.applications`."""

import os
from pathlib import Path

import keras

from dilated_affinity.errors import ConfigError, DataError
from dilated_affinity.models.backbone import Backbone


def load_backbone_weights(model: keras.Model, backbone: Backbone, weights) -> None:
    """Copies weights of a `keras.applications` model into its atrous clone, layer by layer.

    Args:
        model: What `atrous` made of the application, or a part of it.
        backbone: The application's entry.
        weights: Path of a `.weights.h5` file of `application(include_top=False)`, `"imagenet"`
            (downloaded by Keras), or None to leave the initial values.

    Raises:
        ConfigError: If `weights` is neither of these.
        DataError: If the file cannot be read or holds another network, or the download fails.
    """
    if weights is None:
        return
    source = _application_with(backbone, weights)
    for layer in model.layers:
        if layer.weights:
            layer.set_weights(source.get_layer(layer.name).get_weights())


def _application_with(backbone, weights):
    if weights == "imagenet":
        try:
            return backbone.application(weights="imagenet", input_shape=(224, 224, 3))
        except Exception as error:  # keras raises a bare Exception when a download fails
            raise DataError(
                "ImageNet weights could not be downloaded; on a machine without network pass the "
                f"path of a .weights.h5 file instead. Received: {_first_line(error)}"
            ) from error
    path = Path(os.fspath(weights))
    if not path.name.endswith(".weights.h5"):
        raise ConfigError(
            "backbone weights must be 'imagenet', None or the path of a .weights.h5 file. "
            f"Received: {str(weights)!r}"
        )
    if not path.is_file():
        raise DataError(f"{path}: no such file of backbone weights.")
    model = backbone.application(weights=None, input_shape=(224, 224, 3))
    try:
        model.load_weights(path)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path}: not the weights of keras.applications' {model.name} without classifier: "
            f"{_first_line(error)}"
        ) from error
    return model


def _first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]
