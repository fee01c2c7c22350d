"""`export_main`, on a run whose backbone only the tests know."""

import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.tiny import NUM_CLASSES
from helpers.tiny_run import command, write_run
from PIL import Image

from dilated_affinity.datasets.classes import CAMVID
from dilated_affinity.datasets.registry import load_source
from dilated_affinity.export.formats import METADATA
from dilated_affinity.inference.model import inference_model
from dilated_affinity.run_dir.layout import save_settings
from dilated_affinity.run_dir.load import load_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"), propagation_iterations=3, mu=20.0)


@pytest.mark.slow
def test_exports_with_the_settings_of_the_run(run, tmp_path):
    config, model_dir = run
    output = tmp_path / "exports" / "model"
    result = command(
        "export_main",
        f"--model_dir={model_dir}",
        f"--output={output}",
        "--self_weight=2",
        "--fold_batch_norm",
    )
    assert result.returncode == 0, result.stderr
    assert f"{output}: saved_model written" in result.stdout
    assert "0 of" in result.stdout and "labels differ" in result.stdout
    assert "saved_model at output stride 16, 3 iterations of propagation with" in result.stderr
    assert f"on CPU, float32; writing to {output}" in result.stderr

    _, model = load_run(model_dir)
    example = load_source(config.dataset, config.val_split, config.data_dir)[0]
    expected = inference_model(model, 3, self_weight=2.0, mu=20.0)(example["image"][np.newaxis])
    loaded = tf.saved_model.load(output)
    received = loaded.serve(example["image"][np.newaxis])
    np.testing.assert_allclose(received["probabilities"], expected["probabilities"], atol=1e-4)
    np.testing.assert_array_equal(received["labels"], expected["labels"])
    metadata = json.loads((output / METADATA).read_text())
    assert metadata["classes"][0] == "sky" and len(metadata["classes"]) == NUM_CLASSES
    assert metadata["propagation_iterations"] == 3 and metadata["self_weight"] == 2.0
    assert metadata["mixed_precision"] == "none" and metadata["fold_batch_norm"] is True


@pytest.mark.slow
def test_another_precision_than_the_runs(run, tmp_path):
    _, model_dir = run
    output = tmp_path / "model.keras"
    arguments = (f"--model_dir={model_dir}", f"--output={output}", "--format=keras")
    result = command(
        "export_main", *arguments, "--propagation_iterations=0", "--mixed_precision=bfloat16"
    )
    assert result.returncode == 0, result.stderr
    assert "on average" in result.stdout
    whole = keras.models.load_model(output)
    (network,) = [layer for layer in whole.layers if isinstance(layer, keras.Model)]
    assert network.get_layer("decoder_conv1").compute_dtype == "bfloat16"


def test_a_precision_that_the_format_lacks_is_refused_before_anything_is_loaded(tmp_path):
    arguments = (f"--output={tmp_path / 'model.tflite'}", "--format=litert")
    result = command("export_main", "--model_dir=nowhere", *arguments, "--mixed_precision=bfloat16")
    assert result.returncode == 2, result.stderr
    assert "litert must be one of none. Received" in result.stderr.splitlines()[-1]


def test_a_bad_command_line_is_one_line_before_anything_is_loaded(tmp_path):
    result = command("export_main", "--model_dir=nowhere", f"--output={tmp_path}", "--format=keras")
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr and result.stdout == ""
    assert "must end in .keras" in result.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--calibration_dir=a", "--quantization=float16"), "--calibration_dir=a is for --quanti"),
        (("--calibration_images=3",), "--calibration_images=3 is for --quantization=int8"),
        (
            ("--calibration_images=3", "--calibration_dir=a", "--quantization=int8"),
            "all images of --calibration_dir are taken. Received: --calibration_dir=a",
        ),
    ],
)
def test_flags_of_calibration_that_have_no_use_are_refused(tmp_path, arguments, message):
    output = f"--output={tmp_path / 'model.tflite'}"
    result = command("export_main", "--model_dir=no", output, "--format=litert", *arguments)
    assert result.returncode == 2 and message in result.stderr.splitlines()[-1]


@pytest.mark.slow
def test_an_incomplete_data_set_does_not_stop_the_export(run, tmp_path):
    config, model_dir = run
    save_settings(model_dir, config, CAMVID)
    data = shutil.copytree(config.data_dir, tmp_path / "data")
    for path in (data / "val").iterdir():
        path.write_bytes(b"")
    arguments = (f"--model_dir={model_dir}", f"--data_dir={data}", "--format=keras")
    result = command("export_main", *arguments, f"--output={tmp_path / 'model.keras'}")
    assert result.returncode == 0, result.stderr
    assert (
        "val_0.png: " in result.stderr and "checked on a drawn image, see --image" in result.stderr
    )


@pytest.mark.slow
def test_an_image_of_ones_own_without_the_data_set(run, tmp_path):
    config, model_dir = run
    photograph = tmp_path / "photograph.png"
    keras.utils.save_img(photograph, np.random.default_rng(0).integers(0, 256, (50, 70, 3)))
    save_settings(model_dir, config, CAMVID)
    arguments = (f"--model_dir={model_dir}", "--data_dir=nowhere", "--format=keras")
    output = tmp_path / "own.keras"
    result = command("export_main", *arguments, f"--output={output}", f"--image={photograph}")
    assert result.returncode == 0, result.stderr
    assert f"MB; on {photograph} in several sizes 0 of" in result.stdout
    # 50 x 70, and two of 37 x 52.
    assert "of 7348 labels" in result.stdout
    output = tmp_path / "drawn.keras"
    result = command("export_main", *arguments, f"--output={output}")
    assert result.returncode == 0, result.stderr
    assert "nowhere" in result.stderr and "checked on a drawn image" in result.stderr
    assert "on a drawn image in several sizes 0 of" in result.stdout


@pytest.mark.slow
def test_calibrated_with_the_training_split_or_a_folder(run, tmp_path):
    config, model_dir = run
    arguments = (f"--model_dir={model_dir}", "--format=litert", "--quantization=int8")
    output = tmp_path / "model.tflite"
    result = command("export_main", *arguments, f"--output={output}")
    assert result.returncode == 2
    assert "with --propagation_iterations=0. Received: 3 iterations" in result.stderr
    arguments = (*arguments, "--propagation_iterations=0", "--overwrite", f"--output={output}")
    for calibration in ("--calibration_images=3", f"--calibration_dir={config.data_dir}/train"):
        result = command("export_main", *arguments, calibration)
        assert result.returncode == 0, result.stderr
        assert "litert written, 0.1 MB; on val_0" in result.stdout


@pytest.mark.slow
def test_files_for_calibration_are_noted_or_refused(run, tmp_path):
    _, model_dir = run
    output, images = tmp_path / "model.tflite", tmp_path / "images"
    images.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    exif = Image.Exif()
    exif[274] = 3
    # Two images may have one name here: there are no masks to go with them.
    Image.fromarray(pixels).save(images / "a.png")
    Image.fromarray(pixels).save(images / "a.jpg", exif=exif)
    (images / "._a.jpg").write_bytes(b"")
    (images / "notes.txt").write_text("")
    arguments = (f"--model_dir={model_dir}", "--format=litert", "--quantization=int8")
    arguments = (*arguments, "--propagation_iterations=0", f"--output={output}")
    result = command("export_main", *arguments, f"--calibration_dir={images}")
    assert result.returncode == 0, result.stderr
    assert "a.jpg: one of the images turned" in result.stderr
    assert "files that macOS writes beside others (._*), ignored: 1" in result.stderr
    assert "ignored (1 .txt): 1" in result.stderr
    before = output.read_bytes()
    (images / "b.png").write_bytes(b"")
    for folder, words in ((images, "b.png"), (tmp_path / "none", "Received: no such folder")):
        result = command("export_main", *arguments, "--overwrite", f"--calibration_dir={folder}")
        assert result.returncode == 1 and "Traceback" not in result.stderr
        assert words in result.stderr.splitlines()[-1]
        assert output.read_bytes() == before
