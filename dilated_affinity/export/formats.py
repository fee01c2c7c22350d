"""The formats of an export: writing an inference model in each, and reading it back."""

import contextlib
import dataclasses
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from dilated_affinity.affinity.propagation import AffinityPropagation
from dilated_affinity.export.graph_transforms import PRECISIONS
from dilated_affinity.runtime.files import write_atomically

METADATA = Path("assets.extra", "dilated_affinity.json")
"""The file in a SavedModel with its metadata."""

QUANTIZATIONS = ("none", "float16", "dynamic_int8", "int8")
"""Kinds of quantization of a LiteRT model, see `export_model`."""

_IMAGES = tf.TensorSpec((None, None, None, 3), tf.uint8, name="images")

_SIDE_STEP = 64
"""XLA compiles the propagation of a SavedModel for sides that are multiples of this."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Options that only some formats have, see `export_model`."""

    jit_compile: bool = True
    metadata: dict | None = None
    quantization: str = "none"
    calibration_images: tuple[np.ndarray, ...] = ()


@dataclasses.dataclass(frozen=True)
class Format:
    """A format of an export.

    Attributes:
        suffix: Suffix of the file; empty for a folder.
        write: Function that writes an inference model to a path.
        load: Function that reads a path and returns a function from uint8 images to a dict of
            arrays.
        packages: Modules for writing and reading it, beside the package's requirements.
        mixed_precision: The precisions in which its runtimes compute convolutions.
        quantization: The kinds of quantization that it supports.
    """

    suffix: str
    write: Callable[[keras.Model, Path, Options], None]
    load: Callable[[Path], Callable[[np.ndarray], dict[str, np.ndarray]]]
    packages: tuple[str, ...] = ()
    mixed_precision: tuple[str, ...] = tuple(PRECISIONS)
    quantization: tuple[str, ...] = ("none",)


def arrays(outputs) -> dict[str, np.ndarray]:
    """Converts a dict of tensors to NumPy arrays."""
    return {name: ops.convert_to_numpy(value) for name, value in outputs.items()}


def _write_saved_model(whole, path, options):
    if options.jit_compile:
        whole = keras.models.clone_model(whole, clone_function=_few_sizes)
    whole = _convertible(whole)

    # Without an input signature, for which TensorFlow would silently cast a NumPy array of floats
    # to uint8: an image in 0 to 1 would become black.
    @tf.function(autograph=False)
    def serve(images):
        return whole(_checked(images), training=False)

    with contextlib.nullcontext() if options.jit_compile else _without_xla():
        traced = serve.get_concrete_function(_IMAGES)
        # Not Keras' ExportArchive, which traces the model several times more.
        module = tf.Module()
        module.weights = list(traced.variables)
        module.serve = serve
        tf.saved_model.save(module, str(path), signatures={"serving_default": traced})
    if options.metadata is not None:
        write_atomically(path / METADATA, (json.dumps(options.metadata, indent=1) + "\n").encode())


def _checked(images):
    """Returns the images after a check of their shape in the graph.

    TensorFlow checks the arguments of `serve` itself, but only the dtype of those of a signature.
    """
    # Without the static shape, by which the check would be optimized away as always true.
    images = tf.raw_ops.PlaceholderWithDefault(input=images, shape=tf.TensorShape(None))
    shape = tf.shape(images)
    fits = tf.logical_and(tf.equal(tf.size(shape), 4), tf.equal(shape[-1], 3))
    message = "images must be RGB of shape (batch, height, width, 3), no side 0. Received: shape"
    assertion = tf.debugging.Assert(
        tf.logical_and(fits, tf.reduce_all(shape > 0)), [message, shape]
    )
    with tf.control_dependencies([assertion]):
        return tf.ensure_shape(tf.identity(images), _IMAGES.shape)


def _few_sizes(layer):
    """A layer that propagates, compiled for few sizes; any other layer as it is."""
    return _OnPaddedSides(layer) if isinstance(layer, AffinityPropagation) else layer


class _OnPaddedSides(keras.layers.Layer):
    """Propagation behind a mask on sides rounded up, for which XLA compiles it.

    Args:
        propagation: The layer, of any kind of propagation.
    """

    def __init__(self, propagation):
        super().__init__(name=propagation.name, dtype="float32")
        self._propagation = type(propagation).from_config(propagation.get_config())

    def call(self, inputs):
        height, width = ops.shape(inputs[0])[1:3]
        margin = [[0, 0], [0, -height % _SIDE_STEP], [0, -width % _SIDE_STEP]]
        padded = [ops.pad(each, [*margin, [0, 0]]) for each in inputs]
        inside = ops.pad(ops.ones_like(inputs[0][..., 0], "bool"), margin)
        return self._propagation(padded, inside)[:, :height, :width]

    def compute_output_shape(self, input_shape):
        return input_shape[0]


def _load_saved_model(path):
    loaded = tf.saved_model.load(path)  # must outlive its functions, which do not keep it alive
    return lambda images: arrays(loaded.signatures["serving_default"](images=images))


def _write_keras(whole, path, _):
    whole.save(path)


def _load_keras(path):
    model = keras.models.load_model(path, compile=False)
    return lambda images: arrays(model(images, training=False))


def _write_onnx(whole, path, _):
    with _without_xla():
        _convertible(whole).export(path, "onnx", verbose=False, input_signature=[_IMAGES])


def _load_onnx(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {_IMAGES.name: images}), strict=True))


_UNKNOWN_TO_LITERT = re.compile(r"'tf\.(\w+)' op is neither a custom op nor a flex op")


def _write_litert(whole, path, options):
    try:
        with _without_xla():
            _convertible(whole).export(path, "litert", verbose=False, **_converter(options))
    except Exception as error:
        unknown = sorted(set(_UNKNOWN_TO_LITERT.findall(str(error))))
        if not unknown:
            raise
        raise RuntimeError(f"LiteRT lacks TensorFlow's {', '.join(unknown)}") from error


def _converter(options):
    """Settings of LiteRT's converter."""
    # Without TensorFlow's own operations, which most LiteRT runtimes do not include.
    spec = {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]}
    settings = {"target_spec": spec}
    if options.quantization != "none":
        settings["optimizations"] = [tf.lite.Optimize.DEFAULT]
    if options.quantization == "float16":
        spec["supported_types"] = [tf.float16]
    if options.quantization == "int8":
        spec["supported_ops"].append(tf.lite.OpsSet.TFLITE_BUILTINS_INT8)
        settings["representative_dataset"] = lambda: (
            {"images": image[np.newaxis]} for image in options.calibration_images
        )
    return settings


def _load_litert(path):
    with warnings.catch_warnings():
        # TensorFlow still includes the interpreter, and warns of its removal.
        warnings.filterwarnings("ignore", message=r"\s*Warning: tf.lite.Interpreter")
        interpreter = tf.lite.Interpreter(str(path))
    runner = interpreter.get_signature_runner("serving_default")
    return lambda images: runner(images=images)


def _convertible(whole):
    outputs = dict(whole.output)
    return keras.Model(whole.input, {**outputs, "labels": _Labels()(outputs["probabilities"])})


class _Labels(keras.layers.Layer):
    """The classes of largest probability.

    `ops.argmax` distinguishes -0 from 0 by bitwise operations, which converters do not support.
    """

    def call(self, probabilities):
        return tf.cast(tf.argmax(probabilities, axis=-1, output_type=tf.int32), tf.uint8)

    def compute_output_spec(self, probabilities):
        return keras.KerasTensor(probabilities.shape[:-1], "uint8")


@contextlib.contextmanager
def _without_xla():
    """Context in which functions compiled by XLA are traced as plain operations."""
    eager = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(eager)


FORMATS = {
    "saved_model": Format("", _write_saved_model, _load_saved_model),
    "keras": Format(".keras", _write_keras, _load_keras),
    "onnx": Format(
        ".onnx",
        _write_onnx,
        _load_onnx,
        packages=("tf2onnx", "onnx", "onnxruntime"),
        mixed_precision=("none", "float16"),
    ),
    "litert": Format(
        ".tflite",
        _write_litert,
        _load_litert,
        mixed_precision=("none",),
        quantization=QUANTIZATIONS,
    ),
}
"""Every format by name."""
