"""A trained model with its refinement as one Keras model from images to labels."""

import keras
from keras import ops

from dilated_affinity.errors import ConfigError
from dilated_affinity.inference.refinement import as_refinement
from dilated_affinity.inference.refiners import make_refiner


def inference_model(
    model: keras.Model, iterations: int | None = None, refinement=None, **settings
) -> keras.Model:
    """Wraps a trained model into one that maps images to refined labels (section 3.3).

    Call it by `predict` or inside a `tf.function` for large images: called by itself, Keras keeps
    the output of every layer until the last one is done (ResNet-101 at output stride 8 then needs
    above 20 GB at 1024x2048, else 3).

    Args:
        model: As `DeepLabV3Plus` builds it; one without affinity head is not refined.
        iterations: Iterations of propagation. Defaults to None: those of `refinement`.
        refinement: A `Refinement`, such as `calibrate` finds it; the name of a method,
            `"propagation"`, `"propagation_decoder_stride"`, `"propagation_early_stop"` or `"none"`;
            or an `EarlyStop`. Defaults to None: propagation with the paper's settings, 10
            iterations.
        **settings: Fields of the `Refinement` to replace, such as `self_weight=20.0, mu=50.0`.

    Returns:
        `keras.Model` from uint8 RGB images (B, H, W, 3) to a dict of `"labels"` uint8 (B, H, W),
        `"probabilities"` float32 (B, H, W, C), and, for a model with an affinity head,
        `"affinity"` float32 (B, H, W, 8|R|), the probability that a neighbour shares the class:
        the sigmoid of the logits minus the refinement's threshold.

    Raises:
        ConfigError: For an argument out of its range, or a refinement that the model does not allow
            or that cannot be a part of a Keras model. The returned model raises it for images that
            are not uint8 RGB.

    Example:

    >>> import numpy as np
    >>> from dilated_affinity.models.deeplab import DeepLabV3Plus
    >>> model = DeepLabV3Plus(5, rates=((2, 2),), backbone="mobilenet_v2", weights=None)
    >>> outputs = inference_model(model)(np.zeros((1, 33, 41, 3), "uint8"))
    >>> outputs["labels"].shape
    TensorShape([1, 33, 41])
    """
    refinement = as_refinement(refinement, iterations=iterations, **settings)
    if not refinement.iterations:
        refinement = refinement.replace(variant="none")
    images = keras.Input((None, None, 3), dtype="uint8", name="images")
    logits, probabilities = make_refiner(model, refinement).in_graph(images)
    outputs = {
        "labels": ops.cast(ops.argmax(probabilities, axis=-1), "uint8"),
        "probabilities": probabilities,
    }
    if "affinity" in logits:
        outputs["affinity"] = ops.sigmoid(logits["affinity"] - refinement.threshold)
    return InferenceModel(images, outputs, name=f"{model.name}_inference")


@keras.saving.register_keras_serializable("dilated_affinity")
class InferenceModel(keras.Model):
    """A functional model that refuses anything but uint8 RGB images, which Keras would convert."""

    def __call__(self, images, *args, **kwargs):
        check_images(images)
        return super().__call__(images, *args, **kwargs)


def check_images(images, rank=4):
    """Raises `ConfigError` unless the images are uint8 RGB.

    Args:
        images: Array or tensor.
        rank: 3 for an image (H, W, 3), 4 for a batch (B, H, W, 3). Defaults to 4.
    """
    dtype, shape = getattr(images, "dtype", None), tuple(getattr(images, "shape", ()))
    if dtype is not None:
        dtype = keras.backend.standardize_dtype(dtype)
    if dtype != "uint8" or len(shape) != rank or shape[-1] != 3 or 0 in shape:
        wanted = ("batch", "height", "width", "3")[-rank:]
        received = f"{dtype} of shape {shape}" if dtype else type(images).__name__
        raise ConfigError(
            f"images must be uint8 RGB of shape ({', '.join(wanted)}). Received: {received}"
        )
