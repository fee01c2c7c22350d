"""Exports that other runtimes read: ONNX and LiteRT, each in its own."""

import re

import numpy as np
import pytest
import tensorflow as tf
from helpers.exports import IMAGE, IMAGES, RATES, SETTINGS, assert_agrees, decisive, small_model

from dilated_affinity.affinity.early_stopping import EarlyStop
from dilated_affinity.errors import ConfigError, RunError
from dilated_affinity.export import export
from dilated_affinity.export.export import export_model
from dilated_affinity.export.formats import FORMATS
from dilated_affinity.inference.model import inference_model
from dilated_affinity.models.deeplab import DeepLabV3Plus

pytestmark = pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")


@pytest.fixture(scope="module")
def model():
    return small_model(separable=False)


@pytest.fixture
def onnx_runtime():
    for package in ("tf2onnx", "onnx"):
        pytest.importorskip(package, reason="the extra `onnx` is not installed")
    return pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")


def run_onnx(runtime, path, images):
    session = runtime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": images}), strict=True))


@pytest.mark.parametrize("folded", [False, True], ids=["batch_norm", "folded"])
@pytest.mark.parametrize("iterations", [0, 3])
def test_onnx(onnx_runtime, model, tmp_path, iterations, folded):
    path = tmp_path / "model.onnx"
    settings = {**SETTINGS, "iterations": iterations}
    export_model(model, path, IMAGE, "onnx", **settings, affinity=True, fold_batch_norm=folded)
    received = run_onnx(onnx_runtime, path, IMAGES)
    assert_agrees(received, inference_model(model, **settings)(IMAGES))


def test_onnx_in_float16(onnx_runtime, model, tmp_path):
    path = tmp_path / "model.onnx"
    agreement = export_model(model, path, IMAGE, "onnx", **SETTINGS, mixed_precision="float16")
    assert 1e-6 < agreement.mean < 1e-2
    received = run_onnx(onnx_runtime, path, IMAGES)
    expected = inference_model(model, **SETTINGS)(IMAGES)
    np.testing.assert_allclose(received["probabilities"], expected["probabilities"], atol=0.05)
    assert np.mean(received["labels"] == expected["labels"]) > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("folded", [False, True], ids=["batch_norm", "folded"])
@pytest.mark.parametrize("iterations", [0, 3])
def test_litert(model, tmp_path, iterations, folded):
    path = tmp_path / "model.tflite"
    settings = {**SETTINGS, "iterations": iterations}
    export_model(model, path, IMAGE, "litert", **settings, affinity=True, fold_batch_norm=folded)
    predict = tf.lite.Interpreter(str(path)).get_signature_runner("serving_default")
    assert_agrees(predict(images=IMAGES), inference_model(model, **settings)(IMAGES))


def test_the_runtime_without_tensorflow(model, tmp_path):
    runtime = pytest.importorskip(
        "ai_edge_litert.interpreter", reason="ai-edge-litert is not installed"
    )
    path = tmp_path / "model.tflite"
    export_model(model, path, IMAGE, "litert", **SETTINGS)
    predict = runtime.Interpreter(str(path)).get_signature_runner("serving_default")
    expected = inference_model(model, **SETTINGS)(IMAGES)
    received = predict(images=IMAGES)
    assert_agrees(received, {name: expected[name] for name in ("labels", "probabilities")})


METHODS = {"decoder_stride": "propagation_decoder_stride", "early_stop": EarlyStop(1, 0.05)}


@pytest.mark.parametrize(
    ("format", "suffix"),
    [
        pytest.param("saved_model", "", marks=pytest.mark.slow),
        ("keras", ".keras"),
        pytest.param("onnx", ".onnx", marks=pytest.mark.slow),
        pytest.param("litert", ".tflite", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("refinement", METHODS.values(), ids=METHODS)
def test_other_refinements(tmp_path, request, format, suffix, refinement):
    if format == "onnx":
        request.getfixturevalue("onnx_runtime")
    model = small_model(((4, 8),), separable=False)  # multiples of the decoder's stride
    path = tmp_path / f"model{suffix}"
    settings = {"iterations": 5, "mu": 20.0, "refinement": refinement}
    export_model(model, path, IMAGE, format, **settings)
    received = FORMATS[format].load(path)(IMAGES)
    expected = inference_model(model, **settings)(IMAGES)
    assert_agrees(received, {name: expected[name] for name in ("labels", "probabilities")})
    exact = inference_model(model, 5, mu=20.0)(IMAGES)["probabilities"]
    assert np.abs(exact - received["probabilities"]).max() > 0.01


@pytest.mark.parametrize(
    ("format", "suffix", "known"),
    [("onnx", ".onnx", "none, float16"), ("litert", ".tflite", "none")],
)
def test_unsupported_precisions_are_refused(model, tmp_path, monkeypatch, format, suffix, known):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    message = f"of the format {format} must be one of {known}. Received: .*'bfloat16'"
    with pytest.raises(ConfigError, match=message):
        export_model(model, tmp_path / f"model{suffix}", IMAGE, format, mixed_precision="bfloat16")


@pytest.mark.parametrize(("format", "suffix"), [("saved_model", ""), ("litert", ".tflite")])
def test_formats_that_need_tensorflow_are_refused_under_jax(
    model, tmp_path, monkeypatch, format, suffix
):
    monkeypatch.setattr("keras.backend.backend", lambda: "jax")
    message = f"the format {format} needs Keras' TensorFlow backend.* Received: backend='jax'"
    with pytest.raises(ConfigError, match=message):
        export_model(model, tmp_path / f"model{suffix}", IMAGE, format)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (
            "Could not translate: error: 'tf.Roll' op is neither a custom op nor a flex op\n"
            "error: 'tf.Bincount' op is neither a custom op nor a flex op\n",
            "converted to litert; .* Received: LiteRT lacks TensorFlow's Bincount, Roll",
        ),
        ("no memory\nleft", "converted to litert; .* Received: no memory"),
    ],
    ids=["operations", "another"],
)
def test_a_refusal_of_the_converter_is_reported(model, tmp_path, monkeypatch, raised, message):
    def refuse(*_, **__):
        raise RuntimeError(raised)

    monkeypatch.setattr("keras.Model.export", refuse)
    with pytest.raises(RunError, match=f"{message}$") as caught:
        export_model(model, tmp_path / "model.tflite", IMAGE, "litert", 1)
    assert not re.search("\n", str(caught.value))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("jit_compile", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_other_converters_accept_a_saved_model(model, tmp_path, jit_compile):
    export_model(model, tmp_path / "model", IMAGE, **SETTINGS, jit_compile=jit_compile)
    converted = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "model")).convert()
    predict = tf.lite.Interpreter(model_content=converted).get_signature_runner("serving_default")
    expected = inference_model(model, **SETTINGS)(IMAGES)
    received = predict(images=IMAGES)
    assert_agrees(received, {name: expected[name] for name in ("labels", "probabilities")})


CALIBRATION = [IMAGES[0], IMAGES[1, :50, :70], IMAGES[2, 30:, 20:]]


@pytest.mark.parametrize(
    ("quantization", "iterations", "most"),
    [
        pytest.param("float16", 3, 1e-3, marks=pytest.mark.slow),
        ("dynamic_int8", 3, 5e-3),
        pytest.param("int8", 0, 0.1, marks=pytest.mark.slow),
    ],
)
def test_quantized(tmp_path, quantization, iterations, most):
    """Smaller, and near the model on images that it has not seen, in float32 outside."""
    model = decisive(DeepLabV3Plus(5, RATES, "tiny", weights=None, filters=64, separable=False))
    sizes = {}
    for kind in ("none", quantization):
        path = tmp_path / f"{kind}.tflite"
        agreement = export_model(
            model,
            path,
            IMAGE,
            "litert",
            iterations=iterations,
            mu=20.0,
            quantization=kind,
            calibration_images=CALIBRATION if kind == "int8" else (),
        )
        sizes[kind] = path.stat().st_size
    assert 1e-6 < agreement.mean < most
    assert sizes[quantization] < sizes["none"] * (0.8 if quantization == "float16" else 0.7)
    received = FORMATS["litert"].load(tmp_path / f"{quantization}.tflite")(IMAGES)
    expected = inference_model(model, iterations, mu=20.0)(IMAGES)
    difference = np.abs(received["probabilities"] - expected["probabilities"])
    assert difference.mean() < most and received["probabilities"].dtype == np.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "keras"}, "quantization of the format keras must be one of none"),
        ({"quantization": "int4"}, "none, float16, dynamic_int8, int8. Received: .*'int4'"),
        ({"calibration_images": ()}, "int8.* needs calibration_images"),
        ({"iterations": 2}, "for the network alone, .* must be 0. Received: iterations=2"),
        ({"calibration_images": [IMAGES[0] / 255]}, "must be uint8 RGB"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_invalid_quantization_is_refused(model, tmp_path, arguments, message):
    given = {"quantization": "int8", "iterations": 0, "calibration_images": CALIBRATION}
    given = {"format": "litert", **given, **arguments}
    suffix = FORMATS[given["format"]].suffix
    with pytest.raises(ConfigError, match=message):
        export_model(model, tmp_path / f"model{suffix}", IMAGE, **given)
    assert list(tmp_path.iterdir()) == []


def test_a_quantized_model_that_differs_too_much_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.setitem(export.QUANTIZED_TOLERANCES, "float16", 1e-9)
    with pytest.raises(RunError, match="probabilities of the litert .* to within 1e-09"):
        export_model(
            model, tmp_path / "m.tflite", IMAGE, "litert", iterations=0, quantization="float16"
        )
    assert list(tmp_path.iterdir()) == []
