"""Metrics against loops over pixels, and their way through `model.compile`."""

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import reference

from dilated_affinity.affinity.interpolation import grid_offset
from dilated_affinity.affinity.loss import AffinityLoss
from dilated_affinity.affinity.statistics import AffinityStatistics
from dilated_affinity.errors import ConfigError
from dilated_affinity.evaluation import metrics
from dilated_affinity.evaluation.metrics import (
    AffinityAccuracy,
    BoundaryIoU,
    MeanIoU,
    PixelAccuracy,
)
from dilated_affinity.models.resize import AlignedResize
from dilated_affinity.training.losses import SemanticLoss

CLASSES = 4
RATES = ((2, 3), (3, 2), (1, 1))


def blocks(seed, shape, num_classes=CLASSES, void_share=0.1):
    return reference.random_labels(seed, shape, num_classes, void_share)


@pytest.fixture(scope="module")
def labels():
    labels = blocks(0, (3, 13, 17))
    labels[2, :, :4] = 255
    return labels


@pytest.fixture(scope="module")
def predictions():
    return blocks(1, (3, 13, 17), void_share=0)


# Mean IoU and pixel accuracy.


def test_mean_iou_equals_loops(labels, predictions):
    metric = MeanIoU(CLASSES)
    metric.update_state(labels, predictions)
    matrix = reference.confusion_matrix(labels, predictions, CLASSES)
    np.testing.assert_array_equal(metric.confusion_matrix(), matrix)
    np.testing.assert_allclose(metric.class_iou(), reference.class_iou(matrix), rtol=1e-12)
    np.testing.assert_allclose(metric.result(), reference.mean(reference.class_iou(matrix)), 1e-5)
    np.testing.assert_allclose(metric.pixel_accuracy(), np.trace(matrix) / matrix.sum(), 1e-12)


def test_mean_iou_is_of_the_whole_split_not_of_batches(labels, predictions):
    metric = MeanIoU(CLASSES)
    for index in range(3):
        metric.update_state(labels[index : index + 1], predictions[index : index + 1])
    matrix = reference.confusion_matrix(labels, predictions, CLASSES)
    np.testing.assert_array_equal(metric.confusion_matrix(), matrix)


def test_images_of_several_sizes_add_up():
    metric, total = MeanIoU(CLASSES), 0
    for seed, shape in enumerate([(1, 5, 7), (2, 4, 4), (1, 97, 131)]):
        labels, predictions = blocks(seed, shape), blocks(seed + 9, shape, void_share=0)
        metric.update_state(labels, predictions)
        total = total + reference.confusion_matrix(labels, predictions, CLASSES)
    np.testing.assert_array_equal(metric.confusion_matrix(), total)


@pytest.mark.parametrize("metric", [MeanIoU(CLASSES), BoundaryIoU(CLASSES), PixelAccuracy()])
def test_scores_count_by_their_largest(metric, labels, predictions):
    metric.update_state(labels, predictions)
    expected = float(metric.result())
    metric.reset_state()
    metric.update_state(labels, np.eye(CLASSES, dtype=np.float32)[predictions])
    assert float(metric.result()) == expected > 0


def test_a_class_in_neither_is_left_out_of_the_mean():
    metric = MeanIoU(5)
    metric.update_state([[[0, 0, 1, 255]]], [[[0, 1, 1, 4]]])
    np.testing.assert_allclose(metric.result(), 0.5)
    assert np.isnan(metric.class_iou()[2:]).all()


def test_a_class_only_predicted_is_left_out_of_the_mean():
    metric = MeanIoU(3)
    metric.update_state([[[0, 0]]], [[[0, 2]]])
    np.testing.assert_allclose(metric.result(), 0.5)
    np.testing.assert_array_equal(metric.class_iou(), [0.5, np.nan, np.nan])


def test_a_class_never_predicted_counts_as_0():
    metric = MeanIoU(3)
    metric.update_state([[[0, 0, 2]]], [[[0, 0, 0]]])
    np.testing.assert_allclose(metric.result(), (2 / 3 + 0) / 2)
    np.testing.assert_array_equal(metric.class_iou(), [2 / 3, np.nan, 0])


@pytest.mark.parametrize("seed", range(4))
def test_means_over_classes_are_those_of_each_row_to_the_last_digit(seed):
    rng = np.random.default_rng(seed)
    class_iou = rng.random((5, 3, 21))
    class_iou[..., rng.random(21) < 0.3] = np.nan
    means = metrics.mean_over_classes(class_iou)
    for index in np.ndindex(5, 3):
        assert means[index] == metrics.mean_over_classes(class_iou[index].tolist())
        assert means[index] == metrics.mean_over_classes(class_iou.T[:, index[1], index[0]])
        np.testing.assert_allclose(means[index], np.nanmean(class_iou[index]), rtol=1e-15)
    assert np.isnan(metrics.mean_over_classes([[np.nan, np.nan]])).all()


def test_mean_iou_of_only_void_is_0():
    metric = MeanIoU(3)
    metric.update_state(np.full((1, 3, 3), 255), np.zeros((1, 3, 3), int))
    assert float(metric.result()) == 0
    assert np.isnan(metric.class_iou()).all() and np.isnan(metric.pixel_accuracy())


@pytest.mark.parametrize("void", [3, -1])
def test_mean_iou_with_another_void_label(labels, predictions, void):
    labels = np.where(labels == 255, np.int32(void), labels)
    metric = MeanIoU(CLASSES, ignore_label=void)
    metric.update_state(labels, predictions)
    matrix = reference.confusion_matrix(labels, predictions, CLASSES, void)
    np.testing.assert_array_equal(metric.confusion_matrix(), matrix)


@pytest.mark.parametrize("predicted", [CLASSES, 255, -1])
def test_a_prediction_outside_the_classes_is_left_out(predicted):
    """It may be refused or be left out, but not fall into the next row of the matrix."""
    metric = MeanIoU(CLASSES)
    try:
        metric.update_state([[[1, 2]]], [[[predicted, 2]]])
    except (ValueError, tf.errors.OpError):
        return
    matrix = metric.confusion_matrix()
    assert matrix[2, 2] == 1 and matrix.sum() == 1


def test_a_label_outside_the_classes_is_left_out():
    metric = MeanIoU(CLASSES)
    try:
        metric.update_state([[[CLASSES, 2]]], [[[1, 2]]])
    except (ValueError, tf.errors.OpError):
        return
    matrix = metric.confusion_matrix()
    assert matrix[2, 2] == 1 and matrix.sum() == 1


def test_pixel_accuracy_equals_loops(labels, predictions):
    metric = PixelAccuracy()
    metric.update_state(labels, predictions)
    matrix = reference.confusion_matrix(labels, predictions, CLASSES)
    np.testing.assert_allclose(metric.result(), np.trace(matrix) / matrix.sum(), rtol=1e-6)


@pytest.mark.parametrize("count", [2**24, 2**31, 2**53])
def test_confusion_grows_beyond_float_precision(count):
    metric = MeanIoU(2)
    metric.confusion.assign(np.array([[count, 0], [0, 1]]))
    metric.update_state([[[0]]], [[[0]]])
    assert metric.confusion_matrix()[0, 0] == count + 1


def test_pixel_accuracy_grows_beyond_float_precision():
    metric = PixelAccuracy()
    metric.counts.assign([2**24, 2**24])
    metric.update_state([[[0]]], [[[0]]])
    assert np.asarray(metric.counts).tolist() == [2**24 + 1] * 2


@pytest.mark.parametrize("count", [2**24, 2**30 - 1, 2**31, 2**40])
def test_counts_in_two_words_are_those_in_one(monkeypatch, count):
    # As under JAX, whose integers have 32 bits.
    monkeypatch.setattr(metrics, "_in_words", lambda: True)
    metric, accuracy = MeanIoU(2), PixelAccuracy()
    metric.confusion.assign(
        np.stack([np.full((2, 2), count % 2**30), np.full((2, 2), count >> 30)])
    )
    accuracy.counts.assign([[count % 2**30] * 2, [count >> 30] * 2])
    for each in (metric, accuracy):
        each.update_state([[[0, 0, 1]]], [[[0, 0, 0]]])
    assert metric.confusion_matrix().tolist() == [[count + 2, count], [count + 1, count]]
    np.testing.assert_allclose(metric.result(), np.mean(metric.class_iou()), rtol=1e-6)
    assert accuracy.exact(accuracy.counts).tolist() == [count + 2, count + 3]
    assert (np.asarray(metric.confusion) < 2**30).all()
    np.testing.assert_allclose(accuracy.result(), (count + 2) / (count + 3), rtol=1e-6)


def test_reset_state(labels, predictions):
    metric = MeanIoU(CLASSES)
    metric.update_state(labels, predictions)
    metric.reset_state()
    assert not metric.confusion_matrix().any()


# Boundary IoU.


def distance_of(shape, ratio):
    return max(1, round(ratio * float(np.hypot(*shape))))


@pytest.mark.parametrize("ratio", [0.02, 0.1, 0.2, 0.9])
def test_boundary_iou_equals_loops(labels, predictions, ratio):
    metric = BoundaryIoU(CLASSES, dilation_ratio=ratio)
    metric.update_state(labels, predictions)
    distance = distance_of((13, 17), ratio)
    expected = reference.boundary_iou(labels, predictions, CLASSES, distance)
    np.testing.assert_allclose(metric.result(), expected, rtol=1e-6)


@pytest.mark.parametrize("ratio", [0.02, 0.05])
def test_boundary_iou_equals_erosion_of_each_class(ratio):
    """As the authors compute it, but with void and the image border taken as inside."""

    def region(classes, void, k, distance):
        mask = ((classes == k) | void).astype(np.uint8)
        kernel = np.ones((3, 3), np.uint8)
        framed = cv2.copyMakeBorder(mask, *[distance] * 4, cv2.BORDER_CONSTANT, value=1)
        eroded = cv2.erode(framed, kernel, iterations=distance)
        eroded = eroded[distance:-distance, distance:-distance]
        return (classes == k) & ~void & (eroded == 0)

    labels, predictions = blocks(3, (1, 97, 131)), blocks(4, (1, 97, 131), void_share=0)
    labels, predictions = (
        np.kron(each, np.ones((1, 3, 3), np.uint8))[:, :97, :131] for each in (labels, predictions)
    )
    metric = BoundaryIoU(CLASSES, dilation_ratio=ratio)
    metric.update_state(labels, predictions)
    distance = distance_of((97, 131), ratio)
    expected = reference.boundary_iou(labels, predictions, CLASSES, distance, region)
    np.testing.assert_allclose(metric.result(), expected, rtol=1e-6)


def test_a_perfect_prediction_has_boundary_iou_1(labels):
    metric = BoundaryIoU(CLASSES)
    metric.update_state(labels, np.where(labels == 255, 0, labels))
    assert float(metric.result()) == 1


def test_the_image_border_is_no_boundary():
    metric = BoundaryIoU(2)
    metric.update_state(np.zeros((1, 9, 9), int), np.zeros((1, 9, 9), int))
    assert not np.any(metric.regions)


def test_void_makes_no_boundary_and_is_left_out():
    labels = np.zeros((1, 9, 9), int)
    labels[:, 4] = 255
    metric = BoundaryIoU(2)
    metric.update_state(labels, np.zeros((1, 9, 9), int))
    assert not np.any(metric.regions)
    metric.update_state(np.full((1, 9, 9), 255), blocks(0, (1, 9, 9), void_share=0))
    assert not np.any(metric.regions)


def test_a_boundary_only_predicted_is_left_out_of_the_mean():
    labels, predictions = np.zeros((1, 9, 18), int), np.zeros((1, 9, 18), int)
    labels[:, :, 9:] = 1
    predictions[:, :, 9:] = 1
    metric = BoundaryIoU(3)
    metric.update_state(labels, predictions)
    assert float(metric.result()) == 1
    predictions[0, 4, 3] = 2
    metric.update_state(labels, predictions)
    assert np.isnan(metric.class_iou()[2])
    # The 8 pixels around the wrong one join the boundary of class 0, which has 9 in an image.
    np.testing.assert_allclose(metric.class_iou()[:2], [18 / 26, 1])
    np.testing.assert_allclose(metric.result(), (18 / 26 + 1) / 2, rtol=1e-6)


def test_a_shift_costs_more_at_the_boundary():
    labels = np.zeros((1, 40, 40), int)
    labels[:, :, 20:] = 1
    predictions = np.roll(labels, 1, axis=2)
    predictions[:, :, 0] = 0
    boundary, whole = BoundaryIoU(2), MeanIoU(2)
    for metric in (boundary, whole):
        metric.update_state(labels, predictions)
    assert float(boundary.result()) < 0.5 < 0.9 < float(whole.result())


def test_boundary_iou_adds_over_images_of_several_sizes():
    metric = BoundaryIoU(2)
    metric.update_state([[[0, 1, 1]]], [[[0, 1, 1]]])
    metric.update_state([[[0, 0, 1, 1]]], [[[0, 1, 1, 1]]])
    # Class 0: {0}, {1} against {0}, {0}; class 1: {1}, {2} against {1}, {1}.
    np.testing.assert_allclose(metric.result(), (1 / 3 + 1 / 3) / 2, rtol=1e-6)


# Affinity accuracy.


@pytest.fixture(scope="module")
def affinity(labels):
    logits = np.random.default_rng(0).normal(0.3, 1, (*labels.shape, 8 * len(RATES)))
    return reference.batch_targets(labels, RATES), logits.astype(np.float32)


def test_affinity_accuracy_equals_loops(labels, affinity):
    metric = AffinityAccuracy(RATES)
    metric.update_state(*affinity)
    right, existing = pairs = reference.affinity_pairs(labels, affinity[1], RATES)
    np.testing.assert_array_equal(metric.pairs, pairs)
    np.testing.assert_allclose(metric.result(), right.sum() / existing.sum(), rtol=1e-5)
    for found, axis in ((metric.by_rate(), 1), (metric.by_count(), 0)):
        total = existing.sum(axis)
        assert np.isnan(found[total == 0]).all()
        np.testing.assert_allclose(
            found[total > 0], right.sum(axis)[total > 0] / total[total > 0], rtol=1e-12
        )
    by_both = metric.by_rate_and_count()
    assert by_both.shape == (len(RATES), 9)
    np.testing.assert_allclose(
        by_both[existing > 0], right[existing > 0] / existing[existing > 0], rtol=1e-12
    )


def test_affinity_accuracy_adds_batches(affinity):
    whole, parts = AffinityAccuracy(RATES), AffinityAccuracy(RATES)
    whole.update_state(*affinity)
    for index in range(3):
        parts.update_state(*(each[index : index + 1] for each in affinity))
    np.testing.assert_array_equal(whole.pairs, parts.pairs)


def test_affinity_accuracy_of_an_odd_image():
    labels, rates = blocks(3, (1, 97, 131)), ((8, 24),)
    logits = np.random.default_rng(0).normal(size=(1, 97, 131, 8))
    metric = AffinityAccuracy(rates)
    metric.update_state(reference.batch_targets(labels, rates), logits.astype(np.float32))
    expected = reference.affinity_pairs(labels, logits.astype(np.float32), rates)
    np.testing.assert_array_equal(metric.pairs, expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_affinity_accuracy_of_half_precision_logits(affinity, dtype):
    metric, again = AffinityAccuracy(RATES), AffinityAccuracy(RATES)
    logits = tf.cast(affinity[1], dtype)
    metric.update_state(affinity[0], logits)
    again.update_state(affinity[0], tf.cast(logits, "float32"))
    np.testing.assert_array_equal(metric.pairs, again.pairs)


@pytest.mark.parametrize("size", [(17, 25), (16, 22), (19, 27), (2, 1)], ids=str)
@pytest.mark.parametrize("padding", ["same", "symmetric"])
def test_affinity_accuracy_at_a_stride_counts_the_pixels_of_the_grid(size, padding):
    """There resized logits are the small ones; all other pixels are made void."""
    rates, stride = ((1, 1), (2, 3)), 4
    rng = np.random.default_rng(5)
    small = rng.normal(size=(2, *(-(-side // stride) for side in size), 16)).astype(np.float32)
    targets = reference.batch_targets(reference.random_labels(1, (2, *size)), rates)
    resized = AlignedResize(stride, 1, padding)([small, np.zeros((2, *size, 3), np.float32)])
    grid = [np.arange(side) % stride == grid_offset(side, stride, padding) for side in size]
    elsewhere = ~(grid[0][:, None] & grid[1][None, :])
    targets_there = np.where(elsewhere[None, :, :, None], 255, targets).astype(np.uint8)
    expected = AffinityAccuracy(rates)
    expected.update_state(targets_there, resized)
    metric = AffinityAccuracy(rates, logits_stride=stride, padding=padding)
    metric.update_state(targets, small)
    np.testing.assert_array_equal(metric.pairs, expected.pairs)
    assert size == (2, 1) or np.sum(metric.pairs[1]) > 0


def test_affinity_accuracy_of_only_void():
    metric = AffinityAccuracy(((1, 1),))
    metric.update_state(np.full((1, 3, 3, 8), 255, np.uint8), np.ones((1, 3, 3, 8), np.float32))
    assert float(metric.result()) == 0
    assert np.isnan(metric.by_rate()).all() and np.isnan(metric.by_count()).all()


def test_affinity_accuracy_grows_beyond_float_precision():
    metric = AffinityAccuracy(((1, 1),))
    metric.pairs.assign(np.full((2, 1, 9), 2**24))
    metric.update_state(np.ones((1, 1, 1, 8), np.uint8), np.ones((1, 1, 1, 8), np.float32))
    assert np.asarray(metric.pairs)[:, 0, 8].tolist() == [2**24 + 8] * 2


# What all share.

METRICS = [
    MeanIoU(5, ignore_label=7, name="mine"),
    PixelAccuracy(ignore_label=7, name="mine"),
    BoundaryIoU(5, ignore_label=7, dilation_ratio=0.1, name="mine"),
    AffinityAccuracy(RATES, name="mine"),
]


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: type(metric).__name__)
def test_keras_serialization(metric):
    again = keras.metrics.deserialize(keras.metrics.serialize(metric))
    assert type(again) is type(metric)
    assert again.get_config() == metric.get_config()
    assert again.name == "mine"


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: type(metric).__name__)
def test_sample_weight_is_refused_rather_than_ignored(metric):
    with pytest.raises(ValueError, match="sample_weight"):
        metric.update_state([[[0]]], [[[0]]], sample_weight=[[[1.0]]])


@pytest.mark.parametrize(
    "build",
    [
        lambda: MeanIoU(1),
        lambda: BoundaryIoU(1),
        lambda: BoundaryIoU(3, dilation_ratio=0),
        lambda: BoundaryIoU(3, dilation_ratio=1.5),
        lambda: AffinityAccuracy(()),
        lambda: AffinityAccuracy(RATES, padding="valid"),
        lambda: AffinityAccuracy(RATES, logits_stride=3),
    ],
)
def test_settings_out_of_range_are_refused(build):
    with pytest.raises(ConfigError):
        build()


@pytest.mark.parametrize(
    "metric, y_true, y_pred",
    [
        (MeanIoU(3), (1, 4, 4, 1), (1, 4, 4)),
        (MeanIoU(3), (1, 4, 4), (1, 4, 4, 2)),
        (BoundaryIoU(3), (4, 4), (4, 4)),
        (AffinityAccuracy(RATES), (1, 4, 4, 24), (1, 4, 4, 8)),
    ],
)
def test_mismatched_shapes_are_refused(metric, y_true, y_pred):
    with pytest.raises(ValueError, match="Received"):
        metric.update_state(np.zeros(y_true, int), np.zeros(y_pred, np.float32))


def two_headed_model():
    """Both heads pass on channels of the input, so that every result is known."""
    inputs = keras.Input((None, None, CLASSES + 24))
    semantic = keras.layers.Lambda(lambda x: x[..., :CLASSES], name="semantic_slice")(inputs)
    affinity = keras.layers.Lambda(lambda x: x[..., CLASSES:], name="affinity_slice")(inputs)
    return keras.Model(inputs, {"semantic": semantic, "affinity": affinity})


def test_compile_and_fit_with_metrics_and_losses_of_both_heads(labels, affinity):
    targets, logits = affinity
    scores = np.random.default_rng(1).normal(size=(*labels.shape, CLASSES)).astype(np.float32)
    statistics = AffinityStatistics.from_labels(labels, RATES)
    losses = {"semantic": SemanticLoss(), "affinity": AffinityLoss(statistics)}
    model = two_headed_model()
    model.compile(
        loss=losses,
        loss_weights={"semantic": 1.0, "affinity": 1.5},
        metrics={
            "semantic": [MeanIoU(CLASSES), PixelAccuracy(), BoundaryIoU(CLASSES)],
            "affinity": [AffinityAccuracy(RATES)],
        },
    )
    inputs = np.concatenate([scores, logits], axis=-1)
    logs = model.evaluate(
        inputs, {"semantic": labels, "affinity": targets}, 3, verbose=0, return_dict=True
    )
    matrix = reference.confusion_matrix(labels, scores.argmax(-1), CLASSES)
    right, existing = reference.affinity_pairs(labels, logits, RATES)
    expected = {
        "semantic_mean_iou": reference.mean(reference.class_iou(matrix)),
        "semantic_accuracy": np.trace(matrix) / matrix.sum(),
        "semantic_boundary_iou": reference.boundary_iou(labels, scores.argmax(-1), CLASSES, 1),
        "affinity_accuracy": right.sum() / existing.sum(),
        "semantic_loss": reference.semantic_loss(labels, scores),
        "affinity_loss": reference.affinity_loss(
            labels, logits, RATES, statistics.pixels, statistics.pairs, "sqrt_neighbor", 2
        ),
    }
    expected["loss"] = expected["semantic_loss"] + 1.5 * expected["affinity_loss"]
    assert set(logs) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(logs[name], value, rtol=1e-5, err_msg=name)
