import dataclasses
import json
import shutil

import keras
import numpy as np
import pytest
from tiny import tiny_config, write_camvid

from dilated_affinity import training
from dilated_affinity.affinity.statistics import AffinityStatistics
from dilated_affinity.errors import ConfigError, DataError, RunError
from dilated_affinity.training import build_model, compile_model, load_run, train


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    return write_camvid(tmp_path_factory.mktemp("camvid"))


@pytest.fixture(scope="module")
def undisturbed(camvid, tmp_path_factory):
    """A whole run of four steps with a validation after two."""
    model_dir = tmp_path_factory.mktemp("run")
    result = train(tiny_config(camvid), model_dir)
    return result, model_dir


def final_weights(model_dir):
    model = keras.models.load_model(model_dir / training.LATEST)
    return [np.asarray(variable) for variable in (*model.weights, *model.optimizer.variables)]


def assert_same(model_dir, other):
    for first, second in zip(final_weights(model_dir), final_weights(other), strict=True):
        np.testing.assert_array_equal(first, second)


def test_a_run_leaves_its_settings_statistics_log_and_checkpoints(camvid, undisturbed):
    result, model_dir = undisturbed
    assert result.step == 4 and 0 <= result.best_mean_iou <= 1
    content = json.loads((model_dir / "config.json").read_text())
    assert content["config"] == dataclasses.asdict(tiny_config(camvid))
    assert AffinityStatistics.load(model_dir / "statistics.json").rates == ((2, 2), (2, 4), (4, 2))
    header, *rows = (model_dir / "log.csv").read_text().splitlines()
    for column in ("loss", "semantic_loss", "affinity_loss", "semantic_accuracy", "val_mean_iou"):
        assert column in header.split(",")
    assert "affinity_accuracy" in header and len(rows) == 2
    assert json.loads((model_dir / "checkpoints" / "best.json").read_text())["val_mean_iou"] == (
        result.best_mean_iou
    )


def test_the_same_seed_ends_with_identical_weights(camvid, undisturbed, tmp_path):
    train(tiny_config(camvid), tmp_path)
    assert_same(undisturbed[1], tmp_path)


def test_a_stopped_run_started_again_ends_with_the_same_weights(camvid, undisturbed, tmp_path):
    """Stopped in the middle of the first interval and in the middle of the second."""
    config = tiny_config(camvid)
    assert train(config, tmp_path, stop_after=1).step == 1
    assert train(config, tmp_path, stop_after=2).step == 3
    assert train(config, tmp_path).step == 4
    assert_same(undisturbed[1], tmp_path)


def test_a_finished_run_is_left_as_it_is(camvid, undisturbed):
    result, model_dir = undisturbed
    before = (model_dir / training.LATEST).read_bytes()
    assert train(tiny_config(camvid), model_dir) == result
    assert (model_dir / training.LATEST).read_bytes() == before


def test_other_settings_are_refused_and_named(camvid, undisturbed):
    with pytest.raises(RunError, match=r"another configuration: beta=6.0 \(now 2.0\)"):
        train(tiny_config(camvid, beta=2.0), undisturbed[1])
    assert json.loads((undisturbed[1] / "config.json").read_text())["config"]["beta"] == 6.0


def test_an_interrupt_saves_what_was_done(camvid, tmp_path, monkeypatch):
    config = tiny_config(camvid, validate_every=4)
    fit = keras.Model.fit

    def interrupted(self, batches, **kwargs):
        fit(self, batches.take(1), **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(keras.Model, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path)
    monkeypatch.undo()
    assert train(config, tmp_path, stop_after=1).step == 2


def test_a_damaged_checkpoint_is_refused_by_name(camvid, undisturbed, tmp_path):
    model_dir = shutil.copytree(undisturbed[1], tmp_path / "run")
    path = model_dir / training.LATEST
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RunError, match="latest.keras"):
        train(tiny_config(camvid), model_dir)


def test_statistics_of_other_rates_are_refused(camvid, tmp_path):
    statistics = AffinityStatistics.from_labels([np.zeros((9, 9), int)], ((3, 3),))
    statistics.save(tmp_path / "other.json")
    config = tiny_config(camvid, statistics=str(tmp_path / "other.json"))
    with pytest.raises(RunError, match="other.json: statistics of rates 3"):
        train(config, tmp_path / "run")


def test_the_loaded_run_is_the_best_model_at_the_evaluation_stride(camvid, undisturbed):
    _, model_dir = undisturbed
    config, model = load_run(model_dir, eval_output_stride=8)
    assert config.eval_output_stride == 8
    saved = keras.models.load_model(model_dir / training.BEST, compile=False)
    for first, second in zip(saved.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(first, second)
    assert model.get_layer("aspp_atrous0").dilation_rate == (12, 12)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="no run here"):
        load_run(tmp_path)


def test_a_run_that_was_never_validated_is_refused(undisturbed, tmp_path):
    model_dir = shutil.copytree(undisturbed[1], tmp_path / "run")
    (model_dir / training.BEST).unlink()
    with pytest.raises(RunError, match="never validated"):
        load_run(model_dir)


def test_a_damaged_config_is_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match="config.json"):
        load_run(tmp_path)


def test_the_optimizer_follows_the_recipe(camvid):
    config = tiny_config(camvid, learning_rate=0.007, iterations=100)
    model = build_model(config, 11)
    compile_model(model, config.replace(rates="none"))
    schedule = model.optimizer._learning_rate
    for step in (0, 1, 50, 100):
        expected = 0.007 * (1 - step / 100) ** 0.9
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-5)
    assert model.optimizer.momentum == 0.9


def test_weight_decay_is_half_the_sum_of_squares_of_the_convolution_kernels(camvid):
    config = tiny_config(camvid, weight_decay=0.5)
    model = build_model(config, 11)
    kernels = [
        np.asarray(layer.kernel, float)
        for part in (model, model.get_layer(config.backbone))
        for layer in part.layers
        if type(layer).__name__ in ("Conv2D", "AffinityHead")
    ]
    expected = 0.5 * sum((kernel**2).sum() for kernel in kernels) / 2
    assert float(sum(model.losses)) == pytest.approx(expected, rel=1e-4)


def test_plain_deeplab_trains_without_affinity(camvid, tmp_path):
    result = train(tiny_config(camvid, rates="none", iterations=2), tmp_path)
    assert result.step == 2
    assert not (tmp_path / "statistics.json").exists()


def test_an_image_that_cannot_be_read_ends_training_with_its_name(camvid, undisturbed, tmp_path):
    data = shutil.copytree(camvid, tmp_path / "camvid")
    for path in (data / "train").iterdir():
        path.write_bytes(path.read_bytes()[:300])
    statistics = str(undisturbed[1] / training.STATISTICS_FILE)
    with pytest.raises(DataError, match=r"train_\d.png"):
        train(tiny_config(data, statistics=statistics), tmp_path / "run")


def test_the_head_multiplier_multiplies_the_first_step(camvid):
    """Without momentum yet, the first step is -learning_rate * multiplier * gradient."""
    config = tiny_config(camvid, rates="none", head_multiplier=10.0, weight_decay=0.0, dropout=0.0)
    images, targets = next(iter(training.training_dataset(config)))
    steps = {}
    for factor in (1.0, 10.0):
        keras.utils.set_random_seed(0)
        model = build_model(config, 11)
        compile_model(model, config.replace(head_multiplier=factor))
        before = {v.path: np.asarray(v) for v in model.trainable_variables}
        model.train_on_batch(images, targets)
        steps[factor] = {v.path: np.asarray(v) - before[v.path] for v in model.trainable_variables}
    moved = 0
    for path in steps[1.0]:
        factor = 1.0 if path.startswith(("conv", "bn")) else 10.0
        np.testing.assert_allclose(steps[10.0][path], factor * steps[1.0][path], atol=2e-6)
        moved += np.abs(steps[1.0][path]).max() > 1e-5
    assert moved > 20


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_keeps_heads_and_losses_in_float32(camvid, tmp_path, precision):
    config = tiny_config(camvid, mixed_precision=precision, iterations=2)
    assert train(config, tmp_path).step == 2
    _, model = load_run(tmp_path)
    assert model.get_layer("decoder_conv0").compute_dtype == precision
    for name in ("semantic_logits", "affinity_logits", "semantic", "affinity"):
        assert model.get_layer(name).compute_dtype == "float32"
    assert {str(variable.dtype) for variable in model.trainable_variables} == {"float32"}
    outputs = model(np.zeros((1, 40, 48, 3), np.uint8))
    assert {str(each.dtype) for each in outputs.values()} == {"<dtype: 'float32'>"}
    assert keras.config.dtype_policy().name == "float32"


def test_accumulated_steps_resume_where_they_stopped(camvid, tmp_path):
    config = tiny_config(camvid, accumulation=2, batch_size=4)
    train(config, tmp_path / "whole")
    train(config, tmp_path / "parts", stop_after=1)
    assert train(config, tmp_path / "parts").step == 4
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_a_batch_that_replicas_or_accumulation_cannot_share_is_refused(camvid):
    with pytest.raises(ConfigError, match="accumulation=3, batch_size=4"):
        tiny_config(camvid, accumulation=3, batch_size=4)


def test_the_trained_model_shares_everything_with_the_whole_one(camvid, undisturbed):
    statistics = AffinityStatistics.load(undisturbed[1] / training.STATISTICS_FILE)
    config = tiny_config(camvid)
    model = build_model(config, 11, statistics)
    trained = compile_model(model, config, statistics)
    assert trained.optimizer is model.optimizer
    assert {id(v) for v in trained.variables} == {id(v) for v in model.variables}
    images, targets = next(iter(training.training_dataset(config)))
    np.testing.assert_allclose(
        trained.test_on_batch(images, targets, return_dict=True)["affinity_loss"],
        model.test_on_batch(images, targets, return_dict=True)["affinity_loss"],
        rtol=1e-5,
    )


def test_weight_decay_pulls_a_kernel_by_learning_rate_times_decay_times_kernel(camvid):
    """Without momentum yet; nothing but kernels of ordinary convolutions is pulled."""
    settings = {"dropout": 0.0, "learning_rate": 0.01, "head_multiplier": 1.0}
    config = tiny_config(camvid, rates="none", **settings)
    images, targets = next(iter(training.training_dataset(config)))
    after, before = {}, {}
    for decay in (0.0, 0.5):
        keras.utils.set_random_seed(0)
        model = build_model(config.replace(weight_decay=decay), 11)
        trained = compile_model(model, config)
        before = {v.path: np.asarray(v) for v in model.trainable_variables}
        trained.train_on_batch(images, targets)
        after[decay] = {v.path: np.asarray(v) for v in model.trainable_variables}
    for path, start in before.items():
        pull = 0.01 * 0.5 * start if path.endswith("kernel") else 0.0
        np.testing.assert_allclose(after[0.0][path] - after[0.5][path], pull, atol=1e-6)
