"""The commands, each in a process of its own."""

import json

import numpy as np
import pytest
from helpers.commands import run_module
from helpers.tiny import write_camvid
from helpers.tiny_run import command
from PIL import Image

from dilated_affinity.datasets.classes import CAMVID
from dilated_affinity.errors import DataError
from dilated_affinity.run_dir.layout import load_classes

SETTINGS = (
    "--dataset=camvid",
    "--backbone=tiny",
    "--noseparable",
    "--backbone_weights=none",
    "--rates=2,(2,4)",
    "--filters=16",
    "--crop_size=33",
    "--batch_size=2",
    "--train_steps=2",
    "--validate_every=1",
    "--calibrate=none",
)


def resolved(result):
    """The line on stderr that says what the settings have come to."""
    lines = [line for line in result.stderr.splitlines() if "; writing to " in line]
    assert len(lines) == 1, result.stderr
    return lines[0]


def refused(result, status, *words):
    """One line on stderr with these words, beside what TensorFlow logs, and nothing on stdout."""
    assert result.returncode == status, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.split(":")[0].endswith("_main")]
    assert len(lines) == 1 and "Traceback" not in result.stderr, result.stderr
    for word in words:
        assert word in lines[0]
    assert result.stdout == ""


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    return write_camvid(tmp_path_factory.mktemp("camvid"))


@pytest.fixture(scope="module")
def run(camvid, tmp_path_factory):
    model_dir = tmp_path_factory.mktemp("run") / "model"
    result = command("train_main", *SETTINGS, f"--data_dir={camvid}", f"--model_dir={model_dir}")
    assert result.returncode == 0, result.stderr
    assert "2 steps done; best validation mIoU" in result.stdout
    first = resolved(result)
    assert first.startswith("camvid: 5 training and 3 validation images, 11 classes, rates 2,(2,4)")
    assert "; steps 0 to 2 of batch 2, crop 33; on CPU, float32; writing to" in first
    for step in (1, 2):
        assert f"step {step} of 2: affinity_accuracy 0." in result.stderr
    return model_dir


def test_train_evaluate_and_predict(run, camvid, tmp_path):
    evaluated = command("eval_main", f"--model_dir={run}", "--propagation_iterations=0,2")
    assert evaluated.returncode == 0, evaluated.stderr
    for word in ("camvid val: 3 images", "mIoU", "boundary IoU", "pixel accuracy", "(2,4)", "n8"):
        assert word in evaluated.stdout
    content = json.loads((run / "evaluation_predicted.json").read_text())
    assert content["iterations"] == [0, 2] and len(content["mean_iou"]) == 2
    first = resolved(evaluated)
    assert first.startswith("camvid: 3 images of val, 11 classes, rates 2,(2,4); tiny")
    assert "; output stride 16; 0, 2 iterations of propagation with lambda 6, mu 7; " in first
    assert first.endswith(f"writing to {run / 'evaluation_predicted.json'}")
    assert content["checkpoint"] == "best" and "best checkpoint, of step" in evaluated.stdout
    warned = "best of 2 by mIoU on val, which is measured here" in evaluated.stderr
    assert warned == (content["step"] < 2), "the last checkpoint may be the best"
    last = command(
        "eval_main", f"--model_dir={run}", "--checkpoint=last", "--propagation_iterations=0,2"
    )
    assert last.returncode == 0 and "measured here" not in last.stderr
    assert "the last checkpoint, of step 2" in last.stdout
    assert "replaces an evaluation with checkpoint=best" in last.stderr
    content = json.loads((run / "evaluation_predicted.json").read_text())
    assert (content["checkpoint"], content["step"]) == ("last", 2)

    predicted = command(
        "predict_main",
        f"--model_dir={run}",
        f"--input={camvid / 'val'}",
        f"--output_dir={tmp_path}",
    )
    assert predicted.returncode == 0, predicted.stderr
    assert "predicted 3 images" in predicted.stdout
    assert f"camvid: images of {camvid / 'val'}, 11 classes" in resolved(predicted)
    assert resolved(predicted).endswith(f"writing to {tmp_path}")
    with Image.open(tmp_path / "val_0_labels.png") as labels:
        assert labels.mode == "P" and np.asarray(labels).max() < 11


def test_photographs_are_predicted_without_the_data_set(run, camvid, tmp_path):
    arguments = (f"--model_dir={run}", f"--output_dir={tmp_path / 'out'}", "--data_dir=gone")
    result = command("predict_main", *arguments, f"--input={camvid / 'val' / 'val_0.png'}")
    assert result.returncode == 0, result.stderr
    result = command("predict_main", *arguments, f"--input={camvid / 'val'}", "--limit=1")
    refused(result, 2, "--limit", "--input")


def test_the_classes_of_a_run(run, tmp_path):
    assert load_classes(run) == CAMVID
    assert load_classes(tmp_path) is None
    for content in ("", "[]", '{"names": ["a"], "palette": [[0, 0]], "void_color": [0, 0, 0]}'):
        (tmp_path / "classes.json").write_text(content)
        with pytest.raises(DataError, match="classes.json: not a table of classes"):
            load_classes(tmp_path)


def test_statistics(camvid, tmp_path):
    output = tmp_path / "statistics.json"
    result = command(
        "statistics_main",
        "--dataset=camvid",
        f"--data_dir={camvid}",
        "--rates=2,4",
        f"--output={output}",
    )
    assert result.returncode == 0, result.stderr
    assert "camvid: 5 label maps" in result.stdout and "(4,4)" in result.stdout
    assert json.loads(output.read_text())["rates"] == [[2, 2], [4, 4]]


def test_a_run_of_other_settings_is_refused(run, camvid):
    result = command(
        "train_main", *SETTINGS, "--beta=3", f"--data_dir={camvid}", f"--model_dir={run}"
    )
    refused(result, 1, "another configuration", "beta=6.0 (now 3.0)")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("--dataset=camvit",), 2, ("camvit", "'camvid'")),
        (("--bach_size=3",), 2, ("bach_size",)),
        (("--batch_size=many",), 2, ("batch_size", "many")),
        (("--batch_size=1",), 2, ("batch_size", "Received")),
        (("--rates=8,,9",), 2, ("rates", "8,,9")),
        (("shapes",), 2, ("shapes",)),
        (("--dataset=camvid", "--data_dir=/nowhere/at/all"), 1, ("/nowhere/at/all",)),
    ],
)
def test_a_bad_command_line_is_one_line(tmp_path, arguments, status, words):
    result = command("train_main", f"--model_dir={tmp_path / 'model'}", *arguments)
    refused(result, status, *words)


@pytest.mark.slow
def test_a_missing_model_dir_is_one_line(tmp_path):
    """As a user types them, the second under its short name."""
    refused(run_module("dilated_affinity.cli.train_main"), 2, "--model_dir must be given")
    result = run_module("dilated_affinity", "eval", f"--model_dir={tmp_path}")
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("eval: ")]
    assert result.returncode == 1 and "no run here" in line and result.stdout == ""


def broken(camvid_dir, kind):
    image, label = camvid_dir / "train" / "train_1.png", camvid_dir / "trainannot" / "train_1.png"
    if kind == "no label":
        label.unlink()
    elif kind == "other size":
        Image.fromarray(np.zeros((5, 6), np.uint8)).save(label)
    elif kind == "unknown value":
        Image.fromarray(np.full((40, 48), 77, np.uint8)).save(label)
    elif kind == "truncated":
        image.write_bytes(image.read_bytes()[:200])
    return {"no label": "train_1", "truncated": image.name}.get(kind, label.name)


@pytest.mark.parametrize(
    "kind",
    [
        "no label",
        # Found where "truncated" is, in the first batch, before which the model is built.
        pytest.param("other size", marks=pytest.mark.slow),
        "unknown value",
        "truncated",
    ],
)
def test_broken_data_is_one_line_that_names_the_file(tmp_path, kind):
    camvid_dir = write_camvid(tmp_path / "camvid")
    named = broken(camvid_dir, kind)
    result = command(
        "train_main", *SETTINGS, f"--data_dir={camvid_dir}", f"--model_dir={tmp_path / 'model'}"
    )
    refused(result, 1, named)
