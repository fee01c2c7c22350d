"""Using a trained model: in one call on images, or on one image after the other."""

import dataclasses
from collections.abc import Sequence

import keras
import numpy as np
from keras import layers, ops

from dilated_affinity.errors import ConfigError
from dilated_affinity.inference.multi_view import MultiScale, SlidingWindow
from dilated_affinity.inference.padding import PaddedShapes, on_canvas
from dilated_affinity.inference.refinement import (
    Refiner,
    as_refinement,
    decoder_resize,
    divided_rates,
)
from dilated_affinity.inference.views import check_scales
from dilated_affinity.models.deeplab import affinity_rates
from dilated_affinity.models.resize import AlignedResize
from dilated_affinity.runtime.xla import trace_once


def inference_model(
    model: keras.Model, iterations: int | None = None, refinement=None, **settings
) -> keras.Model:
    """Wraps a trained model into one that maps images to refined labels (section 3.3).

    Call it by `predict` or inside a `tf.function` for large images: called by itself, Keras keeps
    what every layer puts out until the last one is done (ResNet-101 at output stride 8 then needs
    above 20 GB at 1024x2048, else 3).

    Args:
        model: As `DeepLabV3Plus` builds it; one without affinity head is not refined.
        iterations: Iterations of propagation. Defaults to None: those of `refinement`.
        refinement: A `Refinement`, such as `calibrate` finds it; or `"exact"`, `"decoder_stride"`,
            `"early_stop"` or an `EarlyStop`. Defaults to None: the paper's settings, 10 iterations.
        **settings: Fields of the `Refinement` to replace, such as `self_weight=20.0, mu=50.0`.

    Returns:
        `keras.Model` from uint8 RGB images (B, H, W, 3) to a dict of `"labels"` uint8 (B, H, W),
        `"probabilities"` float32 (B, H, W, C), and, for a model with an affinity head,
        `"affinity"` float32 (B, H, W, 8|R|), the probability that a neighbour shares the class:
        the sigmoid of the logits less the refinement's threshold.

    Raises:
        ConfigError: For an argument out of its range, or a variant of the refinement that the model
            does not allow. The model returned raises it for what are no uint8 RGB images.

    Example:

    >>> from dilated_affinity.models.deeplab import DeepLabV3Plus
    >>> model = DeepLabV3Plus(5, rates=((2, 2),), backbone="mobilenet_v2", weights=None)
    >>> outputs = inference_model(model)(np.zeros((1, 33, 41, 3), "uint8"))
    >>> outputs["labels"].shape
    TensorShape([1, 33, 41])
    """
    refinement = as_refinement(refinement, iterations=iterations, **settings)
    images = keras.Input((None, None, 3), dtype="uint8", name="images")
    rates = affinity_rates(model)
    refined = rates is not None and refinement.iterations > 0
    if refined and refinement.variant == "decoder_stride":
        logits, probabilities = _refined_at_decoder_stride(model, images, rates, refinement)
    else:
        logits = model(ops.cast(images, "float32"))
        probabilities = layers.Softmax(dtype="float32")(logits["semantic"])
        if refined:
            probabilities = refinement.layer(rates)([probabilities, logits["affinity"]])
    outputs = {
        "labels": ops.cast(ops.argmax(probabilities, axis=-1), "uint8"),
        "probabilities": probabilities,
    }
    if rates is not None:
        outputs["affinity"] = ops.sigmoid(logits["affinity"] - refinement.threshold)
    return InferenceModel(images, outputs, name=f"{model.name}_inference")


def _refined_at_decoder_stride(model, images, rates, refinement):
    """The model's logits, and refined probabilities of which only the result is large."""
    resize = decoder_resize(model)
    heads = {f"{name}_at_stride": model.get_layer(name).input[0] for name in model.output}
    whole = keras.Model(model.input, {**model.output, **heads}, name=model.name)
    logits = whole(ops.cast(images, "float32"))
    probabilities = layers.Softmax(dtype="float32")(logits["semantic_at_stride"])
    propagation = refinement.layer(divided_rates(rates, resize.source_stride))
    refined = propagation([probabilities, logits["affinity_at_stride"]])
    enlarge = AlignedResize(resize.source_stride, 1, resize.padding, dtype="float32")
    return logits, enlarge([refined, images])


@keras.saving.register_keras_serializable("dilated_affinity")
class InferenceModel(keras.Model):
    """A functional model of images that refuses what are none, where Keras would convert it."""

    def __call__(self, images, *args, **kwargs):
        check_images(images)
        return super().__call__(images, *args, **kwargs)


def check_images(images, rank=4):
    """Raises `ConfigError` unless the images are uint8 RGB, of shape (H, W, 3) or a batch."""
    dtype, shape = getattr(images, "dtype", None), tuple(getattr(images, "shape", ()))
    if dtype is not None:
        dtype = keras.backend.standardize_dtype(dtype)
    if dtype != "uint8" or len(shape) != rank or shape[-1] != 3 or 0 in shape:
        wanted = ("batch", "height", "width", "3")[-rank:]
        received = f"{dtype} of shape {shape}" if dtype else type(images).__name__
        raise ConfigError(
            f"images must be uint8 RGB of shape ({', '.join(wanted)}). Received: {received}"
        )


def logits_fn(model: keras.Model, scales: Sequence[float] = (1.0,), flip=False, window=0):
    """The model as a function of uint8 images of any size, without a trace for each size.

    It sees the image as it is, never padded: what pads does so behind it (`PaddedShapes`), so that
    padding reaches neither its convolutions nor its image-level pooling.

    Args:
        model: As `DeepLabV3Plus` builds it.
        scales: Scales of the image to average over, see `MultiScale`.
        flip: Average with the mirror image, too.
        window: Side of the windows in which to predict what is larger, see `SlidingWindow`; 0
            for whole images.

    Returns:
        Function from uint8 (1, H, W, 3) to the model's dict of logits.

    Raises:
        ConfigError: For scales or a window that make no sense.
    """
    predict = trace_once(lambda images: model(ops.cast(images, "float32"), training=False))
    rates = affinity_rates(model)
    if window:
        predict = SlidingWindow(predict, window, rates)
    if flip or check_scales(scales) != (1.0,):
        predict = MultiScale(predict, scales, flip, rates)
    return predict


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Labels of one image, and what they came from.

    Attributes:
        labels: uint8 (H, W), after propagation.
        unrefined: uint8 (H, W), before it.
        affinity: float32 (H, W, 8|R|), probability that a neighbour shares the class; None for a
            model without affinity head.
        probabilities: float32 (H, W, C), of the classes, after propagation; None where a predictor
            of one's own gives none.
    """

    labels: np.ndarray
    unrefined: np.ndarray
    affinity: np.ndarray | None
    probabilities: np.ndarray | None = None


class Predictor:
    """Predicts images of any sizes, one at a time, compiling propagation for few of them.

    Args:
        model: As `DeepLabV3Plus` builds it.
        iterations: As for `inference_model`.
        refinement: As for `inference_model`.
        scales: Scales of the image to average over before propagation, see `MultiScale`.
        flip: Average with the mirror image, too.
        window: Side of the windows in which to predict what is larger, see `SlidingWindow`; 0
            for whole images.
        **settings: As for `inference_model`.

    Raises:
        ConfigError: For an argument out of its range, or a variant of the refinement that the model
            does not allow.
    """

    def __init__(
        self,
        model,
        iterations: int | None = None,
        refinement=None,
        scales=(1.0,),
        flip=False,
        window=0,
        **settings,
    ):
        self.rates = affinity_rates(model)
        self._network = logits_fn(model, scales, flip, window)
        refinement = as_refinement(refinement, iterations=iterations, **settings)
        self._refine = Refiner(model, refinement)
        self._threshold = refinement.threshold
        self._padded_shapes = PaddedShapes()

    def __call__(self, image) -> Prediction:
        """Predicts one image, uint8 (H, W, 3) RGB."""
        check_images(image, rank=3)
        logits = self._network(image[np.newaxis])
        probabilities = ops.softmax(logits["semantic"])
        unrefined = ops.convert_to_numpy(ops.argmax(probabilities, axis=-1))[0].astype(np.uint8)
        if self.rates is None:
            return Prediction(unrefined, unrefined, None, ops.convert_to_numpy(probabilities)[0])
        affinity, canvas = logits["affinity"], self._padded_shapes.round_up(unrefined.shape)
        refined = self._refine(
            on_canvas(probabilities, canvas), on_canvas(affinity, canvas), unrefined.shape
        )
        probabilities = ops.convert_to_numpy(next(refined))[0]
        labels = probabilities.argmax(axis=-1).astype(np.uint8)
        same = ops.convert_to_numpy(ops.sigmoid(affinity - self._threshold))[0]
        return Prediction(labels, unrefined, same, probabilities)

    def map(self, images):
        """Yields the `Prediction` of each image, in order."""
        return map(self, images)
