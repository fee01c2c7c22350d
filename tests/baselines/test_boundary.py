import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

from dilated_affinity.baselines.boundary import boundary_distances, boundary_weights
from dilated_affinity.errors import ConfigError

VOID = 255


@pytest.fixture
def labels():
    rng = np.random.default_rng(5)
    coarse = rng.integers(0, 4, (2, 5, 6))
    labels = np.repeat(np.repeat(coarse, 7, 1), 9, 2).astype(np.uint8)
    labels[:, 11:14] = VOID
    labels[rng.random(labels.shape) < 0.05] = VOID
    return labels


def scipy_distances(label):
    """Distances to the nearest pixel of another class by SciPy's exact transform."""
    distances = np.zeros(label.shape)
    for k in set(np.unique(label)) - {VOID}:
        other = (label != k) & (label != VOID)
        transform = ndimage.distance_transform_edt(~other)
        distances[label == k] = transform[label == k]
    return distances


def test_distances_equal_scipy_and_loops(labels):
    for label in labels:
        np.testing.assert_allclose(boundary_distances(label), scipy_distances(label), rtol=1e-5)
    label = labels[0, :10, :12]
    for y, x in np.ndindex(label.shape):
        if label[y, x] == VOID:
            continue
        others = np.argwhere((label != label[y, x]) & (label != VOID))
        nearest = np.hypot(*(others - (y, x)).T).min()
        np.testing.assert_allclose(boundary_distances(label)[y, x], nearest, rtol=1e-5)


def test_weights_in_tf_data(labels):
    batches = tf.data.Dataset.from_tensors(labels).map(
        lambda each: boundary_weights(each, 7.0, 3.0)
    )
    assert batches.element_spec == tf.TensorSpec(labels.shape, tf.float32)
    (weights,) = batches.as_numpy_iterator()
    for weight, label in zip(weights, labels, strict=True):
        expected = 1 + 7.0 * np.exp(-(scipy_distances(label) ** 2) / (2 * 3.0**2))
        np.testing.assert_allclose(weight, np.where(label == VOID, 0, expected), rtol=1e-5)


def test_normalized_weights(labels):
    labels = np.concatenate([labels, np.full_like(labels[:1], VOID)])
    found = boundary_weights(labels, normalize=True).numpy()
    for weights, plain, label in zip(found, boundary_weights(labels).numpy(), labels, strict=True):
        valid = label != VOID
        if not valid.any():
            assert (weights == 0).all()
            continue
        np.testing.assert_allclose(weights[valid].mean(), 1.0, rtol=1e-5)
        np.testing.assert_allclose(weights, plain / plain[valid].mean(), rtol=1e-5)


def test_distances_across_void_contour():
    label = np.array([[1, 1, VOID, VOID, 2]])
    assert boundary_distances(label).tolist() == [[4, 3, 0, 0, 3]]


@pytest.mark.parametrize("value, weight", [(3, 1.0), (VOID, 0.0)])
def test_images_without_a_boundary(value, weight):
    labels = np.full((1, 4, 5), value, np.uint8)
    assert (boundary_weights(labels).numpy() == weight).all()
    labels[0, 0, 0] = VOID
    assert (boundary_weights(labels).numpy()[0, 1:] == weight).all()


def test_settings_out_of_range_are_refused():
    for settings in ({"amplitude": -1.0}, {"sigma": 0.0}):
        with pytest.raises(ConfigError, match="Received: amplitude="):
            boundary_weights(np.zeros((1, 2, 2), np.uint8), **settings)
