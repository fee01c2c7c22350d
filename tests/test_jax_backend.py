"""Tests of the JAX backend against TensorFlow, and of two of its processes against one.

The computations under both backends are functions of this file, see `jax_processes`.
"""

import os
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import compiled_fit, jax_processes, networks
from helpers.jax_processes import needs_jax
from helpers.tiny import tiny_config, write_camvid
from keras import ops

from dilated_affinity import (
    AffinityAccuracy,
    AffinityLoss,
    AffinityPropagation,
    AffinityStatistics,
    BoundaryIoU,
    MeanIoU,
    PixelAccuracy,
    SemanticLoss,
    affinity_targets,
    inference_model,
    propagate,
    symmetric_logits,
    training_dataset,
)
from dilated_affinity.errors import ConfigError, RunError
from dilated_affinity.run_dir.checkpoints import Checkpoints
from dilated_affinity.run_dir.layout import CHECKPOINTS
from dilated_affinity.run_dir.model import build_model
from dilated_affinity.runtime.distribution import (
    PROCESS_VARIABLES,
    broadcast,
    find_replicas,
    join_processes,
)
from dilated_affinity.training.compile import compile_model
from dilated_affinity.training.trainer import train

RATES = ((1, 1), (2, 3))
CLASSES = 4


def labels(batch=2, size=(18, 25)):
    """Label maps with areas of several pixels, some void, and a map of only void."""
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, CLASSES + 1, (batch, 5, 7))
    drawn = coarse.repeat(4, 1).repeat(4, 2)[:, : size[0], : size[1]].astype(np.uint8)
    drawn[drawn == CLASSES] = 255
    drawn[-1, 6:] = 255
    return drawn


def values_and_gradients(function, **arguments):
    """Returns a scalar function's value and its gradients with respect to its arguments."""
    tensors = [ops.convert_to_tensor(each, "float32") for each in arguments.values()]
    if keras.backend.backend() == "jax":
        import jax

        derive = jax.jit(jax.value_and_grad(function, tuple(range(len(tensors)))))
        value, gradients = derive(*tensors)
    else:
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            value = function(*tensors)
        gradients = tape.gradient(value, tensors)
    return {"value": value, **dict(zip(arguments, gradients, strict=True))}


def losses():
    rng = np.random.default_rng(4)
    truth = labels()
    statistics = AffinityStatistics.from_labels(truth, RATES)
    targets = affinity_targets(truth, RATES).numpy()
    results = {}

    def add(name, loss, truth, logits):
        for key, value in values_and_gradients(
            lambda given: loss(truth, given), logits=logits
        ).items():
            results[f"{name}/{key}"] = value

    add("semantic", SemanticLoss(), truth, rng.normal(size=(*truth.shape, CLASSES)))
    for weighting in ("none", "signal", "neighbor", "sqrt_neighbor"):
        logits = rng.normal(0, 3, targets.shape)
        add(weighting, AffinityLoss(statistics, weighting), targets, logits)
    for padding in ("same", "symmetric"):
        loss = AffinityLoss(statistics, logits_stride=4, padding=padding)
        add(f"stride 4, {padding}", loss, targets, rng.normal(0, 3, (2, 5, 7, 16)))
    # Under JAX three blocks of rows, the last of which is not full.
    tall = affinity_targets(np.tile(truth, (1, 8, 1)), RATES).numpy()
    loss = AffinityLoss(statistics, logits_stride=4)
    add("stride 4, tall", loss, tall, rng.normal(0, 3, (2, 36, 7, 16)))
    return results


def propagation():
    rng = np.random.default_rng(5)
    shape = (2, 9, 11)
    probabilities = rng.dirichlet(np.ones(CLASSES), shape).astype(np.float32)
    affinities = rng.uniform(0, 1, (*shape, 16)).astype(np.float32)
    weights = ops.convert_to_tensor(rng.normal(size=(*shape, CLASSES)), "float32")
    valid = np.ones(shape, bool)
    valid[0, 5:] = False
    logits = rng.normal(0, 2, (*shape, 16)).astype(np.float32)
    both = values_and_gradients(
        lambda logits: ops.sum(weights[..., :1] * symmetric_logits(logits, RATES, valid)),
        logits=logits,
    )
    return {
        **{f"symmetric {name}": value for name, value in both.items()},
        "calibrated": AffinityPropagation(RATES, 3, 2.0, 20.0, threshold=0.7, symmetric=True)(
            [probabilities, logits], valid
        ),
        "refined": propagate(probabilities, affinities, RATES, 10, valid_mask=valid),
        **values_and_gradients(
            lambda *given: ops.sum(weights * propagate(*given, RATES, 3, valid_mask=valid)),
            probabilities=probabilities,
            affinities=affinities,
        ),
    }


def metrics():
    rng = np.random.default_rng(6)
    truth = labels()
    scores = rng.normal(size=(*truth.shape, CLASSES)).astype(np.float32)
    results = {}
    for metric in (MeanIoU(CLASSES), PixelAccuracy(), BoundaryIoU(CLASSES)):
        for _ in range(2):
            metric.update_state(truth, scores)
        results[metric.name] = metric.result()
    targets = affinity_targets(truth, RATES).numpy()
    for stride, size in ((1, truth.shape[1:]), (4, (5, 7))):
        metric = AffinityAccuracy(RATES, logits_stride=stride)
        metric.update_state(targets, rng.normal(size=(2, *size, 16)).astype(np.float32))
        results[f"affinity accuracy, stride {stride}"] = metric.by_rate_and_count()
    return results


def inference():
    model = build_model(tiny_config("unused"), CLASSES)
    model.set_weights(networks.random_weights(model))
    images = np.random.default_rng(7).integers(0, 256, (2, 34, 41, 3)).astype(np.uint8)
    return inference_model(model, iterations=3).predict_on_batch(images)


def step():
    """A training step of all processes, whose images have very different numbers of pixels.

    It is followed by a short `fit` on the same batch.
    """
    keras.utils.clear_session()  # names do not depend on models built before
    config = tiny_config(
        "unused", batch_size=4, crop_size=49, rates="2", dropout=0.0, learning_rate=0.02
    )
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 11, (4, 7, 7)).repeat(7, 1).repeat(7, 2).astype(np.uint8)
    truth[0, 10:] = 255
    truth[1] = 255
    images = rng.uniform(0, 255, (4, 49, 49, 3)).astype(np.float32)
    statistics = AffinityStatistics.from_labels(truth[2:], config.affinity_rates)
    targets = {
        "semantic": truth,
        "affinity": affinity_targets(truth, config.affinity_rates).numpy(),
    }
    replicas = find_replicas()
    share = slice(*(len(images) // replicas.processes * (replicas.process + end) for end in (0, 1)))
    batch = keras.tree.map_structure(lambda each: each[share], (images, targets))
    with replicas.building():
        model = build_model(config, 11, statistics)
        model.set_weights(networks.random_weights(model))
        trained = compile_model(model, config, statistics)
    with replicas.fitting():
        batches = tf.data.Dataset.from_tensors(batch)
        history = trained.fit(batches, shuffle=False, verbose=0).history
        # After one step, velocities are gradients times the learning rate.
        states = {
            variable.path: np.array(variable)
            for variable in (*model.variables, *model.optimizer.variables)
        }
        fitted = trained.fit(batches, epochs=3, shuffle=False, verbose=0).history
        before = [np.array(variable) for variable in model.variables]
        broken = tf.data.Dataset.from_tensors((batch[0] * np.nan, batch[1]))
        loss = []
        note = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda _, logs: loss.append(logs["loss"])
        )
        trained.fit(broken, callbacks=[note], shuffle=False, verbose=0)
    same = [np.array_equal(v, np.array(w)) for v, w in zip(before, model.variables, strict=True)]
    taken_back = [all(same), np.isnan(loss).all(), int(model.optimizer.iterations) == 5]
    first = {f"first/{name}": values[0] for name, values in history.items()}
    return {**first, **states, "fitted": fitted["loss"], "taken_back": taken_back}


def fit_of_all():
    """All losses, metrics and layers in a compiled `fit`."""
    logs, weights = compiled_fit.fit()
    return {**logs, **{f"weight {index}": each for index, each in enumerate(weights)}}


def backbone(name):
    images = networks.images(65, 81)
    model = networks.dilated(16, name)
    model.set_weights(networks.weights_of(name))
    return {"features": model.predict_on_batch(images)}


def core():
    """All that is compared between the backends, without the real backbones."""
    parts = {
        "losses": losses(),
        "propagation": propagation(),
        "metrics": metrics(),
        "inference": inference(),
        "step": step(),
        "fit of all": fit_of_all(),
    }
    return {f"{part}/{name}": v for part, values in parts.items() for name, v in values.items()}


def fit(data_dir, *model_dirs):
    """A short run, stopped and resumed; each process has its own `model_dir`."""
    config = tiny_config(data_dir)
    model_dir = Path(model_dirs[find_replicas().process])
    stopped = train(config, model_dir, stop_after=1).step
    result = train(config, model_dir)
    try:
        train(config.replace(beta=1.0), model_dir)
    except RunError as error:
        refused = "beta=6.0 (now 1.0)" in str(error)
    return {
        "steps": [stopped, result.step],
        "mean_iou": result.best_mean_iou,
        "refused": refused,
    }


def failures(data_dir, model_dir):
    """The errors of every process for a fault in one of them."""
    process = find_replicas().process

    def fail():
        raise RunError("disk full")

    messages = []
    for attempt in (
        lambda: broadcast(fail),
        lambda: broadcast(fail, 1),
        lambda: train(tiny_config(data_dir, beta=1.0 + process), model_dir),
    ):
        try:
            attempt()
        except (ConfigError, RunError) as error:
            messages.append(str(error))
    return {"messages": messages}


def readme_lines(data_dir):
    """The lines of README's notebook, compiled, with two steps."""
    import test_readme

    os.chdir(data_dir)
    names = test_readme.run_notebook_lines(train_steps=2, jit_compile=True)
    return {"refined": names["refined"], "steps": names["model"].optimizer.iterations}


def run_under_jax(function, folder, *arguments, processes=1):
    return jax_processes.run_under_jax(__file__, function, folder, *arguments, processes=processes)


def assert_close(results, expected, tolerance):
    """Compares with a tolerance relative to the largest value of each array."""
    assert set(results) == set(expected)
    for name, value in expected.items():
        value = np.asarray(value)
        if not np.issubdtype(value.dtype, np.floating):
            np.testing.assert_array_equal(results[name], value, err_msg=name)
            continue
        scale = max(np.nanmax(np.abs(value)), 1e-3)
        np.testing.assert_allclose(
            results[name], value, rtol=0, atol=tolerance * scale, err_msg=name
        )


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    return write_camvid(tmp_path_factory.mktemp("camvid"))


@pytest.fixture(scope="module")
def under_jax(tmp_path_factory):
    return run_under_jax("core", tmp_path_factory.mktemp("core"))[0]


@needs_jax
def test_outputs_and_gradients_equal_tensorflow(under_jax):
    expected = core()
    assert len(expected) > 100
    assert_close(under_jax, expected, 1e-4)


@needs_jax
def test_fit_lowers_the_loss(under_jax):
    losses = under_jax["step/fitted"]
    assert len(losses) == 3 and losses[-1] < losses[0] < under_jax["step/first/loss"]


@needs_jax
@pytest.mark.slow
@pytest.mark.parametrize("name", [networks.SMALL, "resnet50"])
def test_backbone_features_equal_tensorflow(tmp_path, name):
    assert_close(run_under_jax("backbone", tmp_path, name)[0], backbone(name), 1e-4)


@needs_jax
@pytest.mark.slow
def test_readme_lines(tmp_path):
    (results,) = run_under_jax("readme_lines", tmp_path, tmp_path)
    assert results["steps"] == 2
    assert results["refined"].dtype == np.uint8 and results["refined"].max() < 7


@pytest.fixture(scope="module")
def one_process(camvid, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    return run_under_jax("fit", folder, camvid, folder / "run")[0], folder / "run"


@pytest.fixture(scope="module")
def two_processes(camvid, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    runs = folder / "run", folder / "other"
    return run_under_jax("fit", folder, camvid, *runs, processes=2), *runs


def latest(model_dir):
    return Checkpoints(model_dir / CHECKPOINTS).latest()


@needs_jax
@pytest.mark.slow
def test_resumed_run_is_readable_by_tensorflow(one_process):
    results, model_dir = one_process
    assert results["steps"].tolist() == [1, 4]
    assert 0 <= results["mean_iou"] <= 1 and results["refused"]
    header, *rows = (model_dir / "log.csv").read_text().splitlines()
    losses = [float(row.split(",")[header.split(",").index("loss")]) for row in rows]
    assert len(losses) == 2 and np.isfinite(losses).all()
    model = keras.models.load_model(latest(model_dir), compile=False)
    assert np.isfinite(model(np.zeros((1, 33, 33, 3)))["semantic"]).all()


@needs_jax
def test_non_finite_step(under_jax):
    assert under_jax["step/taken_back"].all()


@needs_jax
def test_step_of_two_processes_equals_one(under_jax, tmp_path):
    parts = (name.partition("/") for name in under_jax)
    expected = {name: under_jax[f"step/{name}"] for part, _, name in parts if part == "step"}
    assert len(expected) > 80
    for results in run_under_jax("step", tmp_path, processes=2):
        assert set(results) == set(expected)
        for name, value in expected.items():
            scale = max(np.abs(value).max(), 0.1)
            np.testing.assert_allclose(
                results[name], value, rtol=0, atol=1e-5 * scale, err_msg=name
            )


@needs_jax
@pytest.mark.slow
def test_run_of_two_processes_equals_one(one_process, two_processes):
    expected, single = one_process
    results, model_dir, other = two_processes
    for each in results:
        assert each["steps"].tolist() == [1, 4] and each["refused"]
        assert each["mean_iou"] == pytest.approx(expected["mean_iou"], abs=1e-3)
    assert not other.exists()
    names = {path.relative_to(single) for path in single.rglob("*")}
    assert {path.relative_to(model_dir) for path in model_dir.rglob("*")} == names
    final = [keras.models.load_model(latest(each), compile=False) for each in (model_dir, single)]
    for two, one in zip(*(model.weights for model in final), strict=True):
        scale = max(np.abs(one).max(), 0.1)
        np.testing.assert_allclose(two, one, rtol=0, atol=1e-4 * scale, err_msg=one.path)


@needs_jax
@pytest.mark.slow
def test_errors_of_one_process_are_raised_on_all(camvid, tmp_path):
    for each in run_under_jax("failures", tmp_path, camvid, tmp_path / "run", processes=2):
        *failed, settings = each["messages"]
        assert failed == ["disk full", "disk full"]
        assert settings.endswith("Received: beta=1.0 (in process 1 2.0)")


@pytest.mark.parametrize("accumulation", [1, 2])
def test_parts_of_a_batch(camvid, accumulation):
    config = tiny_config(camvid, batch_size=8, accumulation=accumulation)
    whole = list(training_dataset(config, first_step=1, steps=2))
    parts = [training_dataset(config, first_step=1, steps=2, part=k, parts=2) for k in range(2)]
    assert [len(part) for part in parts] == [2 * accumulation] * 2
    for (images, targets), *shares in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(images, np.concatenate([each[0] for each in shares]))
        for name, values in targets.items():
            together = np.concatenate([each[1][name] for each in shares])
            np.testing.assert_array_equal(values, together)


def test_indivisible_batch_is_refused(camvid):
    with pytest.raises(ConfigError, match="Received: batch_size=8, accumulation=2, parts=3"):
        training_dataset(tiny_config(camvid, batch_size=8, accumulation=2), parts=3)


@pytest.mark.parametrize("name", ["tiny", networks.SMALL])
def test_order_of_variables(name):
    statistics = AffinityStatistics.from_labels(labels(), ((2, 2),))
    config = tiny_config("unused", backbone=name, rates="2")
    model = build_model(config, CLASSES, statistics)
    trained = compile_model(model, config, statistics)
    assert [v.path for v in trained.trainable_variables] == [
        v.path for v in model.trainable_variables
    ]


def test_processes_need_jax(monkeypatch):
    monkeypatch.setenv("KERAS_DISTRIBUTION_NUM_PROCESSES", "2")
    with pytest.raises(ConfigError, match="needs KERAS_BACKEND=jax"):
        join_processes()


def test_join_processes_without_variables(monkeypatch):
    for name in PROCESS_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    join_processes()
    assert find_replicas().processes == 1 and find_replicas().is_first
    assert broadcast(lambda: 5, process=3) == 5


if __name__ == "__main__":
    jax_processes.main(globals(), *sys.argv[1:])
