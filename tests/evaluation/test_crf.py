"""Evaluation and prediction with a dense CRF in the place of propagation."""

import numpy as np
import pytest
from helpers.tiny import NUM_CLASSES, ListSource, tiny_config

from dilated_affinity.baselines.crf import DenseCRF
from dilated_affinity.datasets.classes import CAMVID
from dilated_affinity.errors import ConfigError
from dilated_affinity.evaluation.evaluate import evaluate
from dilated_affinity.evaluation.metrics import BoundaryIoU, MeanIoU
from dilated_affinity.evaluation.search import search_refinement
from dilated_affinity.inference.files import predict_examples
from dilated_affinity.inference.model import inference_model
from dilated_affinity.inference.predictor import Predictor
from dilated_affinity.run_dir.model import build_model

pytest.importorskip("pydensecrf", reason="needs the extra crf")


@pytest.fixture(scope="module")
def model():
    model = build_model(tiny_config("."), NUM_CLASSES)
    layer = model.get_layer("semantic_logits")
    layer.kernel.assign(layer.kernel * 100)
    return model


def random_source(sizes):
    rng = np.random.default_rng(6)
    examples = [
        {
            "image": rng.integers(0, 256, (*size, 3), dtype=np.uint8),
            "label": rng.choice([0, 3, 7, 255], size).astype(np.uint8),
            "id": f"image{index}",
        }
        for index, size in enumerate(sizes)
    ]
    return ListSource(examples, CAMVID)


@pytest.fixture(scope="module")
def source():
    return random_source([(33, 41), (29, 35), (33, 41)])


def test_evaluation_measures_before_and_after(model, source):
    crf = DenseCRF(iterations=2, bilateral_rgb=60.0)
    result = evaluate(model, source, (0, 2), refinement=crf)
    assert (result.iterations, result.refine, result.affinity_source) == ((0, 2), "crf", None)
    plain = evaluate(model, source, (0,))
    np.testing.assert_allclose(result.class_iou[0], plain.class_iou[0])
    assert result.pixel_accuracy[0] == plain.pixel_accuracy[0]
    metric = MeanIoU(NUM_CLASSES)
    boundaries = BoundaryIoU(NUM_CLASSES), BoundaryIoU(NUM_CLASSES)
    predictor = Predictor(model, refinement=crf)
    for index in range(len(source)):
        label, prediction = source[index]["label"], predictor(source[index]["image"])
        metric.update_state(label[np.newaxis], prediction.labels[np.newaxis])
        for boundary, labels in zip(
            boundaries, (prediction.unrefined, prediction.labels), strict=True
        ):
            boundary.update_state(label[np.newaxis], labels[np.newaxis])
    np.testing.assert_allclose(result.class_iou[1], metric.class_iou())
    before, after = (boundary.class_iou() for boundary in boundaries)
    both = ~np.isnan(before) & ~np.isnan(after)
    np.testing.assert_allclose(result.boundary_iou, (before[both].mean(), after[both].mean()))
    assert not np.array_equal(result.class_iou[0], result.class_iou[1], equal_nan=True)
    assert "columns: iterations of a dense CRF\n" in result.table()


def test_a_column_for_each_number_of_iterations(model, source):
    both = evaluate(model, source, (1, 3), refinement=DenseCRF(bilateral_rgb=60.0))
    for row, count in enumerate((1, 3)):
        crf = DenseCRF(iterations=count, bilateral_rgb=60.0)
        alone = evaluate(model, source, count, refinement=crf)
        np.testing.assert_array_equal(both.class_iou[row], alone.class_iou[0])


@pytest.mark.slow
def test_several_processes_measure_the_same(model):
    """With more images than one process refines by itself, labels and predictions stay paired."""
    many = random_source([(33, 41), (29, 35)] * 5)
    crf = DenseCRF(iterations=1, bilateral_rgb=60.0)
    together = evaluate(model, many, 1, refinement=crf)
    predictor, metric = Predictor(model, refinement=crf), MeanIoU(NUM_CLASSES)
    for index in range(len(many)):
        predicted = predictor(many[index]["image"]).labels
        metric.update_state(many[index]["label"][np.newaxis], predicted[np.newaxis])
    np.testing.assert_array_equal(together.class_iou[0], metric.class_iou())


def test_predictions_keep_unrefined_labels_and_affinity(model, source):
    image = source[0]["image"]
    prediction = Predictor(model, refinement=DenseCRF(bilateral_rgb=60.0))(image)
    plain = Predictor(model)(image)
    np.testing.assert_array_equal(prediction.unrefined, plain.unrefined)
    np.testing.assert_array_equal(prediction.affinity, plain.affinity)
    assert (prediction.labels != prediction.unrefined).any()
    assert prediction.labels.dtype == np.uint8


def test_files_are_written_for_each_image_in_order(model, source, tmp_path):
    predictor = Predictor(model, 1, "crf")
    written = predict_examples(predictor, source, tmp_path).written
    assert [path.name for path in written] == [f"image{index}_labels.png" for index in range(3)]
    assert len(list(tmp_path.glob("*_comparison.png"))) == 3


def test_a_crf_is_neither_exported_nor_searched(model, source):
    with pytest.raises(ConfigError, match="cannot be a part of a Keras model or an export"):
        inference_model(model, refinement="crf")
    with pytest.raises(ConfigError, match="settings of propagation. Received: refinement='crf'"):
        search_refinement(model, source, refinement="crf")
