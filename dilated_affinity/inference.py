"""Using a trained model: in one call on images, or on the files of a folder."""

import collections
import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
from keras import layers, ops
from PIL import Image

from dilated_affinity.canvases import Canvases, pad_to
from dilated_affinity.compilation import any_image_size
from dilated_affinity.datasets.classes import ClassTable
from dilated_affinity.datasets.image_files import IMAGE_SUFFIXES, decode_image, read_bytes
from dilated_affinity.datasets.loading import Source
from dilated_affinity.errors import ConfigError, DataError
from dilated_affinity.files import write_atomically
from dilated_affinity.models.deeplab import affinity_rates
from dilated_affinity.models.resize import AlignedResize
from dilated_affinity.multi_view import MultiScale, SlidingWindow
from dilated_affinity.progress import progress
from dilated_affinity.refinement import (
    Refiner,
    as_refinement,
    decoder_resize,
    divided_rates,
)
from dilated_affinity.scales import check_scales
from dilated_affinity.visualization import (
    affinity_picture,
    comparison,
    error_picture,
    overlay,
    overlay_entries,
    with_legend,
)


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


def network(model: keras.Model, scales: Sequence[float] = (1.0,), flip=False, window=0):
    """The model as a function of uint8 images of any size, without a trace for each size.

    It sees the image as it is, never padded: what pads does so behind it (`Canvases`), so that
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
    predict = any_image_size(lambda images: model(ops.cast(images, "float32"), training=False))
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
    """

    labels: np.ndarray
    unrefined: np.ndarray
    affinity: np.ndarray | None


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
        self._network = network(model, scales, flip, window)
        refinement = as_refinement(refinement, iterations=iterations, **settings)
        self._refine = Refiner(model, refinement)
        self._threshold = refinement.threshold
        self._canvases = Canvases()

    def __call__(self, image) -> Prediction:
        """Predicts one image, uint8 (H, W, 3) RGB."""
        check_images(image, rank=3)
        logits = self._network(image[np.newaxis])
        probabilities = ops.convert_to_numpy(ops.softmax(logits["semantic"]))[0]
        unrefined = probabilities.argmax(axis=-1).astype(np.uint8)
        if self.rates is None:
            return Prediction(unrefined, unrefined, None)
        affinity = ops.convert_to_numpy(logits["affinity"])[0]
        canvas = self._canvases.fit(unrefined.shape)
        refined = self._refine(
            pad_to(probabilities, canvas), pad_to(affinity, canvas), unrefined.shape
        )
        labels = ops.convert_to_numpy(ops.argmax(next(refined), axis=-1))[0]
        same = ops.convert_to_numpy(ops.sigmoid(affinity - self._threshold))
        return Prediction(labels.astype(np.uint8), unrefined, same)

    def map(self, images):
        """Yields the `Prediction` of each image, in order."""
        return map(self, images)


def predict_files(
    predictor: Predictor,
    classes: ClassTable,
    source: str | os.PathLike,
    output_dir: str | os.PathLike,
    overwrite=False,
    label_ids: Sequence[int] | None = None,
) -> list[Path]:
    """Predicts an image file, or every image in a folder and its sub-folders.

    For `a/b.jpg` it writes `a/b_labels.png` (palette PNG, the class is the index),
    `a/b_overlay.png` with a legend below it and, for a model with affinity, `a/b_affinity.png`
    below `output_dir`.

    Args:
        predictor: What predicts.
        classes: Names and colours of the classes.
        source: An image file or a folder.
        output_dir: Where to write; made if missing.
        overwrite: Replace files that exist. Defaults to False.
        label_ids: What to write for each class in the label PNGs, which are grey then, such as
            `CITYSCAPES_LABEL_IDS` for its test server. None writes the classes themselves.

    Returns:
        The paths of the label PNGs.

    Raises:
        DataError: If there is nothing to predict, an image cannot be read, two images would
            write the same file or outside `output_dir`, or a file exists and `overwrite` is False.
            All but the reading is found before anything is written.
    """
    items = [
        (stem, str(path), functools.partial(_read_image, path))
        for path, stem in _images(Path(source), Path(output_dir))
    ]
    return _write_predictions(predictor, classes, items, output_dir, overwrite, label_ids)


def predict_examples(
    predictor: Predictor,
    source: Source,
    output_dir: str | os.PathLike,
    limit: int | None = None,
    overwrite=False,
    label_ids: Sequence[int] | None = None,
) -> list[Path]:
    """Predicts examples of a data set, whose labels are known.

    Writes what `predict_files` writes, and, for each, `<id>_comparison.png`: image, prediction,
    affinity, refined prediction and ground truth side by side; and `<id>_errors.png`: what is
    wrong and, for a model with affinity, what refinement has repaired and harmed.

    Args:
        predictor: What predicts.
        source: The examples.
        output_dir: Where to write; made if missing.
        limit: How many examples, from the first on; None for all.
        overwrite: As for `predict_files`.
        label_ids: As for `predict_files`.

    Returns:
        The paths of the label PNGs.

    Raises:
        DataError: As `predict_files`.
    """
    output_dir = Path(output_dir)
    items = [
        (output_dir / name, name, functools.partial(source.__getitem__, index))
        for index, name in enumerate(source.ids[:limit])
    ]
    return _write_predictions(predictor, source.classes, items, output_dir, overwrite, label_ids)


def _read_image(path):
    return {"image": decode_image(read_bytes(path), str(path))}


def _write_predictions(predictor, classes, items, output_dir, overwrite, label_ids):
    """Predicts items, each the beginning of its outputs' paths, a name, and how to read it."""
    taken = {}
    inside = Path(output_dir).resolve()
    for stem, name, _ in items:
        # Through a name with dots or a linked folder.
        if not stem.resolve().is_relative_to(inside):
            raise DataError(
                f"{name!r}: would be written outside {output_dir}, to {stem.resolve()}."
            )
        if stem in taken:
            raise DataError(f"{name} and {taken[stem]} would be written to the same files.")
        taken[stem] = name
        for kind in ("labels", "overlay", "affinity", "comparison", "errors"):
            target = _target(stem, kind)
            if target.exists() and not overwrite:
                raise DataError(
                    f"{target}: exists already; only overwrite=True (--overwrite) replaces it."
                )
    # Read while earlier ones are refined: a predictor may work on several at once.
    waiting = collections.deque()

    def images():
        for _, _, read in progress(items, "prediction"):
            waiting.append(read())
            yield waiting[-1]["image"]

    written = []
    for (stem, _, _), prediction in zip(items, predictor.map(images()), strict=True):
        pictures = _pictures(prediction, predictor.rates, classes, waiting.popleft(), label_ids)
        for kind, picture in pictures.items():
            write_atomically(_target(stem, kind), picture.save)
        written.append(_target(stem, "labels"))
    return written


def _pictures(prediction, rates, classes, example, label_ids):
    labels = (
        palette_image(prediction.labels, classes)
        if label_ids is None
        else label_id_image(prediction.labels, label_ids)
    )
    entries = overlay_entries(prediction.labels, classes)
    colored = overlay(example["image"], prediction.labels, classes)
    arrays = {"overlay": with_legend(colored, entries)}
    if prediction.affinity is not None:
        arrays["affinity"] = affinity_picture(prediction.affinity, rates)
    if "label" in example:
        arrays["comparison"] = comparison(example, prediction, rates, classes)
        arrays["errors"] = error_picture(example["label"], prediction, classes.ignore_label)
    return {"labels": labels, **{kind: Image.fromarray(array) for kind, array in arrays.items()}}


def palette_image(labels, classes: ClassTable) -> Image.Image:
    """A palette image whose indices are the labels, uint8 (H, W), in the data set's colours."""
    image = Image.frombytes("P", labels.shape[::-1], labels.tobytes())
    image.putpalette(classes.color_map().ravel().tolist())
    return image


def label_id_image(labels, label_ids: Sequence[int]) -> Image.Image:
    """A grey image of the ids that a data set's own label files have.

    Args:
        labels: Classes, uint8 (H, W).
        label_ids: The id of each class, 0 to 255.

    Example:

    >>> from dilated_affinity.datasets.classes import CITYSCAPES_LABEL_IDS
    >>> image = label_id_image(np.array([[0, 18]], np.uint8), CITYSCAPES_LABEL_IDS)
    >>> image.mode, np.asarray(image).tolist()
    ('L', [[7, 33]])
    """
    return Image.fromarray(np.array(label_ids, np.uint8)[labels])


def _target(stem: Path, kind) -> Path:
    return stem.with_name(f"{stem.name}_{kind}.png")


def _images(source, output_dir) -> list[tuple[Path, Path]]:
    """Pairs of image file and the path its outputs' names begin with."""
    if source.is_file():
        return [(source, output_dir / source.stem)]
    if not source.is_dir():
        raise DataError(f"{source}: no such file or folder.")
    resolved = output_dir.resolve()
    if resolved.is_relative_to(source.resolve()):
        raise ConfigError(
            "output_dir must not lie inside the input folder, whose images are predicted. "
            f"Received: output_dir={str(output_dir)!r}, input={str(source)!r}"
        )
    paths = sorted(
        path
        for path in source.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    )
    if not paths:
        raise DataError(f"{source}: no image in this folder ({', '.join(IMAGE_SUFFIXES)}).")
    return [(path, output_dir / path.relative_to(source).with_suffix("")) for path in paths]
