"""The model to fit, whose affinity logits have the decoder's stride for a faster loss."""

import keras

from dilated_affinity.errors import ConfigError
from dilated_affinity.models.resize import AlignedResize


def training_model(model: keras.Model) -> tuple[keras.Model, dict]:
    """Builds a model from the same layers whose affinity logits have the decoder's stride.

    `AffinityLoss` resizes such logits itself, image by image, which takes less time and memory
    than maps of 8|R| channels at full resolution. Loss and gradients are the same;
    `AffinityAccuracy` counts only the pixels at the logits' positions. Compile and fit the returned
    model; save and predict with the given one, which shares its weights.

    Args:
        model: A model built by `DeepLabV3Plus`.

    Returns:
        The model to fit, and a dict of the arguments `logits_stride` and `padding` for
        `AffinityLoss` and `AffinityAccuracy`, which is empty for a model without affinity head.

    Raises:
        ConfigError: If the model has an affinity output that is not resized by `DeepLabV3Plus`.

    Example:

    >>> import numpy as np
    >>> import dilated_affinity as da
    >>> labels = np.random.default_rng(0).integers(0, 5, (2, 33, 33)).astype("uint8")
    >>> statistics = da.AffinityStatistics.from_labels(labels, (2, 4))
    >>> model = da.DeepLabV3Plus(5, (2, 4), "mobilenet_v2_0.35", weights=None, filters=8)
    >>> fast, grid = da.training_model(model)
    >>> grid
    {'logits_stride': 4, 'padding': 'same'}
    >>> fast.compile(
    ...     "sgd",
    ...     loss={"semantic": da.SemanticLoss(), "affinity": da.AffinityLoss(statistics, **grid)},
    ... )
    >>> targets = {"semantic": labels, "affinity": da.affinity_targets(labels, (2, 4))}
    >>> history = fast.fit(np.zeros((2, 33, 33, 3)), targets, batch_size=2, verbose=0)
    >>> sorted(history.history)
    ['affinity_loss', 'loss', 'semantic_loss']
    """
    outputs, grid = at_decoder_stride(model)
    return keras.Model(model.input, outputs, name=model.name), grid


def at_decoder_stride(model: keras.Model) -> tuple[dict, dict]:
    """Returns the outputs of `training_model`, and the arguments of its loss and metric."""
    outputs = dict(model.output)
    if "affinity" not in outputs:
        return outputs, {}
    resize = next((layer for layer in model.layers if layer.name == "affinity"), None)
    if not isinstance(resize, AlignedResize):
        raise ConfigError(
            "training_model needs a model of DeepLabV3Plus. "
            f"Received: the model {model.name!r}, whose affinity is not an AlignedResize"
        )
    # Replaces the resize, so that Keras orders the variables as in the given model: under JAX an
    # optimizer identifies them by their order.
    logits = keras.layers.Identity(dtype="float32")
    outputs["affinity"] = logits(model.get_layer("affinity_logits").output)
    return outputs, {"logits_stride": resize.source_stride, "padding": resize.padding}
