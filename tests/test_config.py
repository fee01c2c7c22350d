import dataclasses
import json

import numpy as np
import pytest

from dilated_affinity.config import Config
from dilated_affinity.datasets.registry import dataset_names
from dilated_affinity.errors import ConfigError, DataError
from dilated_affinity.inference.views import Views
from dilated_affinity.recipes import RECIPES


def test_defaults():
    config = Config()
    assert (config.train_steps, config.batch_size, config.crop_size) == (30000, 16, 513)
    assert (config.rates, config.beta, config.weighting) == ("8,(12,24),16", 1.2, "sqrt_neighbor")
    assert (config.output_stride, config.eval_output_stride) == (16, 8)
    assert (config.learning_rate, config.power, config.weight_decay) == (0.007, 0.9, 1e-4)


@pytest.mark.parametrize("name", ["voc2012_aug", "cityscapes"])
def test_recipes_of_the_paper(name):
    config = Config.for_dataset(name)
    assert (config.batch_norm_momentum, config.head_batch_norm_momentum) == (0.95, 0.9997)
    assert (config.bias_multiplier, config.head_multiplier) == (2.0, 1.0)
    assert (config.weight_decay, config.multi_grid_factors) == (1e-4, None)
    assert config.head_batch_norm_momentum**config.train_steps < 1e-3


@pytest.mark.parametrize("name", sorted(set(dataset_names()) - {"voc2012_aug", "cityscapes"}))
def test_recipes_of_short_schedules(name):
    config = Config.for_dataset(name)
    assert (config.head_batch_norm_momentum, config.bias_multiplier) == (0.0, 1.0)


def test_settings_have_source_and_group():
    for field in dataclasses.fields(Config):
        assert field.metadata["help"].endswith(".") and field.metadata["source"]
        assert field.metadata["group"]


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_valid(name):
    assert name in dataset_names()
    assert Config.for_dataset(name).dataset == name


def test_overrides():
    assert Config.for_dataset("camvid", batch_size=3).batch_size == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("output_stride", 4),
        ("batch_size", 1),
        ("batch_size", 8.5),
        ("batch_size", True),
        ("learning_rate", float("nan")),
        ("dropout", 1.0),
        ("rates", "8,,16"),
        ("rates", ""),
        ("atrous_rates", "6,,12"),
        ("atrous_rates", "none"),
        ("multi_grid", "1,0,4"),
        ("weighting", "sqrt"),
        ("mu", 1),
        ("min_scale", 3.0),
        ("random_flip", 1),
        ("eval_flip", 1),
        ("eval_window", -1),
        ("dataset", None),
    ],
)
def test_invalid_values(name, value):
    with pytest.raises(ConfigError, match=f"{name}.*Received"):
        Config(**{name: value})


def test_integers_become_floats():
    assert Config(beta=2).beta == 2.0


def test_views():
    config = Config(eval_scales="0.75, 1,1.25", eval_flip=True, eval_window=65)
    assert config.views == Views((0.75, 1.0, 1.25), flip=True, window=65)


@pytest.mark.parametrize("text", ["", "0.5,,1", "large", "0,1", "1,1.0", "nan"])
def test_invalid_scales(text):
    with pytest.raises(ConfigError, match="scales must be .*Received"):
        Config(eval_scales=text)


def test_save_and_load(tmp_path):
    config = Config.for_dataset("shapes", seed=7)
    config.save(tmp_path / "config.json", "1.2.3")
    assert Config.load(tmp_path / "config.json") == config
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["package_version"] == "1.2.3"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"config": 3}',
        '{"config": {"betta": 1}}',
        '{"config": {"seed": 4294967296}}',
    ],
)
def test_damaged_file(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(DataError, match="config.json"):
        Config.load(path)


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match="config.json"):
        Config.load(tmp_path / "config.json")


def test_differences_leave_out_resumable_settings():
    config = Config()
    other = config.replace(data_dir="elsewhere", backbone_weights="none", learning_rate=0.1)
    assert config.differences(other) == ["learning_rate"]


def test_trained_through_refinement_may_not_change():
    config = Config()
    other = {"self_weight": 2.0, "mu": 50.0, "affinity_threshold": 2.0, "symmetric_affinity": True}
    changed = {**other, "propagation_iterations": 3}
    assert config.differences(config.replace(**changed)) == []
    config = config.replace(train_propagation=2)
    assert sorted(config.differences(config.replace(**changed))) == sorted(other)


def test_rates_as_an_array():
    assert Config(rates=np.array([8, 16])).rates == "8,16"


@pytest.mark.parametrize(
    ("refine", "iterations", "propagates"),
    [
        ("none", 0, False),
        ("propagation", 4, True),
        ("propagation_decoder_stride", 4, True),
        ("propagation_early_stop", 4, True),
        ("crf", 3, False),
    ],
)
def test_iterations_of_refinement(refine, iterations, propagates):
    config = Config(refine=refine, propagation_iterations=4, crf_iterations=3)
    assert config.refinement_iterations == iterations
    assert config.propagates == propagates
    assert not config.replace(rates="none").propagates


def test_no_propagation_without_iterations():
    assert not Config(propagation_iterations=0).propagates
