"""Tests of affinity targets and neighbour counts against loops over pixels."""

import numpy as np
import pytest
import tensorflow as tf
from helpers import reference

from dilated_affinity.affinity.targets import affinity_targets, neighbor_counts

RATES = [
    ((1, 1),),
    ((4, 1),),
    ((2, 3), (3, 2)),
    ((8, 8), (12, 24), (24, 12), (16, 16)),
]


def labels_with_void(kind):
    labels = reference.random_labels(3, (3, 13, 17))
    if kind == "void at borders":
        labels[:, [0, -1]] = labels[:, :, [0, -1]] = 255
    if kind == "one image all void":
        labels[1] = 255
    if kind == "all void":
        labels[:] = 255
    if kind == "no void":
        labels = reference.random_labels(4, (3, 13, 17), void_share=0)
    return labels


def check(labels, rates, **options):
    targets = affinity_targets(labels, rates, **options)
    void = options.get("ignore_label", 255)
    expected = reference.batch_targets(labels, rates, void)
    np.testing.assert_array_equal(targets, expected)
    counts = np.stack([reference.neighbor_counts(each) for each in expected])
    np.testing.assert_array_equal(neighbor_counts(targets), counts)


@pytest.mark.parametrize("rates", RATES, ids=str)
def test_targets_and_counts_equal_loops(rates):
    check(labels_with_void("in places"), rates)


@pytest.mark.parametrize("kind", ["void at borders", "one image all void", "all void", "no void"])
def test_void_has_no_pairs(kind):
    check(labels_with_void(kind), RATES[2])


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 7), (2, 7, 1), (1, 3, 2)])
def test_tiny_images_equal_loops(shape):
    check(reference.random_labels(0, shape, void_share=0), RATES[2])


def test_one_pixel_has_no_pairs():
    targets = affinity_targets(np.zeros((1, 1), np.uint8), RATES[0])
    assert targets.shape == (1, 1, 8)
    assert np.all(targets == 255)


def test_odd_image_equals_loops():
    check(reference.random_labels(1, (1, 97, 131)), ((8, 8), (5, 24)))


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "uint16"])
def test_integer_types_give_uint8(dtype):
    labels = reference.random_labels(2, (5, 6)).astype(dtype)
    targets = affinity_targets(labels, RATES[0])
    assert targets.dtype == tf.uint8
    np.testing.assert_array_equal(targets, reference.affinity_targets(labels, RATES[0]))


def test_classes_above_255():
    labels = np.array([[1, 257, 513, 1]], np.int32)
    check(labels[None], ((1, 1),))


@pytest.mark.parametrize("void", [0, 3, -1])
def test_another_void_label(void):
    labels = reference.random_labels(5, (1, 6, 7), void_share=0).astype(np.int32)
    labels[labels == 1] = void
    check(labels, RATES[0], ignore_label=void)


@pytest.mark.parametrize("lead", [(), (2,), (2, 2)])
def test_leading_axes_are_kept(lead):
    labels = reference.random_labels(6, (*lead, 4, 5))
    targets = affinity_targets(labels, RATES[2])
    assert targets.shape == (*lead, 4, 5, 16)
    assert neighbor_counts(targets).shape == (*lead, 4, 5, 2)
    expected = reference.batch_targets(labels.reshape(-1, 4, 5), RATES[2])
    np.testing.assert_array_equal(targets, expected.reshape(targets.shape))


def test_targets_are_symmetric():
    labels = reference.random_labels(7, (9, 11), void_share=0)
    targets = affinity_targets(labels, ((2, 3),)).numpy()
    listed = reference.offsets(((2, 3),))
    for channel, (s, t) in enumerate(listed):
        back = listed.index((-s, -t))
        for y, x in np.ndindex(labels.shape):
            if reference.inside(y + s, x + t, labels.shape):
                assert targets[y, x, channel] == targets[y + s, x + t, back]


def test_targets_run_inside_tf_data():
    labels = reference.random_labels(8, (4, 6, 7))
    dataset = tf.data.Dataset.from_tensor_slices(labels).map(
        lambda each: affinity_targets(each, RATES[2])
    )
    assert dataset.element_spec.shape[-1] == 16
    np.testing.assert_array_equal(list(dataset), reference.batch_targets(labels, RATES[2]))


def test_targets_of_unknown_size():
    @tf.function(input_signature=[tf.TensorSpec((None, None, None), tf.uint8)])
    def traced(labels):
        targets = affinity_targets(labels, RATES[2])
        return targets, neighbor_counts(targets)

    for shape in ((1, 5, 6), (2, 7, 4)):
        labels = reference.random_labels(9, shape)
        targets, counts = traced(labels)
        np.testing.assert_array_equal(targets, reference.batch_targets(labels, RATES[2]))
        assert counts.shape == (*shape, 2)


@pytest.mark.parametrize(
    "labels", [np.zeros((4, 4), np.float32), np.zeros(4, np.uint8), np.uint8(0)]
)
def test_labels_of_wrong_type_or_shape_are_refused(labels):
    with pytest.raises(ValueError, match="Received"):
        affinity_targets(labels, RATES[0])


def test_counts_are_uint8_from_0_to_8():
    checkers = (np.indices((6, 7)).sum(0) % 2).astype(np.uint8)
    counts = neighbor_counts(affinity_targets(checkers, ((1, 1), (2, 2), (1, 2))))
    assert counts.dtype == tf.uint8
    # Equal are the diagonal neighbours at rate 1, all at rate 2, the horizontal two at (1, 2).
    assert counts[2, 3].numpy().tolist() == [4, 8, 2]


def test_missing_pairs_count_as_neighbors():
    targets = np.array([255, 255, 0, 1, 1, 0, 255, 1], np.uint8)
    assert neighbor_counts(targets).numpy().tolist() == [6]


@pytest.mark.parametrize("channels", [0, 7, 12])
def test_neighbor_counts_refuse_wrong_channels(channels):
    with pytest.raises(ValueError, match="Received"):
        neighbor_counts(np.zeros((2, 2, channels), np.uint8))
