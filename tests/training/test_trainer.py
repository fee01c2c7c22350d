import csv
import dataclasses
import functools
import json
import os
import random
import shutil
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.first_step import FirstStepReachedError, stop_at_first_step
from helpers.tiny import tiny_config, write_camvid

from dilated_affinity.affinity.statistics import AffinityStatistics
from dilated_affinity.config import Config
from dilated_affinity.datasets.classes import CAMVID
from dilated_affinity.datasets.registry import load_source
from dilated_affinity.errors import ConfigError, DataError, RunError
from dilated_affinity.evaluation.evaluate import evaluate
from dilated_affinity.inference.refinement import Refinement
from dilated_affinity.run_dir.checkpoints import (
    Checkpoints,
    TrainingState,
    read_state,
    write_checkpoint,
)
from dilated_affinity.run_dir.layout import (
    BEST,
    CALIBRATION_FILE,
    CHECKPOINTS,
    CONFIG_FILE,
    LOCK_FILE,
    LOG_FILE,
    STATISTICS_FILE,
    chosen_checkpoint,
    load_calibration,
    save_settings,
    trained_on,
)
from dilated_affinity.run_dir.load import load_checkpoint, load_run
from dilated_affinity.run_dir.model import build_model
from dilated_affinity.run_dir.selection_bias import selection_bias
from dilated_affinity.runtime.files import exclusive_lock
from dilated_affinity.training.compile import compile_model
from dilated_affinity.training.input_pipeline import batch_ids, training_dataset
from dilated_affinity.training.run_calibration import save_searched
from dilated_affinity.training.run_checks import check_run
from dilated_affinity.training.trainer import train


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    return write_camvid(tmp_path_factory.mktemp("camvid"))


@pytest.fixture(scope="module")
def undisturbed(camvid, tmp_path_factory):
    """A whole run of four steps with a validation after two."""
    model_dir = tmp_path_factory.mktemp("run")
    result = train(tiny_config(camvid), model_dir)
    return result, model_dir


@pytest.fixture(scope="module")
def stopped(camvid, tmp_path_factory):
    """The same run, stopped after its first step."""
    model_dir = tmp_path_factory.mktemp("stopped")
    assert train(tiny_config(camvid), model_dir, stop_after=1).step == 1
    return model_dir


def latest(model_dir):
    return Checkpoints(model_dir / CHECKPOINTS).latest()


def final_weights(model_dir):
    model = keras.models.load_model(latest(model_dir))
    return [np.asarray(variable) for variable in (*model.weights, *model.optimizer.variables)]


def assert_same(model_dir, other):
    for first, second in zip(final_weights(model_dir), final_weights(other), strict=True):
        np.testing.assert_array_equal(first, second)


def test_files_of_a_run(camvid, undisturbed):
    result, model_dir = undisturbed
    assert result.step == 4 and 0 <= result.best_mean_iou <= 1
    content = json.loads((model_dir / "config.json").read_text())
    assert content["config"] == dataclasses.asdict(tiny_config(camvid))
    assert AffinityStatistics.load(model_dir / "statistics.json").rates == ((2, 2), (2, 4), (4, 2))
    header, *rows = (model_dir / "log.csv").read_text().splitlines()
    for column in ("loss", "semantic_loss", "affinity_loss", "semantic_accuracy", "val_mean_iou"):
        assert column in header.split(",")
    assert "affinity_accuracy" in header and len(rows) == 2
    assert read_state(model_dir / BEST).best == result.best_mean_iou
    assert not (model_dir / CALIBRATION_FILE).exists()  # as the settings say


@pytest.mark.slow  # the everyday kills cover it
def test_same_seed_same_weights(camvid, undisturbed, tmp_path):
    """Whether TensorBoard is told of the run or not."""
    train(tiny_config(camvid, tensorboard=True), tmp_path)
    assert_same(undisturbed[1], tmp_path)
    (written,) = tmp_path.glob("tensorboard/validation/*")
    events = [
        (event.step, value.tag)
        for event in tf.compat.v1.train.summary_iterator(str(written))
        for value in event.summary.value
    ]
    for step in (2, 4):
        assert (step, "mean_iou/before_refinement") in events
        assert any(at == step and tag.startswith("examples/") for at, tag in events)


@pytest.mark.slow
def test_initial_weights_do_not_depend_on_reading_data(camvid, monkeypatch, tmp_path):
    def drawing(*arguments):
        random.random()
        return load_source(*arguments)

    runs = [tmp_path / "plain", tmp_path / "drawing"]
    train(tiny_config(camvid), runs[0], stop_after=1)
    monkeypatch.setattr("dilated_affinity.training.run_checks.load_source", drawing)
    train(tiny_config(camvid), runs[1], stop_after=1)
    assert_same(*runs)


def test_misspelt_split_leaves_folder_usable(camvid, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="vall"):
        train(tiny_config(camvid, val_split="vall"), tmp_path)
    stop_at_first_step(monkeypatch)
    with pytest.raises(FirstStepReachedError):
        train(tiny_config(camvid), tmp_path)


def test_resume_is_exact(camvid, undisturbed, stopped, tmp_path, monkeypatch):
    """Stopped in the middle of the first interval and in the middle of the second."""
    config = tiny_config(camvid)
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    (here,) = trained_on(tmp_path)
    assert here["backend"] == "tensorflow" and here["hardware"]["gpus"] == []
    elsewhere = {**here, "backend": "elsewhere"}
    monkeypatch.setattr("dilated_affinity.run_dir.layout.environment", lambda: elsewhere)
    assert train(config, tmp_path, stop_after=2).step == 3
    monkeypatch.undo()
    assert train(config, tmp_path).step == 4
    assert trained_on(tmp_path) == [here, elsewhere]
    assert_same(undisturbed[1], tmp_path)


def test_finished_run_is_unchanged(camvid, undisturbed, monkeypatch):
    result, model_dir = undisturbed
    before = latest(model_dir).read_bytes()
    monkeypatch.setattr("dilated_affinity.training.trainer.record_environment", pytest.fail)
    assert train(tiny_config(camvid), model_dir) == result
    assert latest(model_dir).read_bytes() == before


@pytest.mark.parametrize("content, message", [("[", "not a JSON file"), ("{}", "must hold a list")])
def test_damaged_environment_record(tmp_path, content, message):
    assert trained_on(tmp_path) == []
    (tmp_path / "trained_on.json").write_text(content)
    with pytest.raises(DataError, match=f"trained_on.json: {message}"):
        trained_on(tmp_path)


def test_settings_may_change_until_something_is_trained(camvid, tmp_path):
    run = tmp_path / "run"
    missing = str(tmp_path / "missing.weights.h5")
    with pytest.raises(DataError, match="missing.weights.h5: no such file"):
        train(tiny_config(camvid, backbone_weights=missing, class_weights="balanced"), run)
    left = {"config.json", "classes.json", "statistics.json", "class_weights.json"}
    assert {path.name for path in run.iterdir()} == {*left, ".lock"}
    changed = tiny_config(camvid, rates="3", class_weights="none")
    assert train(changed, run, stop_after=1).step == 1
    assert json.loads((run / "config.json").read_text())["config"]["rates"] == "3"
    assert json.loads((run / "statistics.json").read_text())["rates"] == [[3, 3]]
    assert not (run / "class_weights.json").exists()
    with pytest.raises(RunError, match="another configuration: rates='3'"):
        train(tiny_config(camvid), run)


def test_other_settings_are_refused(camvid, undisturbed):
    message = r"another configuration: beta=6.0 \(now 2.0\).*--initial_model=.* to start from this"
    with pytest.raises(RunError, match=message):
        train(tiny_config(camvid, beta=2.0), undisturbed[1])
    with pytest.raises(RunError, match="depends on train_steps, .*--initial_model="):
        train(tiny_config(camvid, train_steps=6), undisturbed[1])
    assert json.loads((undisturbed[1] / "config.json").read_text())["config"]["beta"] == 6.0


@pytest.mark.slow  # the everyday kills include saves
def test_signal_while_saving(camvid, undisturbed, tmp_path, monkeypatch):
    write = Checkpoints.write

    def terminated(self, model, state):
        if state.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return write(self, model, state)

    config = tiny_config(camvid, checkpoint_every=1)
    with monkeypatch.context() as patched, pytest.raises(SystemExit) as stopped:
        patched.setattr(Checkpoints, "write", terminated)
        train(config, tmp_path)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert read_state(latest(tmp_path)).step == 2
    assert train(config, tmp_path).step == 4
    assert_same(undisturbed[1], tmp_path)
    # The epoch in whose middle it was stopped is logged as if it had not been.
    logs = [(each / LOG_FILE).read_text() for each in (undisturbed[1], tmp_path)]
    assert logs[0] == logs[1]


def test_damaged_newest_checkpoint(camvid, undisturbed, tmp_path, caplog):
    model_dir = shutil.copytree(undisturbed[1], tmp_path / "run")
    newest = latest(model_dir)
    newest.write_bytes(newest.read_bytes()[:1000])
    assert train(tiny_config(camvid), model_dir).step == 4
    assert f"{newest}: the checkpoint is cut off" in caplog.text
    assert_same(undisturbed[1], model_dir)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["as once", "of two replicas"])
def test_resume_with_metrics_of_other_replicas(camvid, undisturbed, stopped, tmp_path, kind):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    path, state = chosen_checkpoint(tmp_path, "last")
    values = [np.array(each["replicas"][0]) for each in state.metrics]
    assert len(values) > 5
    if kind == "as once":  # before each replica had its own
        state.metrics = [value.tolist() for value in values]
    else:
        parts = [(value // 2, value - value // 2) for value in values]
        state.metrics = [{"replicas": [each.tolist() for each in pair]} for pair in parts]
    write_checkpoint(path, keras.models.load_model(path), state)
    train(tiny_config(camvid), tmp_path)
    expected, found = (
        np.genfromtxt(folder / LOG_FILE, delimiter=",", names=True)
        for folder in (undisturbed[1], tmp_path)
    )
    for name in expected.dtype.names:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6)


def test_damaged_best_model(undisturbed, tmp_path):
    model_dir = shutil.copytree(undisturbed[1], tmp_path / "run")
    (model_dir / BEST).write_bytes((model_dir / BEST).read_bytes()[:-1])
    with pytest.raises(DataError, match=r"best\.keras: the checkpoint is cut off"):
        load_run(model_dir)


def test_locked_folder(camvid, undisturbed):
    model_dir = undisturbed[1]
    with exclusive_lock(model_dir / LOCK_FILE):
        with pytest.raises(RunError, match="another process is training in this folder"):
            train(tiny_config(camvid), model_dir)


@pytest.mark.slow
def test_on_nan(camvid, tmp_path):
    config = tiny_config(camvid, learning_rate=1e30, checkpoint_every=1, rates="2")
    source = load_source(config.dataset, config.train_split, config.data_dir)
    ids = ", ".join(batch_ids(config, source, 1))
    wrong = (
        r"step 2: the loss of .*semantic.* not finite; training stopped. step-00000001.keras is "
        r"kept. Try a lower learning_rate than 1e\+30 or .*warmup_steps in another model_dir, .*"
        rf"on_nan=skip here. Images of its batch: {ids}$"
    )
    for _ in range(2):
        with pytest.raises(RunError, match=wrong):
            train(config, tmp_path)
        assert read_state(latest(tmp_path)).step == 1
    assert train(config.replace(on_nan="skip"), tmp_path).step == 4
    assert read_state(latest(tmp_path)).skipped_steps == 3
    assert all(np.isfinite(values).all() for values in final_weights(tmp_path))


@pytest.mark.slow
def test_on_nan_with_sample_weights(camvid, tmp_path):
    config = tiny_config(camvid, learning_rate=1e30, objective="boundary")
    message = "step 2: .*semantic.* not finite.* There is no checkpoint yet. .*Images of its batch"
    with pytest.raises(RunError, match=message):
        train(config, tmp_path)
    assert Checkpoints(tmp_path / CHECKPOINTS).paths() == []


def test_on_bad_example(tmp_path, caplog):
    data = write_camvid(tmp_path / "data", train=120)
    config = tiny_config(data, rates="none", on_bad_example="skip")
    source = load_source(config.dataset, config.train_split, config.data_dir)
    bad = batch_ids(config, source, 0)[0]
    (data / "train" / f"{bad}.png").write_bytes(b"no image")
    assert train(config, tmp_path / "run").step == 4
    assert caplog.text.count(f"{bad}.png: expected an image file") == 1
    with open(tmp_path / "run" / LOG_FILE) as file:
        assert [row["skipped_examples"] for row in csv.DictReader(file)] == ["1", "1"]


class Ious:
    """In the place of measuring: what validations are to bring, and a count of them."""

    def __init__(self, monkeypatch, *values):
        self.values, self.taken = values, 0
        monkeypatch.setattr("dilated_affinity.training.validation.Validation.class_iou", self)

    def __call__(self):
        self.taken += 1
        return np.array([self.values[self.taken - 1]])


@pytest.mark.slow
def test_early_stopping_and_more_patience(camvid, tmp_path, monkeypatch):
    settings = {"rates": "none", "train_steps": 3, "validate_every": 1}
    config = tiny_config(camvid, **settings, early_stop_patience=1)
    ious = Ious(monkeypatch, 0.4, 0.3, 0.5)
    result = train(config, tmp_path)
    assert (result.step, result.best_mean_iou, result.stopped_early) == (2, 0.4, True)
    assert not (tmp_path / STATISTICS_FILE).exists()  # without affinity
    before = latest(tmp_path).read_bytes()
    assert train(config, tmp_path) == result and latest(tmp_path).read_bytes() == before
    result = train(config.replace(early_stop_patience=2), tmp_path)
    assert (result.step, result.best_mean_iou, result.stopped_early) == (3, 0.5, False)
    assert ious.taken == 3


@pytest.mark.slow
def test_early_stopping_with_resume(camvid, tmp_path, monkeypatch):
    """Between any two validations."""
    values = (0.2, 0.4, 0.3, 0.4, 0.5)
    settings = {"rates": "none", "train_steps": 5, "validate_every": 1}
    config = tiny_config(camvid, **settings, early_stop_patience=2)
    for folder, steps in (("whole", 0), ("parts", 1)):
        ious, result = Ious(monkeypatch, *values), None
        for _ in range(6 if steps else 1):
            result = train(config, tmp_path / folder, stop_after=steps)
        assert (result.step, result.best_mean_iou, result.stopped_early) == (4, 0.4, True)
        assert ious.taken == 4
    assert_same(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_batches_of_one_image(camvid, tmp_path):
    """Batch norm over one image would cancel the image-level features, but only in training."""
    settings = {"batch_norm": "frozen", "rates": "none", "train_steps": 2, "dropout": 0.0}
    config = tiny_config(camvid, batch_size=1, weight_decay=0.0, **settings)
    with pytest.raises(ConfigError, match="at least 2, since .*batch_norm='frozen' allows one"):
        config.replace(batch_norm="sync")
    images, targets = next(iter(training_dataset(config)))
    moved, gap = {}, {}
    for size in (1, 2):
        keras.utils.set_random_seed(0)
        model = build_model(config.replace(batch_size=size), 11)
        trained = compile_model(model, config)
        logits = [model(images, training=training)["semantic"] for training in (True, False)]
        gap[size] = np.abs(logits[0] - logits[1]).max()
        before = np.asarray(model.get_layer("aspp_pool_conv").kernel)
        trained.train_on_batch(images, targets)
        moved[size] = np.abs(model.get_layer("aspp_pool_conv").kernel - before).max()
    assert moved[2] < 1e-7 < moved[1] and gap[1] < 1e-6 < gap[2]
    assert train(config, tmp_path).step == 2


def test_statistics_of_other_rates(camvid, tmp_path):
    statistics = AffinityStatistics.from_labels([np.zeros((9, 9), int)], ((3, 3),))
    statistics.save(tmp_path / "other.json")
    config = tiny_config(camvid, statistics=str(tmp_path / "other.json"))
    with pytest.raises(RunError, match="other.json: statistics of rates 3"):
        train(config, tmp_path / "run")


def test_load_run(camvid, undisturbed):
    _, model_dir = undisturbed
    config, model = load_run(model_dir, eval_output_stride=8)
    assert config.eval_output_stride == 8
    saved = keras.models.load_model(model_dir / BEST, compile=False)
    for first, second in zip(saved.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(first, second)
    assert model.get_layer("aspp_atrous0").dilation_rate == (12, 12)


def test_load_run_last_checkpoint(undisturbed, tmp_path):
    model_dir = shutil.copytree(undisturbed[1], tmp_path / "run")
    # The best is now that of another step.
    older = keras.models.load_model(model_dir / BEST)
    for variable in older.trainable_variables:
        variable.assign(variable + 1)
    write_checkpoint(model_dir / BEST, older, TrainingState(step=2))
    for which, file in (("best", model_dir / BEST), ("last", latest(model_dir))):
        saved = keras.models.load_model(file, compile=False)
        _, model = load_run(model_dir, checkpoint=which)
        for first, second in zip(saved.get_weights(), model.get_weights(), strict=True):
            np.testing.assert_array_equal(first, second)
        path, state = chosen_checkpoint(model_dir, which)
        assert (path, state.step) == (file, 2 if which == "best" else 4)
    with pytest.raises(
        ConfigError, match="checkpoint must be one of best, last. Received: 'first'"
    ):
        load_run(model_dir, checkpoint="first")
    newest = latest(model_dir)
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.raises(DataError, match=f"{newest.name}: the checkpoint is cut off"):
        load_run(model_dir, checkpoint="last")
    assert newest.exists(), "who reads a run changes nothing in it"
    for path in (model_dir / "checkpoints").glob("step-*"):
        path.unlink()
    with pytest.raises(RunError, match="no checkpoint in checkpoints yet"):
        load_run(model_dir, checkpoint="last")


def test_selection_bias(camvid, undisturbed, tmp_path):
    config = tiny_config(camvid)
    model_dir = shutil.copytree(undisturbed[1], tmp_path / "run")

    def bias(which, split, **settings):
        source = load_source(config.dataset, split, config.data_dir)
        return selection_bias(model_dir, which, config.replace(val_split=split, **settings), source)

    # The better of two validations, which was not the last.
    write_checkpoint(model_dir / BEST, load_checkpoint(model_dir / BEST), TrainingState(step=2))
    (line,) = bias("best", "val")
    assert "best of 2 by mIoU on val, which is measured here" in line
    assert line.endswith("--checkpoint=last is free of this choice")
    assert bias("best", "val[1:]") and bias("best", "train+val[:1]")
    assert bias("last", "val") == bias("best", "train") == []
    # The refinement, unless other settings are in force.
    save_searched(model_dir, Refinement(3, mu=9.0), "val[:2]", 4)
    saved = load_calibration(model_dir)["settings"]
    (line,) = bias("last", "val", **saved)
    assert "the refinement was chosen by search on val[:2], which is measured here" in line
    assert bias("last", "val", **{**saved, "mu": 8.0}) == bias("last", "train", **saved) == []
    # The length of the training.
    save_settings(model_dir, config.replace(train_steps=6, early_stop_patience=1), CAMVID)
    assert bias("last", "val")[0].startswith("training was stopped early by mIoU on val,")
    assert "--checkpoint=last" not in bias("best", "val")[0]


def test_selection_bias_of_one_validation_or_the_last(camvid, undisturbed, tmp_path):
    model_dir = shutil.copytree(undisturbed[1], tmp_path / "run")
    source = load_source("camvid", "val", camvid)
    write_checkpoint(model_dir / BEST, load_checkpoint(model_dir / BEST), TrainingState(step=4))
    assert selection_bias(model_dir, "best", tiny_config(camvid), source) == []
    write_checkpoint(model_dir / BEST, load_checkpoint(model_dir / BEST), TrainingState(step=2))
    log = model_dir / LOG_FILE
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:2]))
    assert selection_bias(model_dir, "best", tiny_config(camvid), source) == []


def test_files_of_the_start_are_not_read_again(camvid, undisturbed, tmp_path, caplog):
    """And the run keeps saying which they were."""
    model_dir = shutil.copytree(undisturbed[1], tmp_path / "run")
    others = {"initial_model": "elsewhere", "backbone_weights": "b.h5", "statistics": "s.json"}
    config = tiny_config(camvid, **others)
    before = latest(model_dir).read_bytes()
    assert train(config, model_dir).step == 4
    assert latest(model_dir).read_bytes() == before
    recorded = Config.load(model_dir / CONFIG_FILE)
    for name, value in others.items():
        assert f"continues from its last checkpoint; {name}={value} is not read" in caplog.text
        assert getattr(recorded, name) == getattr(tiny_config(camvid), name)
    caplog.clear()
    check_run(config, CAMVID, model_dir)
    assert "initial_model=elsewhere is not read" in caplog.text
    # A run that has no checkpoint does read them.
    with pytest.raises(DataError, match="s.json: cannot read affinity statistics"):
        train(config, tmp_path / "new")
    with pytest.raises(ConfigError, match="Received: initial_model='elsewhere'"):
        train(config.replace(statistics=""), tmp_path / "new")


def test_validation_equals_evaluate(camvid, undisturbed):
    result, model_dir = undisturbed
    config, model = load_run(model_dir)
    source = load_source(config.dataset, config.val_split, config.data_dir)
    assert evaluate(model, source, (0, 3)).mean_iou[0] == result.best_mean_iou


def test_load_run_without_run(tmp_path):
    with pytest.raises(RunError, match="no run here"):
        load_run(tmp_path)


def test_load_run_without_validation(undisturbed, tmp_path):
    model_dir = shutil.copytree(undisturbed[1], tmp_path / "run")
    (model_dir / BEST).unlink()
    with pytest.raises(RunError, match="never validated"):
        load_run(model_dir)


def test_load_run_with_damaged_config(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match="config.json"):
        load_run(tmp_path)


def test_optimizer_settings(camvid):
    config = tiny_config(camvid, learning_rate=0.007, train_steps=100)
    model = build_model(config, 11)
    compile_model(model, config.replace(rates="none"))
    schedule = model.optimizer._learning_rate
    for step in (0, 1, 50, 100):
        expected = 0.007 * (1 - step / 100) ** 0.9
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-5)
    assert model.optimizer.momentum == 0.9


def test_weight_decay_loss(camvid):
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


def test_unreadable_image(camvid, undisturbed, tmp_path):
    data = shutil.copytree(camvid, tmp_path / "camvid")
    for path in (data / "train").iterdir():
        path.write_bytes(path.read_bytes()[:300])
    statistics = str(undisturbed[1] / STATISTICS_FILE)
    with pytest.raises(DataError, match=r"train_\d.png"):
        train(tiny_config(data, statistics=statistics), tmp_path / "run")


@pytest.fixture(scope="module")
def first_steps(camvid):
    """What the first step changes, by settings: without momentum yet, so -learning_rate *
    multiplier * gradient."""
    plain = {"weight_decay": 0.0, "head_multiplier": 1.0, "dropout": 0.0, "rates": "2"}
    images, targets = next(iter(training_dataset(tiny_config(camvid, **plain))))
    labels = [np.array([[0, 1, 1, 1]])]

    @functools.cache
    def first_step(**settings):
        config = tiny_config(camvid, **{**plain, **settings})
        statistics = AffinityStatistics.from_labels(labels, config.affinity_rates)
        keras.utils.set_random_seed(0)
        model = build_model(config, 11, statistics)
        trained = compile_model(model, config, statistics)
        before = {v.path: np.asarray(v) for v in model.trainable_variables}
        trained.train_on_batch(images, targets)
        after = {v.path: np.asarray(v) for v in model.trainable_variables}
        return before, {path: value - before[path] for path, value in after.items()}

    return first_step


@pytest.mark.slow
def test_head_multiplier(first_steps):
    _, plain = first_steps()
    _, found = first_steps(head_multiplier=10.0)
    moved = 0
    for path, change in plain.items():
        factor = 1.0 if path.startswith(("conv", "bn")) else 10.0
        np.testing.assert_allclose(found[path], factor * change, atol=2e-6)
        moved += np.abs(change).max() > 1e-5
    assert moved > 20


def test_bias_multiplier(first_steps):
    _, plain = first_steps()
    _, found = first_steps(bias_multiplier=2.0)
    biases = {"semantic_logits/bias", "affinity_logits/bias"}
    assert biases < set(plain)
    for path, change in plain.items():
        factor = 2.0 if path in biases else 1.0
        np.testing.assert_allclose(found[path], factor * change, atol=2e-6)
    assert all(np.abs(plain[path]).max() > 1e-4 for path in biases)


def test_weight_decay_step(first_steps):
    """Nothing but kernels of ordinary convolutions is pulled."""
    before, plain = first_steps()
    _, decayed = first_steps(weight_decay=0.5)
    for path, start in before.items():
        pull = 0.01 * 0.5 * start if path.endswith("kernel") else 0.0
        np.testing.assert_allclose(plain[path] - decayed[path], pull, atol=1e-6)


def test_bias_multiplier_of_backbone():
    config = tiny_config("unused", backbone="resnet50", bias_multiplier=2.0, head_multiplier=10.0)
    model = build_model(config, 11)
    multipliers = compile_model(model, config.replace(rates="none")).optimizer.multipliers
    assert multipliers["conv1_conv/bias"] == 2.0 and "conv1_conv/kernel" not in multipliers
    assert multipliers["semantic_logits/bias"] == 20.0
    assert multipliers["semantic_logits/kernel"] == multipliers["decoder_conv0_bn/beta"] == 10.0


def test_head_batch_norm_momentum(camvid, tmp_path, caplog, monkeypatch):
    def momenta(**settings):
        model = build_model(tiny_config(camvid, batch_norm_momentum=0.9, **settings), 11)
        return [
            {layer.momentum for layer in part.layers if "BatchNorm" in type(layer).__name__}
            for part in (model.get_layer("tiny"), model)
        ]

    assert momenta(head_batch_norm_momentum=0.9997) == [{0.9}, {0.9997}]
    assert momenta() == [{0.9}, {0.9}]
    stop_at_first_step(monkeypatch)
    with pytest.raises(FirstStepReachedError):
        train(tiny_config(camvid, head_batch_norm_momentum=0.9997), tmp_path)
    assert "after 4 steps the statistics of ASPP and decoder still hold 100 %" in caplog.text


@pytest.mark.parametrize("batch_norm, warns", [("frozen", True), ("sync", False)])
def test_frozen_statistics_of_an_untrained_backbone(
    camvid, tmp_path, caplog, monkeypatch, batch_norm, warns
):
    stop_at_first_step(monkeypatch)
    with pytest.raises(FirstStepReachedError):
        train(tiny_config(camvid, batch_norm=batch_norm), tmp_path)
    warned = "batch_norm=frozen keeps the backbone's statistics" in caplog.text
    assert warned == warns


@pytest.mark.parametrize("precision", [pytest.param("bfloat16", marks=pytest.mark.slow), "float16"])
def test_mixed_precision(camvid, tmp_path, precision):
    config = tiny_config(camvid, mixed_precision=precision, train_steps=2)
    assert train(config, tmp_path).step == 2
    _, model = load_run(tmp_path)
    assert model.get_layer("decoder_conv0").compute_dtype == precision
    for name in ("semantic_logits", "affinity_logits", "semantic", "affinity"):
        assert model.get_layer(name).compute_dtype == "float32"
    assert {str(variable.dtype) for variable in model.trainable_variables} == {"float32"}
    outputs = model(np.zeros((1, 40, 48, 3), np.uint8))
    assert {str(each.dtype) for each in outputs.values()} == {"<dtype: 'float32'>"}
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.slow
def test_resume_with_accumulation(camvid, tmp_path):
    config = tiny_config(camvid, accumulation=2, batch_size=4)
    train(config, tmp_path / "whole")
    train(config, tmp_path / "parts", stop_after=1)
    assert train(config, tmp_path / "parts").step == 4
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_accumulation_must_divide_batch(camvid):
    with pytest.raises(ConfigError, match="accumulation=3, batch_size=4"):
        tiny_config(camvid, accumulation=3, batch_size=4)


def test_fitted_model_shares_weights_and_loss(camvid, undisturbed):
    statistics = AffinityStatistics.load(undisturbed[1] / STATISTICS_FILE)
    config = tiny_config(camvid)
    model = build_model(config, 11, statistics)
    trained = compile_model(model, config, statistics)
    assert trained.optimizer is model.optimizer
    assert {id(v) for v in trained.variables} == {id(v) for v in model.variables}
    images, targets = next(iter(training_dataset(config)))
    np.testing.assert_allclose(
        trained.test_on_batch(images, targets, return_dict=True)["affinity_loss"],
        model.test_on_batch(images, targets, return_dict=True)["affinity_loss"],
        rtol=1e-5,
    )
