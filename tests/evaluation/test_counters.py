"""Counters of the host, and eager metrics, against the same metrics in graphs and loops."""

import numpy as np
import pytest
import tensorflow as tf
from helpers import reference, tiny  # noqa: F401 - the backbone "tiny"
from helpers.tiny import ListSource

from dilated_affinity.datasets.classes import ClassTable
from dilated_affinity.evaluation import counters, pair_counts, pixel_counts
from dilated_affinity.evaluation.counters import BoundaryCounter, ClassCounter, LabelMap
from dilated_affinity.evaluation.evaluate import evaluate
from dilated_affinity.evaluation.metrics import AffinityAccuracy, BoundaryIoU, MeanIoU
from dilated_affinity.models.deeplab import DeepLabV3Plus

CLASSES = 5
RATES = ((2, 3), (1, 1), (8, 24))


def blocks(seed, shape, void_share=0.1, side=3):
    """Random label maps of squares, so that boundary regions do not cover all pixels."""
    coarse = tuple(-(-size // side) for size in shape[1:])
    labels = reference.random_labels(seed, (shape[0], *coarse), CLASSES, void_share)
    return labels.repeat(side, 1).repeat(side, 2)[:, : shape[1], : shape[2]].astype(np.uint8)


def void_frame(shape, width):
    labels = blocks(6, shape, void_share=0)
    inner = labels[:, width:-width, width:-width].copy()
    labels[:] = 255
    labels[:, width:-width, width:-width] = inner
    return labels


LABELS = {
    "odd": blocks(3, (1, 97, 131), side=9),
    "small": blocks(4, (1, 13, 17)),
    "without_void": blocks(5, (1, 20, 31), void_share=0),
    "mostly_void": blocks(7, (1, 41, 60), void_share=0.9),
    "void_frame": void_frame((1, 41, 33), 4),
    "only_void": np.full((1, 6, 7), 255, np.uint8),
    "one_pixel": np.full((1, 1, 1), 2, np.uint8),
    "one_void_pixel": np.full((1, 1, 1), 255, np.uint8),
    "one_row": blocks(8, (1, 1, 40), side=6),
}

each_label = pytest.mark.parametrize("name", LABELS)


def predictions_for(name):
    return blocks(1, LABELS[name].shape, void_share=0, side=7)


def in_graph(metric, signature=None):
    """`metric.update_state` as `fit` calls it."""
    return tf.function(metric.update_state, input_signature=signature, autograph=False)


SIZES_UNKNOWN = [tf.TensorSpec((None, None, None), tf.uint8)] * 2


@each_label
@pytest.mark.parametrize("signature", [None, SIZES_UNKNOWN], ids=["sizes", "unknown_sizes"])
def test_counters_and_eager_metrics_count_as_graphs(name, signature):
    labels, predictions = LABELS[name], predictions_for(name)
    classes, boundary = ClassCounter(CLASSES), BoundaryCounter(CLASSES)
    for counter in (classes, boundary):
        counter.update_state(LabelMap(labels, CLASSES), predictions)
    for build, counter in ((MeanIoU, classes), (BoundaryIoU, boundary)):
        eager, graph = build(CLASSES), build(CLASSES)
        eager.update_state(labels, predictions)
        in_graph(graph, signature)(tf.constant(labels), tf.constant(predictions))
        np.testing.assert_array_equal(eager.variables[0], graph.variables[0])
        np.testing.assert_array_equal(counter.class_iou(), graph.class_iou())
        assert np.any(graph.variables[0]) or name in ("only_void", "one_pixel", "one_void_pixel")
    eager = MeanIoU(CLASSES)
    eager.update_state(labels, predictions)
    np.testing.assert_array_equal(classes.confusion_matrix(), eager.confusion_matrix())
    np.testing.assert_equal(classes.pixel_accuracy(), eager.pixel_accuracy())


def test_a_void_label_among_the_classes_is_left_out_as_are_labels_outside_of_them():
    labels, predictions = LABELS["odd"], predictions_for("odd")
    label = LabelMap(labels, CLASSES, ignore_label=1)
    for build, counter in (
        (MeanIoU, ClassCounter(CLASSES)),
        (BoundaryIoU, BoundaryCounter(CLASSES)),
    ):
        counter.update_state(label, predictions)
        eager, graph = build(CLASSES, ignore_label=1), build(CLASSES, ignore_label=1)
        eager.update_state(labels, predictions)
        in_graph(graph)(tf.constant(labels), tf.constant(predictions))
        both = build(CLASSES)
        both.update_state(np.where(labels == 1, 255, labels), predictions)
        assert (labels == 255).any() and (labels == 1).any() and np.isnan(both.class_iou()[1])
        for each in (counter, eager, graph):
            np.testing.assert_array_equal(each.class_iou(), both.class_iou())


@pytest.mark.parametrize("name", [name for name, labels in LABELS.items() if labels.size < 1000])
def test_counters_count_as_loops(name):
    labels, predictions = LABELS[name], predictions_for(name)
    classes, boundary = ClassCounter(CLASSES), BoundaryCounter(CLASSES)
    for counter in (classes, boundary):
        counter.update_state(LabelMap(labels, CLASSES), predictions)
    matrix = reference.confusion_matrix(labels, predictions, CLASSES)
    np.testing.assert_array_equal(classes.confusion_matrix(), matrix)
    distance = max(1, round(0.02 * float(np.hypot(*labels.shape[1:]))))
    for k, found in enumerate(boundary.class_iou()):
        truth, guess = (
            reference.boundary_region(each[0], labels[0] == 255, k, distance)
            for each in (labels, predictions)
        )
        expected = (truth & guess).sum() / (truth | guess).sum() if truth.any() else np.nan
        np.testing.assert_equal(found, expected)


def test_counts_of_images_add_up():
    counted = {build: build(CLASSES) for build in (ClassCounter, BoundaryCounter)}
    metrics = {ClassCounter: MeanIoU(CLASSES), BoundaryCounter: BoundaryIoU(CLASSES)}
    for name, labels in LABELS.items():
        for build, counter in counted.items():
            counter.update_state(LabelMap(labels, CLASSES), predictions_for(name))
            metrics[build].update_state(labels, predictions_for(name))
    for build, counter in counted.items():
        np.testing.assert_array_equal(counter.class_iou(), metrics[build].class_iou())


@pytest.mark.parametrize("num_classes", [2, 255, 256, 300])
def test_any_number_of_classes(num_classes):
    """At 255 classes, void is the number that marks pixels in no boundary region."""
    void, dtype = (255, np.uint8) if num_classes <= 255 else (400, np.int32)
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, num_classes, (2, 1, 12, 12), dtype)
    labels, predictions = coarse.repeat(3, 2).repeat(3, 3)
    labels[:, 5:9] = void
    for build, metric in (
        (ClassCounter, MeanIoU(num_classes, void)),
        (BoundaryCounter, BoundaryIoU(num_classes, void)),
    ):
        counter = build(num_classes)
        counter.update_state(LabelMap(labels, num_classes, void), predictions)
        in_graph(metric)(tf.constant(labels), tf.constant(predictions))
        np.testing.assert_array_equal(counter.class_iou(), metric.class_iou())
        assert np.isfinite(counter.class_iou()).any()


def test_boundary_regions_of_a_label_are_computed_once(monkeypatch):
    calls = []

    def counted(classes, *arguments):
        calls.append(classes)
        return pixel_counts.boundary_regions(classes, *arguments)

    monkeypatch.setattr(counters, "boundary_regions", counted)
    label = LabelMap(LABELS["odd"], CLASSES)
    for _ in range(5):
        BoundaryCounter(CLASSES).update_state(label, predictions_for("odd"))
    assert len(calls) == 6 and sum(each is LABELS["odd"] for each in calls) == 1


@each_label
def test_pairs_are_counted_as_in_graphs(name):
    labels = LABELS[name]
    targets = reference.batch_targets(labels, RATES)
    logits = np.random.default_rng(2).normal(0.2, 1, targets.shape).astype(np.float32)
    logits[:, ::2] = 0.0  # "different", as all that is not above 0
    eager, graph = AffinityAccuracy(RATES), AffinityAccuracy(RATES)
    eager.update_state(targets, logits)
    in_graph(graph)(tf.constant(targets), tf.constant(logits))
    np.testing.assert_array_equal(eager.pairs, graph.pairs)
    assert np.any(graph.pairs) or name in ("only_void", "one_pixel", "one_void_pixel")


def test_an_evaluation_compiles_no_counts():
    """Else every size of image would."""
    rng = np.random.default_rng(0)
    examples = [
        {
            "image": rng.integers(0, 256, (*size, 3), np.uint8),
            "label": rng.integers(0, 3, size, np.uint8),
            "id": str(size),
        }
        for size in ((33, 41), (28, 41), (40, 20))
    ]
    source = ListSource(examples, ClassTable(("a", "b", "c"), ((0, 0, 0),) * 3))
    model = DeepLabV3Plus(3, ((4, 4),), "tiny", weights=None, filters=8, separable=False)
    in_graphs = [
        pixel_counts._confusion_in_graph,
        pixel_counts._segments,
        pair_counts._in_graph,
    ]
    before = [each.experimental_get_tracing_count() for each in in_graphs]
    result = evaluate(model, source, (0, 1))
    assert [each.experimental_get_tracing_count() for each in in_graphs] == before
    assert np.isfinite(result.class_iou).all() and np.isfinite(result.boundary_iou).all()
    # In a graph it would be.
    in_graph(MeanIoU(3))(tf.constant(examples[0]["label"][None]), tf.zeros((1, 33, 41), tf.int32))
    assert in_graphs[0].experimental_get_tracing_count() > before[0]
