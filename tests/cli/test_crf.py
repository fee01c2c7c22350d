import json

import numpy as np
import pytest
from helpers.tiny_run import command, write_run
from PIL import Image

pytest.importorskip("pydensecrf", reason="needs the extra crf")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"))[1]


@pytest.mark.slow
def test_evaluation_with_a_crf(run):
    flags = (f"--model_dir={run}", "--refine=crf", "--crf_iterations=2")
    completed = command("eval_main", *flags, "--crf_bilateral_rgb=20")
    assert completed.returncode == 0, completed.stderr
    assert "columns: iterations of a dense CRF" in completed.stdout
    content = json.loads((run / "evaluation_crf.json").read_text())
    assert content["crf"]["iterations"] == 2 and content["crf"]["bilateral_rgb"] == 20
    assert content["iterations"] == [0, 2] and len(content["mean_iou"]) == 2
    refused = command("eval_main", *flags, "--affinity_source=ground_truth")
    assert refused.returncode == 2 and "are for propagation" in refused.stderr


@pytest.mark.slow
def test_evaluation_without_refinement(run):
    completed = command("eval_main", f"--model_dir={run}", "--refine=none")
    assert completed.returncode == 0, completed.stderr
    content = json.loads((run / "evaluation_predicted.json").read_text())
    assert content["iterations"] == [0]


@pytest.mark.slow
def test_prediction_with_a_crf(run, tmp_path):
    flags = (f"--model_dir={run}", "--limit=2")
    settings = ("--refine=crf", "--crf_bilateral_rgb=60", "--crf_bilateral_weight=50")
    labels = {}
    for name, refinement in (("crf", settings), ("none", ["--refine=none"])):
        folder = tmp_path / name
        completed = command("predict_main", *flags, f"--output_dir={folder}", *refinement)
        assert completed.returncode == 0, completed.stderr
        paths = sorted(folder.glob("*_labels.png"))
        assert len(paths) == 2
        labels[name] = [np.asarray(Image.open(path)) for path in paths]
    assert not np.array_equal(labels["crf"], labels["none"])
