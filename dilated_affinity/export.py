"""A trained model with its refinement as an artifact to serve: SavedModel, Keras, ONNX, LiteRT."""

import dataclasses
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

import keras
import numpy as np

from dilated_affinity.affinity.propagation import (
    ITERATIONS,
    SELF_WEIGHT,
    STEEPNESS,
    AffinityPropagation,
)
from dilated_affinity.errors import ConfigError, DataError, RunError, first_line
from dilated_affinity.export_formats import FORMATS, Options, arrays
from dilated_affinity.files import write_atomically
from dilated_affinity.inference import InferenceModel, check_images, inference_model
from dilated_affinity.models.backbone import check_choice

TOLERANCE = 1e-4
"""Largest difference in a probability that an export may show from the model."""


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How an export compared with the Keras model on the same images.

    Attributes:
        probabilities: Largest difference in a probability.
        labels: Number of pixels whose labels differ.
        pixels: Number of pixels compared.
    """

    probabilities: float
    labels: int
    pixels: int

    def __str__(self):
        return (
            f"{self.labels} of {self.pixels} labels differ from the Keras model's, probabilities "
            f"by at most {self.probabilities:.1e}"
        )


def export_model(
    model: keras.Model,
    output: str | os.PathLike,
    image,
    format="saved_model",
    iterations=ITERATIONS,
    self_weight=SELF_WEIGHT,
    mu=STEEPNESS,
    affinity=False,
    jit_compile=True,
    overwrite=False,
    metadata: dict | None = None,
    refinement="exact",
) -> Agreement:
    """Writes a trained model as an artifact that predicts images, and checks it on a real one.

    The artifact maps uint8 RGB images `images` (batch, height, width, 3) of any size to `labels`
    uint8 (batch, height, width) and `probabilities` float32 (batch, height, width, C), both
    refined, and, if asked for, `affinity` float32 (batch, height, width, 8|R|). Preprocessing,
    resizing and refinement are inside.

    It is written aside, loaded, and compared with the Keras model on `image` and on a batch of two
    of another size; only then does it appear at `output`.

    Args:
        model: As `DeepLabV3Plus` builds it; one without affinity head is not refined.
        output: Folder of the SavedModel, or a file ending in `.keras`, `.onnx` or `.tflite`.
        image: uint8 (H, W, 3), such as the model was trained for.
        format: `"saved_model"`, which TensorFlow loads without this package; `"keras"`, which needs
            this package; `"onnx"`, which needs the extra `onnx` to write; or `"litert"`.
            Defaults to `"saved_model"`.
        iterations: Iterations of propagation; 0 exports the network alone. Defaults to 10.
        self_weight: lambda of Eq. 6. Defaults to 6.
        mu: Steepness of Eq. 7. Defaults to 7.
        affinity: Output `affinity`, too. Defaults to False.
        jit_compile: Let XLA compile the propagation of a SavedModel, once for each batch size
            and each size of image rounded up to multiples of 64. False for a runtime without
            XLA, where it is many times slower. Has no effect on other formats.
        overwrite: Replace an earlier export. Defaults to False.
        metadata: JSON-serialisable dict, kept in a SavedModel as
            `assets.extra/dilated_affinity.json`.
        refinement: As for `inference_model`.

    Returns:
        `Agreement` with the Keras model.

    Raises:
        ConfigError: For a format that does not exist or whose packages are not installed, an output
            that does not end as the format asks, or settings that make no sense.
        DataError: If `output` exists and must not be replaced.
        RunError: If the converter refuses the model, or the artifact does not do what the model
            does. Nothing is left at `output` then.

    Example:

    >>> import tempfile
    >>> from dilated_affinity.models.deeplab import DeepLabV3Plus
    >>> model = DeepLabV3Plus(5, None, "mobilenet_v2_0.35", weights=None, filters=8)
    >>> image = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype("uint8")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export_model(model, f"{folder}/model.keras", image, "keras").labels
    0

    A SavedModel is used so, where the loaded model must outlive its functions:

        model = tf.saved_model.load("exports/camvid")
        labels = model.serve(images)["labels"]
    """
    check_output(output, format, overwrite)
    output = Path(output)
    image = np.asarray(image)
    check_images(image, rank=3)
    whole = _serving_model(model, iterations, self_weight, mu, refinement, affinity)
    options = Options(jit_compile, metadata)
    measured = []

    def write_and_check(aside):
        _write(whole, aside, format, options)
        measured.append(_compare(whole, _load(aside, format), image, format))

    if FORMATS[format].suffix:
        write_atomically(output, write_and_check)
    else:
        _write_folder(output, write_and_check)
    return measured[0]


def check_output(output: str | os.PathLike, format, overwrite=False):
    """Raises what `export_model` raises for these arguments, before a model is loaded."""
    check_choice("format", format, FORMATS)
    suffix, packages = FORMATS[format].suffix, FORMATS[format].packages
    missing = [name for name in packages if not importlib.util.find_spec(name)]
    if missing:
        raise ConfigError(
            f"the format {format} needs {', '.join(missing)}: "
            f"pip install 'dilated_affinity[{format}]'. Received: format={format!r}"
        )
    output = Path(output)
    if suffix and output.suffix != suffix:
        raise ConfigError(
            f"output of the format {format} must end in {suffix}. Received: output={str(output)!r}"
        )
    if not output.exists():
        return
    if not overwrite:
        raise DataError(f"{output}: exists already; overwriting was not asked for.")
    earlier = output.is_file() if suffix else (output / "saved_model.pb").is_file()
    if not earlier:
        raise DataError(f"{output}: is not an export of the format {format}; it stays as it is.")


def _serving_model(model, iterations, self_weight, mu, refinement, affinity):
    whole = inference_model(model, iterations, self_weight, mu, refinement)
    outputs = dict(whole.output)
    if affinity and "affinity" not in outputs:
        raise ConfigError(
            "A model without affinity head has no affinity to output. Received: affinity=True"
        )
    if not affinity:
        outputs.pop("affinity", None)
    return InferenceModel(whole.input, outputs, name=whole.name)


def _write(whole, path, format, options):
    try:
        FORMATS[format].write(whole, path, options)
    except OSError:
        raise
    except Exception as error:  # each converter has its own, and some raise any
        refined = any(isinstance(layer, AffinityPropagation) for layer in whole.layers)
        hint = "; 0 iterations of propagation leave less to convert" if refined else ""
        raise RunError(
            f"the model could not be converted to {format}{hint}. Received: {first_line(error)}"
        ) from error


def _load(path, format):
    """The artifact as a function from a batch of images to a dict of NumPy arrays."""
    try:
        return FORMATS[format].load(path)
    except Exception as error:  # of TensorFlow, Keras, ONNX Runtime or LiteRT
        raise RunError(
            f"the {format} written cannot be loaded. Received: {first_line(error)}"
        ) from error


def _compare(whole, predict, image, format):
    """Raises `RunError` unless the artifact does what the model does."""
    labels = pixels = 0
    probabilities = 0.0
    for images in _batches(image):
        expected = arrays(whole(images, training=False))
        try:
            received = predict(images)
        except Exception as error:  # of TensorFlow, Keras, ONNX Runtime or LiteRT
            raise RunError(
                f"the {format} written fails on images of shape {images.shape}. "
                f"Received: {first_line(error)}"
            ) from error
        _check_outputs(received, expected, format)
        probabilities = max(probabilities, _largest_difference(received, expected, "probabilities"))
        labels += int(np.count_nonzero(received["labels"] != expected["labels"]))
        pixels += expected["labels"].size
    return Agreement(probabilities, labels, pixels)


def _batches(image):
    """One image as it is, and two of another size."""
    height, width = (max(1, side - side // 4 - 1) for side in image.shape[:2])
    corner = image[:height, :width]
    return image[np.newaxis], np.stack([corner, corner[:, ::-1]])


def _check_outputs(received, expected, format):
    kinds = [
        {name: (value.dtype.name, value.shape) for name, value in outputs.items()}
        for outputs in (received, expected)
    ]
    if kinds[0] != kinds[1]:
        raise RunError(f"the {format} written must give {kinds[1]}. Received: {kinds[0]}")
    for name in sorted(expected.keys() - {"labels"}):
        difference = _largest_difference(received, expected, name)
        if not difference <= TOLERANCE:
            raise RunError(
                f"{name} of the {format} written must be the model's to within {TOLERANCE}. "
                f"Received: a difference of {difference:.1e}"
            )
    # Where two classes are as good as equal, rounding may decide for either.
    second, first = np.moveaxis(np.partition(expected["probabilities"], -2)[..., -2:], -1, 0)
    decided = first - second > 2 * TOLERANCE
    wrong = np.count_nonzero(decided & (received["labels"] != expected["labels"]))
    if wrong:
        raise RunError(
            f"labels of the {format} written must be the model's. Received: {wrong} others where "
            "the model is sure"
        )


def _largest_difference(received, expected, name):
    return float(np.max(np.abs(received[name] - expected[name])))


def _write_folder(path, content):
    """Writes a folder aside and renames it into place, where an earlier one gives way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".writing-", dir=path.parent))
    try:
        content(aside / "new")
        earlier = path.exists()
        if earlier:
            path.rename(aside / "old")
        try:
            (aside / "new").rename(path)
        except OSError:
            if earlier:
                (aside / "old").rename(path)
            raise
    finally:
        shutil.rmtree(aside)
