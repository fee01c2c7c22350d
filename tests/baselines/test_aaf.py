import math

import keras
import numpy as np
import pytest
from keras import ops

from dilated_affinity.baselines.aaf import AdaptiveAffinityFieldLoss, AdaptiveSizeWeights
from dilated_affinity.errors import ConfigError

VOID = 255


def loop(labels, logits, shares, margin, sizes=(1, 2, 3)):
    """The AAF loss as loops over images, pixels, neighbours and classes, in float64."""
    batch, height, width, num_classes = logits.shape
    exponentials = np.exp(np.float64(logits))
    probabilities = exponentials / exponentials.sum(-1, keepdims=True)
    total = 0.0
    for index, size in enumerate(sizes):
        losses = {"edge": [], "not_edge": []}
        for b in range(batch):
            for y in range(height):
                for x in range(width):
                    for v in (y - size, y, y + size):
                        for u in (x - size, x, x + size):
                            if (v, u) == (y, x) or not (0 <= v < height and 0 <= u < width):
                                continue
                            one, other = labels[b, y, x], labels[b, v, u]
                            if VOID in (one, other):
                                continue
                            for c in range(num_classes):
                                kind = "edge" if (one == c) != (other == c) else "not_edge"
                                value = divergence(
                                    probabilities[b, v, u, c], probabilities[b, y, x, c]
                                )
                                if kind == "edge":
                                    value = max(0.0, margin - value)
                                losses[kind].append(shares[kind][one, index] * value)
        total += sum(sum(each) / len(each) for each in losses.values() if each)
    return total


def divergence(q, p):
    q, p, not_q, not_p = (min(max(each, 1e-4), 1.0) for each in (q, p, 1 - q, 1 - p))
    return q * math.log(q / p) + not_q * math.log(not_q / not_p)


def softmax(weights):
    exponentials = np.exp(np.float64(weights))
    return exponentials / exponentials.sum(-1, keepdims=True)


@pytest.fixture
def example():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, (2, 6, 7)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.2] = VOID
    labels[1, :, :4] = 2
    # Includes probabilities that are clipped on both sides.
    return labels, rng.normal(0, 6, (2, 6, 7, 3)).astype(np.float32)


def test_aaf_loss_equals_loops(example):
    labels, logits = example
    layer = AdaptiveSizeWeights(3)
    rng = np.random.default_rng(4)
    for weights in (layer.edge, layer.not_edge):
        weights.assign(rng.normal(0, 1, weights.shape))
    shares = {"edge": softmax(layer.edge), "not_edge": softmax(layer.not_edge)}
    loss = AdaptiveAffinityFieldLoss(layer, num_steps=10, margin=2.5, stride=1)
    expected = loop(labels, logits, shares, margin=2.5)
    np.testing.assert_allclose(loss(labels, logits), expected, rtol=1e-4)
    each = AdaptiveAffinityFieldLoss(layer, 10, margin=2.5, stride=1, reduction="none")
    assert each(labels, logits).shape == (2,)
    np.testing.assert_allclose(np.mean(each(labels, logits)), expected, rtol=1e-4)


def test_aaf_loss_with_stride(example):
    labels, logits = example
    layer = AdaptiveSizeWeights(3)
    wide = np.repeat(np.repeat(labels, 4, 1), 4, 2), np.repeat(np.repeat(logits, 4, 1), 4, 2)
    full = AdaptiveAffinityFieldLoss(layer, 10, stride=1)(labels, logits)
    np.testing.assert_allclose(AdaptiveAffinityFieldLoss(layer, 10, stride=4)(*wide), full)


@pytest.mark.parametrize(
    "labels",
    [
        np.full((2, 5, 5), VOID),
        np.zeros((2, 5, 5)),
        np.arange(2)[:, None, None] + np.zeros((2, 5, 5)),
        np.ones((2, 2, 2)),
    ],
    ids=["void", "single class", "a class for each image", "smaller than the sizes"],
)
def test_aaf_loss_without_edges(labels):
    tf = pytest.importorskip("tensorflow")
    layer = AdaptiveSizeWeights(3)
    loss = AdaptiveAffinityFieldLoss(layer, 10, stride=1)
    logits = tf.constant(np.random.default_rng(0).normal(0, 50, (*labels.shape, 3)), "float32")
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = loss(labels, logits)
    gradients = tape.gradient(value, [logits, layer.edge.value, layer.not_edge.value])
    assert np.isfinite(value) and (value > 0 or (labels == VOID).all())
    assert all(np.isfinite(ops.convert_to_numpy(each)).all() for each in gradients)
    if (labels == VOID).all():
        assert float(value) == 0.0


def test_gradient_of_size_weights(example):
    labels, logits = example
    images = keras.Input((6, 7, 3))
    features = keras.layers.Conv2D(3, 1)(images)
    layer = AdaptiveSizeWeights(3)
    model = keras.Model(images, layer(features))
    loss = AdaptiveAffinityFieldLoss(layer, num_steps=10**9, stride=1)
    model.compile(keras.optimizers.SGD(0.05), loss)
    kernel, edge = model.layers[1].kernel, layer.edge

    def value(kernel_now, sizes_now):
        kernel.assign(kernel_now)
        edge.assign(sizes_now)
        return float(loss(labels, model(logits)))

    start = np.array(kernel), np.array(edge)
    before = value(*start)
    model.fit(logits, labels, epochs=1, batch_size=2, verbose=0)
    moved = np.array(kernel), np.array(edge)
    assert np.abs(moved[1]).max() > 0
    assert value(moved[0], start[1]) < before < value(start[0], moved[1])


def test_decay_of_aaf_loss(example):
    labels, logits = example
    layer = AdaptiveSizeWeights(3)
    loss = AdaptiveAffinityFieldLoss(layer, num_steps=4, stride=1)
    values = []
    for _ in range(5):
        layer(logits, training=True)
        layer(logits, training=False)  # a validation does not count
        values.append(float(loss(labels, logits)))
    np.testing.assert_allclose(np.array(values) / values[0], 10.0 ** (-np.arange(5) / 4), rtol=1e-5)


def test_keras_serialisation(example):
    labels, logits = example
    loss = AdaptiveAffinityFieldLoss(AdaptiveSizeWeights(3), 7, margin=2.0, stride=2, name="mine")
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert again.get_config() == loss.get_config()
    np.testing.assert_allclose(again(labels, logits), loss(labels, logits))


def test_save_compiled_model(example, tmp_path):
    labels, logits = example
    images = keras.Input((6, 7, 3))
    layer = AdaptiveSizeWeights(3)
    model = keras.Model(images, layer(images))
    model.compile("sgd", AdaptiveAffinityFieldLoss(layer, 10, stride=1))
    model.fit(logits, labels, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras").layers[-1]
    assert np.abs(np.array(loaded.edge)).max() > 0
    for name in ("edge", "not_edge", "passes"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(layer, name))


def test_settings_out_of_range_are_refused():
    for settings in (
        {"num_steps": 0},
        {"num_steps": 3, "stride": 0},
        {"num_steps": 3, "margin": 0},
    ):
        with pytest.raises(ConfigError, match="Received: num_steps="):
            AdaptiveAffinityFieldLoss(AdaptiveSizeWeights(3), **settings)
    for settings in (
        {"num_classes": 1},
        {"num_classes": 3, "sizes": ()},
        {"num_classes": 3, "sizes": (0,)},
    ):
        with pytest.raises(ConfigError, match="Received: num_classes="):
            AdaptiveSizeWeights(**settings)
