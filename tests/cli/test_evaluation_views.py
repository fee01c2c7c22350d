"""The views of `eval_main` and `predict_main`, on a run whose backbone only the tests know."""

import json

import keras
import numpy as np
import pytest
from helpers.tiny_run import command, write_run
from PIL import Image

from dilated_affinity.datasets.registry import load_source
from dilated_affinity.evaluation.evaluate import evaluate
from dilated_affinity.inference.predictor import Predictor
from dilated_affinity.inference.refinement import Refinement
from dilated_affinity.inference.views import Views
from dilated_affinity.run_dir.layout import BEST
from dilated_affinity.run_dir.load import load_run

VIEWS = Views(scales=(0.5, 1.0, 1.5), flip=True, window=33)
FLAGS = ("--eval_scales=0.5,1,1.5", "--eval_flip", "--eval_window=33")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What training at output stride 16 leaves; to be evaluated at 8, as the paper does."""
    return write_run(tmp_path_factory.mktemp("run"), eval_output_stride=8)


def test_a_run_is_evaluated_at_its_evaluation_output_stride(run):
    config, model_dir = run
    assert (config.output_stride, config.eval_output_stride) == (16, 8)
    trained = keras.models.load_model(model_dir / BEST, compile=False)
    _, model = load_run(model_dir)
    assert _atrous_rates(model) == [12, 24, 36] and _atrous_rates(trained) == [6, 12, 18]
    for loaded, kept in zip(model.get_weights(), trained.get_weights(), strict=True):
        np.testing.assert_array_equal(loaded, kept)


def test_eval_main_uses_the_output_stride_and_the_views(run, tmp_path):
    config, model_dir = run
    output = tmp_path / "result.json"
    settings = {"refine": "propagation", "self_weight": config.self_weight, "mu": config.mu}
    earlier = {"split": config.val_split, "output_stride": 8, "iterations": [0, 2], **settings}
    earlier |= {"scales": [1.0], "flip": False, "window": 33}
    output.write_text(json.dumps(earlier))
    result = command(
        "eval_main",
        f"--model_dir={model_dir}",
        "--propagation_iterations=0,2",
        f"--output={output}",
        *FLAGS,
    )
    assert result.returncode == 0, result.stderr
    replaced = f"{output}: replaces an evaluation with scales=[1.0], flip=False; --output"
    assert replaced in result.stderr
    content = json.loads(output.read_text())
    assert content["output_stride"] == 8
    assert content["scales"] == [0.5, 1.0, 1.5]
    assert content["flip"] is True and content["window"] == 33
    source = load_source(config.dataset, config.val_split, config.data_dir)
    _, model = load_run(model_dir)
    expected = evaluate(
        model, source, (0, 2), self_weight=config.self_weight, mu=config.mu, views=VIEWS
    )
    np.testing.assert_allclose(content["pixel_accuracy"], expected.pixel_accuracy, atol=1e-3)
    np.testing.assert_allclose(content["mean_iou"], expected.mean_iou, atol=1e-3)
    by_rate = content["affinity_accuracy"]["by_rate"]
    np.testing.assert_allclose(by_rate, expected.affinity_accuracy_by_rate, atol=1e-4)


@pytest.mark.slow  # the predictor of it is tested every day
def test_predict_main_averages_over_the_views(run, tmp_path):
    config, model_dir = run
    result = command(
        "predict_main", f"--model_dir={model_dir}", "--limit=1", f"--output_dir={tmp_path}", *FLAGS
    )
    assert result.returncode == 0, result.stderr
    _, model = load_run(model_dir)
    predict = Predictor(model, refinement=Refinement.from_config(config), views=VIEWS)
    example = load_source(config.dataset, config.val_split, config.data_dir)[0]
    with Image.open(tmp_path / f"{example['id']}_labels.png") as labels:
        assert (np.asarray(labels) == predict(example["image"]).labels).mean() > 0.99


def test_views_of_a_run_may_change(run):
    config, _ = run
    other = config.replace(eval_scales="0.5,1", eval_flip=True, eval_window=65)
    assert config.differences(other) == []


def _atrous_rates(model):
    return [model.get_layer(f"aspp_atrous{index}").dilation_rate[0] for index in range(3)]
