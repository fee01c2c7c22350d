"""Tests of the JAX backend against TensorFlow.

The computations under both backends are functions of this file, see `jax_processes`.
"""

import os
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import compiled_fit, jax_processes, networks
from helpers.jax_processes import needs_jax
from helpers.tiny import tiny_config
from helpers.training_step import step
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
)
from dilated_affinity.run_dir.model import build_model
from dilated_affinity.training.compile import compile_model

RATES = ((1, 1), (2, 3))
CLASSES = 4
BACKBONES = (networks.SMALL, "resnet50")


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


def fit_of_all():
    """All losses, metrics and layers in a compiled `fit`."""
    logs, weights = compiled_fit.fit()
    return {**logs, **{f"weight {index}": each for index, each in enumerate(weights)}}


def features(name):
    model = networks.dilated(16, name)
    model.set_weights(networks.weights_of(name))
    return {name: model.predict_on_batch(networks.images(65, 81))}


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


def real_backbones(data_dir):
    """Features of backbones, and the lines of README's notebook, compiled, with two steps."""
    import test_readme

    os.chdir(data_dir)
    found = features(BACKBONES[0]) | features(BACKBONES[1])
    names = test_readme.run_notebook_lines(train_steps=2, jit_compile=True)
    return {**found, "refined": names["refined"], "steps": names["model"].optimizer.iterations}


def run_under_jax(function, folder, *arguments):
    return jax_processes.run_under_jax(__file__, function, folder, *arguments)


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


@pytest.fixture(scope="module")
def with_real_backbones(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbones")
    return run_under_jax("real_backbones", folder, folder)[0]


@needs_jax
@pytest.mark.slow
def test_backbone_features_equal_tensorflow(with_real_backbones):
    for name in BACKBONES:
        assert_close({name: with_real_backbones[name]}, features(name), 1e-4)


@needs_jax
@pytest.mark.slow
def test_readme_lines(with_real_backbones):
    refined = with_real_backbones["refined"]
    assert with_real_backbones["steps"] == 2
    assert refined.dtype == np.uint8 and refined.max() < 7


@needs_jax
def test_non_finite_step(under_jax):
    assert under_jax["step/taken_back"].all()


@pytest.mark.parametrize("name", ["tiny", networks.SMALL])
def test_order_of_variables(name):
    statistics = AffinityStatistics.from_labels(labels(), ((2, 2),))
    config = tiny_config("unused", backbone=name, rates="2")
    model = build_model(config, CLASSES, statistics)
    trained = compile_model(model, config, statistics)
    assert [v.path for v in trained.trainable_variables] == [
        v.path for v in model.trainable_variables
    ]


if __name__ == "__main__":
    jax_processes.main(globals(), *sys.argv[1:])
