"""Tests of training on several replicas, in a process with four CPU devices."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf

from dilated_affinity.config import Config
from dilated_affinity.errors import ConfigError, RunError
from dilated_affinity.runtime.distribution import (
    Replicas,
    _error_from_json,
    _error_to_json,
    _mirrored_strategy,
    check_batch_split,
    replica_strategy,
)

SCRIPT = """
import json, sys
import numpy as np, tensorflow as tf, keras
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4)
tf.config.experimental.enable_op_determinism()
from helpers.tiny import tiny_config
from dilated_affinity import AffinityStatistics, affinity_targets
from dilated_affinity.runtime.distribution import replica_strategy
from dilated_affinity.run_dir.model import build_model
from dilated_affinity.training.compile import compile_model
from dilated_affinity.training.metric_state import assign_metric_values, metric_values

config = tiny_config(
    "unused", rates="2", batch_size=4, crop_size=49, dropout=0.0, learning_rate=0.02)
rng = np.random.default_rng(0)
labels = rng.integers(0, 11, (4, 7, 7)).repeat(7, 1).repeat(7, 2).astype(np.uint8)
labels[0, 10:] = 255  # the first replica has far fewer pixels than the third
labels[1] = 255  # the second has none
images = rng.uniform(0, 255, (4, 49, 49, 3)).astype(np.float32)
statistics = AffinityStatistics.from_labels(labels[2:], config.affinity_rates)
targets = {"semantic": labels, "affinity": affinity_targets(labels, config.affinity_rates).numpy()}

def run(replicas):
    keras.utils.set_random_seed(0)
    strategy = replica_strategy(replicas)
    assert strategy.num_replicas_in_sync == replicas
    with strategy.scope():
        model = build_model(config, 11, statistics)
        model.get_layer("affinity_logits").kernel.assign(
            np.random.default_rng(1).normal(size=(1, 1, 16, 8)))
        for variable in model.trainable_variables:
            if variable.path.endswith("beta"):  # initially 0, so changes would be inaccurate
                variable.assign(np.random.default_rng(2).normal(size=variable.shape))
        trained = compile_model(model, config, statistics)
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    synchronized.append([norm.synchronized for norm in norms])
    batches = tf.data.Dataset.from_tensors((images, targets)).unbatch().batch(4)
    history = trained.fit(batches, verbose=0).history
    after = {v.path: np.asarray(v) for v in model.variables}
    kept = metric_values(trained)
    for metric in trained.metrics:
        metric.reset_state()
    assign_metric_values(trained, kept)
    metrics.append([[each["replicas"] for each in kept], metric_values(trained) == kept])
    broken = images.copy()
    broken[0] = np.nan  # the second replica's part is valid
    unusable = tf.data.Dataset.from_tensors((broken, targets)).unbatch().batch(4)
    loss = []
    note = lambda _, logs: loss.append(logs["loss"])
    notes = [keras.callbacks.LambdaCallback(on_train_batch_end=note)]
    trained.fit(unusable, callbacks=notes, verbose=0)
    same = all(np.array_equal(after[v.path], v) for v in model.variables)
    steps.append([int(np.asarray(model.optimizer.iterations)), np.isnan(loss).tolist(), same])
    return history, after

steps, synchronized, metrics = [], [], []
one, four = run(1), run(4)
print(json.dumps({
    "loss": [one[0], four[0]],
    "worst": max(
        float(np.abs(one[1][k] - four[1][k]).max() / max(np.abs(one[1][k]).max(), 0.1))
        for k in one[1]),
    "variables": len(one[1]),
    "steps": steps,
    "metrics": metrics,
    "synchronized": synchronized,
    "moved": sum(int(np.any(v)) for v in one[1].values()),
}))
"""


@pytest.fixture(scope="module")
def steps():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_losses_and_metrics_of_global_batch(steps):
    one, four = steps["loss"]
    assert set(one) == set(four)
    for name, values in one.items():
        assert four[name] == pytest.approx(values, rel=1e-5), name
    assert one["semantic_loss"][0] > 0.1 and one["affinity_loss"][0] > 0.01


@pytest.mark.slow
def test_weights_and_moving_statistics_equal_one_device(steps):
    assert steps["variables"] > 50
    assert steps["moved"] > 50
    # Variances over several replicas are less accurate in Keras.
    assert steps["worst"] < 5e-5


@pytest.mark.slow
def test_synchronized_batch_norm(steps):
    one, four = steps["synchronized"]
    assert len(one) > 5 and not any(one) and all(four)


@pytest.mark.slow
def test_non_finite_step_on_one_replica(steps):
    assert steps["steps"] == [[2, [True], True], [2, [True], True]]


@pytest.mark.slow
def test_each_replica_is_given_its_part_of_the_metrics(steps):
    """Not their sum to one of them, which would be rounded in another order."""
    for replicas, (parts, same) in zip((1, 4), steps["metrics"], strict=True):
        assert same and {len(each) for each in parts} == {replicas}
        assert any(each.count(each[0]) < replicas for each in parts) == (replicas > 1)


RESUMED = """
import sys
from pathlib import Path
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4)
from helpers.tiny import tiny_config, write_camvid
from dilated_affinity.training.trainer import train
from dilated_affinity.run_dir.layout import LOG_FILE

folder = Path(sys.argv[1])
settings = {"num_replicas": 4, "batch_size": 8, "train_steps": 6, "validate_every": 6}
config = tiny_config(write_camvid(folder / "camvid"), **settings)
train(config, folder / "whole")
for steps in (2, 3, 1):
    train(config, folder / "parts", steps)
assert (folder / "whole" / LOG_FILE).read_text() == (folder / "parts" / LOG_FILE).read_text()
"""


@pytest.mark.slow  # what resuming does to metrics of replicas is tested every day
def test_resumed_run_on_four_replicas(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", RESUMED, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_too_many_replicas_are_refused():
    with pytest.raises(ConfigError, match="Received: num_replicas=64"):
        replica_strategy(64)


@pytest.mark.parametrize(
    "settings, match",
    [
        ({"accumulation": 2}, "accumulation over several devices needs KERAS_BACKEND=jax"),
        ({"batch_norm": "local", "batch_size": 4}, "at least 2 images on each.*4 replicas"),
        ({"batch_size": 6}, "must be a multiple of the 4 replicas"),
    ],
)
def test_indivisible_batches_are_refused(settings, match):
    with pytest.raises(ConfigError, match=match):
        check_batch_split(Config(**{"batch_size": 16, **settings}), Replicas(4))


def test_strategy_is_cached():
    first, second = (_mirrored_strategy(("CPU:0",)) for _ in range(2))
    assert first is second and isinstance(first, tf.distribute.MirroredStrategy)


@pytest.mark.parametrize("error", [RunError("full"), ConfigError("a=1"), OSError(28, "No space")])
def test_errors_as_json(error):
    received = _error_from_json(json.loads(json.dumps(_error_to_json(error))))
    assert type(received) is type(error) and str(received) == str(error)
