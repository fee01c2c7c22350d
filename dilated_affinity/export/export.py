"""Export of a trained model with its refinement as SavedModel, Keras file, ONNX or LiteRT."""

import contextlib
import dataclasses
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

import keras
import numpy as np

from dilated_affinity.affinity.propagation import AffinityPropagation
from dilated_affinity.errors import ConfigError, DataError, RunError, first_line
from dilated_affinity.export import graph_transforms
from dilated_affinity.export.formats import FORMATS, Options, arrays
from dilated_affinity.inference.model import InferenceModel, check_images, inference_model
from dilated_affinity.inference.refinement import as_refinement
from dilated_affinity.models.backbone import check_choice
from dilated_affinity.models.deeplab import affinity_rates
from dilated_affinity.runtime.files import write_atomically
from dilated_affinity.runtime.progress import stages

TOLERANCE = 1e-4
"""Largest allowed difference in a probability between an export in float32 and the model."""

QUANTIZED_TOLERANCES = {"float16": 2e-3, "dynamic_int8": 0.02, "int8": 0.1}
"""Largest allowed mean difference in a probability between a quantized export and the model."""


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Comparison of an export with the Keras model in float32, on the same images.

    Attributes:
        probabilities: Largest difference in a probability.
        labels: Number of pixels whose labels differ.
        pixels: Number of pixels compared.
        mean: Mean difference in a probability.
    """

    probabilities: float
    labels: int
    pixels: int
    mean: float

    def __str__(self):
        return (
            f"{self.labels} of {self.pixels} labels differ from the Keras model's, probabilities "
            f"by {self.mean:.1e} on average and {self.probabilities:.1e} at most"
        )


def export_model(
    model: keras.Model,
    output: str | os.PathLike,
    image,
    format="saved_model",
    iterations: int | None = None,
    affinity=False,
    jit_compile=True,
    overwrite=False,
    metadata: dict | None = None,
    refinement=None,
    mixed_precision: str | None = None,
    fold_batch_norm=False,
    quantization="none",
    calibration_images=(),
    **settings,
) -> Agreement:
    """Writes a trained model as an artifact that predicts images, and verifies it on an image.

    The artifact maps uint8 RGB images `images` (batch, height, width, 3) in [0, 255], of any size,
    to `labels` uint8 (batch, height, width) and `probabilities` float32 (batch, height, width, C),
    both refined, and optionally `affinity` float32 (batch, height, width, 8|R|). It includes
    preprocessing, resizing and refinement.

    It is written to a temporary place, loaded, and compared with the Keras model on `image` and on
    a batch of two of another size, both on the CPU; only then is it moved to `output`. In float32,
    no probability may differ by more than 1e-4. In mixed precision, the mean difference from the
    Keras model of the same precision must not exceed the mean difference of that model from the
    Keras model in float32 by more than 1e-4. For a quantized model the mean difference may be up to
    `QUANTIZED_TOLERANCES`.

    Args:
        model: As `DeepLabV3Plus` builds it; one without affinity head is not refined.
        output: Folder of the SavedModel, or a file ending in `.keras`, `.onnx` or `.tflite`.
        image: uint8 (H, W, 3), such as the model was trained for.
        format: `"saved_model"`, which TensorFlow loads without this package; `"keras"`, which needs
            this package; `"onnx"`, which needs the extra `onnx` to write; or `"litert"`.
            Defaults to `"saved_model"`.
        iterations: Iterations of propagation; 0 exports the network alone. Defaults to those of
            `refinement`.
        affinity: Whether to output `affinity` as well. Defaults to False.
        jit_compile: Whether XLA compiles the propagation of a SavedModel, once for each batch size
            and each size of image rounded up to multiples of 64. False for a runtime without
            XLA, where it is many times slower. Has no effect on other formats. Defaults to True.
        overwrite: Replace an earlier export. Defaults to False.
        metadata: JSON-serializable dict that a SavedModel stores as
            `assets.extra/dilated_affinity.json`.
        refinement: As for `inference_model`.
        mixed_precision: `"bfloat16"` or `"float16"` to compute the network in that type and
            preprocessing, heads and refinement in float32; `"none"` for all in float32. ONNX does
            not support `"bfloat16"`, LiteRT neither type. Defaults to None: that of the model.
        fold_batch_norm: Whether to fold batch norm into the convolutions, see
            `dilated_affinity.export.graph_transforms.fold_batch_norm`. Defaults to False.
        quantization: For `"litert"`: `"float16"` keeps the weights in float16, half as large;
            `"dynamic_int8"` keeps them in int8, a quarter as large, and quantizes the inputs of
            layers during inference; `"int8"` computes in int8 throughout, in ranges measured on
            `calibration_images`, and only without propagation, whose weights are too small for
            int8. Defaults to `"none"`.
        calibration_images: For `"int8"`: a few dozen uint8 (H, W, 3) images, of any sizes, such as
            the model was trained on.
        **settings: As for `inference_model`.

    Returns:
        `Agreement` with the Keras model, in float32 if `mixed_precision` is given.

    Raises:
        ConfigError: For a format that does not exist or whose packages are not installed, an output
            with another suffix than the format's, mixed precision or quantization that the format
            does not support, a refinement that cannot be exported, or settings out of range.
        DataError: If `output` exists and must not be replaced.
        RunError: If the converter refuses the model, or the outputs of the artifact differ from the
            model's. Nothing is then written to `output`.

    Example:

    >>> import tempfile
    >>> from dilated_affinity.models.deeplab import DeepLabV3Plus
    >>> model = DeepLabV3Plus(5, None, "mobilenet_v2_0.35", weights=None, filters=8)
    >>> image = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype("uint8")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export_model(model, f"{folder}/model.keras", image, "keras").labels
    0

    To use a SavedModel, keep the loaded model as long as its functions:

        model = tf.saved_model.load("exports/camvid")
        labels = model.serve(images)["labels"]
    """
    check_output(output, format, overwrite, mixed_precision, quantization)
    output = Path(output)
    image = np.asarray(image)
    check_images(image, rank=3)
    calibration_images = tuple(np.asarray(each) for each in calibration_images)
    for each in calibration_images:
        check_images(each, rank=3)
    model, exported = _rewritten(model, mixed_precision, fold_batch_norm)
    refinement = as_refinement(refinement, iterations=iterations, **settings)
    if quantization == "int8":
        _check_full_int8(model, refinement, calibration_images)
    reference = _serving_model(model, refinement, affinity)
    whole = reference if exported is model else _serving_model(exported, refinement, affinity)
    rounded = mixed_precision not in (None, "none")
    options = Options(jit_compile, metadata, quantization, calibration_images)
    most = QUANTIZED_TOLERANCES.get(quantization)
    measured = []

    def write_and_check(aside):
        with stages("export", 3) as stage_done:
            _write(whole, aside, format, options)
            stage_done()
            with _full_precision_on_the_processor():
                predict = _load(aside, format)
                stage_done()
                measured.append(_compare(reference, whole, predict, image, format, rounded, most))
            stage_done()

    if FORMATS[format].suffix:
        write_atomically(output, write_and_check)
    else:
        _write_folder(output, write_and_check)
    return measured[0]


def check_output(
    output: str | os.PathLike,
    format,
    overwrite=False,
    mixed_precision=None,
    quantization="none",
):
    """Checks these arguments of `export_model` before a model is loaded; raises its errors."""
    check_choice("format", format, FORMATS)
    if format != "keras" and (backend := keras.backend.backend()) != "tensorflow":
        raise ConfigError(
            f"the format {format} needs Keras' TensorFlow backend, which loads what others train. "
            f"Received: backend={backend!r}"
        )
    suffix, packages = FORMATS[format].suffix, FORMATS[format].packages
    precisions = FORMATS[format].mixed_precision
    missing = [name for name in packages if not importlib.util.find_spec(name)]
    if missing:
        raise ConfigError(
            f"the format {format} needs {', '.join(missing)}: "
            f"pip install 'dilated_affinity[{format}]'. Received: format={format!r}"
        )
    if mixed_precision is not None:
        check_choice(f"mixed_precision of the format {format}", mixed_precision, precisions)
    kinds = FORMATS[format].quantization
    check_choice(f"quantization of the format {format}", quantization, kinds)
    output = Path(output)
    if suffix and output.suffix != suffix:
        raise ConfigError(
            f"output of the format {format} must end in {suffix}. Received: output={str(output)!r}"
        )
    if not output.exists():
        return
    if not overwrite:
        raise DataError(f"{output}: exists already; only overwrite=True (--overwrite) replaces it.")
    earlier = output.is_file() if suffix else (output / "saved_model.pb").is_file()
    if not earlier:
        raise DataError(f"{output}: is not an export of the format {format}; it is not replaced.")


def _check_full_int8(model, refinement, calibration_images):
    if affinity_rates(model) is not None and refinement.iterations:
        raise ConfigError(
            "quantization='int8' is for the network alone, without propagation: iterations must be "
            f"0. Received: iterations={refinement.iterations}"
        )
    if not calibration_images:
        raise ConfigError(
            "quantization='int8' needs calibration_images to find the range of every layer. "
            "Received: none"
        )


def _rewritten(model, mixed_precision, fold_batch_norm):
    """The model to compare with, in float32 if a precision is given, and the one to export."""
    if mixed_precision is not None:
        model = graph_transforms.in_mixed_precision(model, "none")
    exported = graph_transforms.fold_batch_norm(model) if fold_batch_norm else model
    if mixed_precision not in (None, "none"):
        exported = graph_transforms.in_mixed_precision(exported, mixed_precision)
    return model, exported


def _serving_model(model, refinement, affinity):
    whole = inference_model(model, refinement=refinement)
    outputs = dict(whole.output)
    if affinity and "affinity" not in outputs:
        raise ConfigError(
            "A model without affinity head has no affinity to output. Received: affinity=True"
        )
    if not affinity:
        outputs.pop("affinity", None)
    return InferenceModel(whole.input, outputs, name=whole.name)


@contextlib.contextmanager
def _full_precision_on_the_processor():
    """Context in which models are computed on the CPU and in full float32.

    NVIDIA's GPUs since Ampere round the inputs of multiplications to TF32, with ten bits of
    fraction, which changes probabilities by more than an export may differ.
    """
    if keras.backend.backend() == "jax":
        import jax

        with jax.default_matmul_precision("highest"), keras.device("cpu:0"):
            yield
        return
    import tensorflow as tf

    rounds = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        with keras.device("cpu:0"):
            yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(rounds)


def _write(whole, path, format, options):
    try:
        FORMATS[format].write(whole, path, options)
    except OSError:
        raise
    except Exception as error:  # converters raise exceptions of many kinds
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


def _compare(reference, whole, predict, image, format, rounded, most):
    """Raises `RunError` if the outputs of the artifact differ from those of the model.

    Args:
        reference: The model to compare with.
        whole: The model that was written; differs from `reference` if batch norm is folded or
            precision is mixed.
        predict: The artifact, see `_load`.
        image: uint8 (H, W, 3).
        format: Name of the format, for messages.
        rounded: Whether `whole` computes in a shorter type than `reference`.
        most: The mean difference allowed for quantization; None without quantization.
    """
    differences, labels = [], []
    for images in _batches(image):
        true = arrays(reference(images, training=False))
        expected = arrays(whole(images, training=False)) if rounded else true
        try:
            received = predict(images)
        except Exception as error:  # of TensorFlow, Keras, ONNX Runtime or LiteRT
            raise RunError(
                f"the {format} written fails on images of shape {images.shape}. "
                f"Received: {first_line(error)}"
            ) from error
        _check_kinds(received, expected, format)
        for name in sorted(expected.keys() - {"labels"}):
            values = (each[name] for each in (received, expected, true))
            _check_values(name, *values, format, rounded, most)
        _check_labels(received, format)
        differences.append(np.abs(received["probabilities"] - true["probabilities"]).ravel())
        labels.append((received["labels"] != true["labels"]).ravel())
    differences, labels = np.concatenate(differences), np.concatenate(labels)
    return Agreement(
        float(differences.max()), int(labels.sum()), labels.size, float(differences.mean())
    )


def _batches(image):
    """One image as it is, and two of another size."""
    height, width = (max(1, side - side // 4 - 1) for side in image.shape[:2])
    corner = image[:height, :width]
    return image[np.newaxis], np.stack([corner, corner[:, ::-1]])


def _check_kinds(received, expected, format):
    kinds = [
        {name: (value.dtype.name, value.shape) for name, value in outputs.items()}
        for outputs in (received, expected)
    ]
    if kinds[0] != kinds[1]:
        raise RunError(f"the {format} written must give {kinds[1]}. Received: {kinds[0]}")


def _check_values(name, received, expected, true, format, rounded, most):
    difference, allowed = np.max(np.abs(received - true)), TOLERANCE
    if most is not None:
        difference, allowed = np.mean(np.abs(received - true)), most
    elif rounded:
        # In a short type, a fused graph may round at other places than Keras' single operations,
        # which changes outputs about as much as the short type itself does.
        difference = np.mean(np.abs(received - expected))
        allowed = TOLERANCE + np.mean(np.abs(expected - true))
    if not difference <= allowed:
        raise RunError(
            f"{name} of the {format} written must be the model's to within {allowed:.0e}. "
            f"Received: a difference of {difference:.1e}"
        )


def _check_labels(received, format):
    """Raises `RunError` unless the labels are the classes of largest probability."""
    # Where two classes are nearly equal, rounding may decide for either.
    second, first = np.moveaxis(np.partition(received["probabilities"], -2)[..., -2:], -1, 0)
    largest = np.argmax(received["probabilities"], axis=-1)
    wrong = np.count_nonzero((first - second > TOLERANCE) & (received["labels"] != largest))
    if wrong:
        raise RunError(
            f"labels of the {format} written must be the classes of largest probability. "
            f"Received: {wrong} other labels where the largest probability is clear"
        )


def _write_folder(path, content):
    """Writes a folder to a temporary place and renames it, replacing an earlier one."""
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
