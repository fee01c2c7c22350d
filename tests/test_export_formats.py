"""Exports that other runtimes read: ONNX and LiteRT, each in its own."""

import re

import numpy as np
import pytest
import tensorflow as tf
from exports import IMAGE, IMAGES, SETTINGS, assert_agrees, small_model

from dilated_affinity.affinity.early_stopping import EarlyStop
from dilated_affinity.errors import ConfigError, RunError
from dilated_affinity.export import export_model
from dilated_affinity.export_formats import FORMATS
from dilated_affinity.inference import inference_model

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


VARIANTS = {"decoder_stride": "decoder_stride", "early_stop": EarlyStop(1, 0.05)}


@pytest.mark.parametrize(
    ("format", "suffix"),
    [
        pytest.param("saved_model", "", marks=pytest.mark.slow),
        ("keras", ".keras"),
        pytest.param("onnx", ".onnx", marks=pytest.mark.slow),
        pytest.param("litert", ".tflite", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("refinement", VARIANTS.values(), ids=VARIANTS)
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
def test_precisions_that_runtimes_lack(model, tmp_path, monkeypatch, format, suffix, known):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    message = f"of the format {format} must be one of {known}. Received: .*'bfloat16'"
    with pytest.raises(ConfigError, match=message):
        export_model(model, tmp_path / f"model{suffix}", IMAGE, format, mixed_precision="bfloat16")


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
def test_what_the_converter_refuses(model, tmp_path, monkeypatch, raised, message):
    def refuse(*_, **__):
        raise RuntimeError(raised)

    monkeypatch.setattr("keras.Model.export", refuse)
    with pytest.raises(RunError, match=f"{message}$") as caught:
        export_model(model, tmp_path / "model.tflite", IMAGE, "litert", 1)
    assert not re.search("\n", str(caught.value))
    assert list(tmp_path.iterdir()) == []
