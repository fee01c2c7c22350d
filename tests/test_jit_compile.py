"""Tests of losses, metrics and layers in a `fit` compiled by XLA, as Keras does on a GPU.

`tests/test_jax_backend.py` does the same under JAX.
"""

import numpy as np
import pytest
import tensorflow as tf
from helpers import compiled_fit, reference

from dilated_affinity import AffinityAccuracy, BoundaryIoU, MeanIoU

CLASSES = 4


@pytest.mark.slow
def test_compiled_fit_equals_loops():
    logs, weights = compiled_fit.fit()
    for name, value in compiled_fit.expected_logs().items():
        np.testing.assert_allclose(logs[name], value, rtol=1e-4, err_msg=name)
    assert np.abs(weights[0] - 1).max() > 1e-3, "the weights have no gradient"


@pytest.mark.parametrize("jit_compile", [True, False])
def test_metrics_of_unknown_size(jit_compile):
    metrics = MeanIoU(CLASSES), BoundaryIoU(CLASSES, dilation_ratio=0.1)

    @tf.function(jit_compile=jit_compile, reduce_retracing=True)
    def update(labels, predictions):
        for metric in metrics:
            metric.update_state(labels, predictions)

    # Eagerly, where all sizes are known; tests/evaluation/test_metrics.py compares that to loops.
    expected = MeanIoU(CLASSES), BoundaryIoU(CLASSES, dilation_ratio=0.1)
    for seed, size in enumerate(((18, 25), (25, 18), (31, 17))):
        labels = reference.random_labels(seed, (1, *size), CLASSES)
        predictions = reference.random_labels(seed + 9, (1, *size), CLASSES, void_share=0)
        update(tf.constant(labels), tf.constant(predictions))
        for metric in expected:
            metric.update_state(labels, predictions)
    assert update.experimental_get_tracing_count() == 2, "no size was unknown"
    np.testing.assert_array_equal(metrics[0].confusion, expected[0].confusion)
    np.testing.assert_array_equal(metrics[1].regions, expected[1].regions)


@pytest.mark.parametrize("jit_compile", [True, False])
def test_affinity_accuracy_of_unknown_size_on_a_grid(jit_compile):
    metric, expected = (AffinityAccuracy(((1, 1),), logits_stride=4) for _ in range(2))
    signature = [tf.TensorSpec((None, None, None, 8), dtype) for dtype in ("uint8", "float32")]
    update = tf.function(metric.update_state, signature, jit_compile=jit_compile)
    for size in ((18, 25), (1, 2), (9, 17)):
        labels = reference.random_labels(1, (1, *size), CLASSES)
        targets = tf.constant(reference.batch_targets(labels, ((1, 1),)))
        sides = [-(-side // 4) for side in size]
        logits = np.random.default_rng(2).normal(size=(1, *sides, 8)).astype(np.float32)
        update(targets, tf.constant(logits))
        expected.update_state(targets, logits)
    np.testing.assert_array_equal(metric.pairs, expected.pairs)
    assert np.sum(metric.pairs) > 100


@pytest.mark.parametrize("metric", [MeanIoU(CLASSES), BoundaryIoU(CLASSES)])
def test_metrics_are_compiled_by_xla(metric):
    # Without XLA, TensorFlow's deterministic operations do not support this on GPUs.
    update = tf.function(lambda labels: metric.update_state(labels, labels))
    graph = update.get_concrete_function(tf.TensorSpec((1, 4, 4), tf.int32)).graph
    kinds = {each.type for each in graph.get_operations()}
    assert not [kind for kind in kinds if "Bincount" in kind or "Segment" in kind]
    calls = [each for each in graph.get_operations() if each.type.endswith("PartitionedCall")]
    assert calls and all(each.get_attr("_XlaMustCompile") for each in calls)
