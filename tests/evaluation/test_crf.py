import numpy as np
import pytest
from helpers.tiny import NUM_CLASSES, ListSource, tiny_config

from dilated_affinity.baselines.crf import DenseCRF
from dilated_affinity.datasets.classes import CAMVID
from dilated_affinity.evaluation.crf import CRFPredictor, dense_crf_of, evaluate_crf
from dilated_affinity.evaluation.evaluate import evaluate
from dilated_affinity.evaluation.metrics import BoundaryIoU, MeanIoU
from dilated_affinity.inference.files import predict_examples
from dilated_affinity.inference.predictor import Predictor
from dilated_affinity.models.from_config import build_model

pytest.importorskip("pydensecrf", reason="needs the extra crf")


@pytest.fixture(scope="module")
def model():
    model = build_model(tiny_config("."), NUM_CLASSES)
    layer = model.get_layer("semantic_logits")
    layer.kernel.assign(layer.kernel * 100)
    return model


@pytest.fixture(scope="module")
def source():
    rng = np.random.default_rng(6)
    examples = [
        {
            "image": rng.integers(0, 256, (*size, 3), dtype=np.uint8),
            "label": rng.choice([0, 3, 7, 255], size).astype(np.uint8),
            "id": f"image{index}",
        }
        for index, size in enumerate([(33, 41), (29, 35), (33, 41)])
    ]
    return ListSource(examples, CAMVID)


def test_the_settings_of_a_run_make_its_crf():
    assert dense_crf_of(tiny_config(".")) == DenseCRF()
    config = tiny_config(".", crf_iterations=3, crf_bilateral_rgb=5.0)
    assert dense_crf_of(config) == DenseCRF(iterations=3, bilateral_rgb=5.0)


def test_evaluation_measures_before_and_after(model, source):
    crf = DenseCRF(iterations=2, bilateral_rgb=60.0)
    result = evaluate_crf(model, source, crf, workers=1)
    assert (result.iterations, result.refine_with) == ((0, 2), "crf")
    plain = evaluate(model, source, (0,))
    np.testing.assert_allclose(result.class_iou[0], plain.class_iou[0])
    assert result.pixel_accuracy[0] == plain.pixel_accuracy[0]
    metric = MeanIoU(NUM_CLASSES)
    boundaries = BoundaryIoU(NUM_CLASSES), BoundaryIoU(NUM_CLASSES)
    predictor = CRFPredictor(model, crf)
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
    assert "crf" in result.table().lower()


def test_predictions_hold_what_they_came_from(model, source):
    image = source[0]["image"]
    prediction = CRFPredictor(model, DenseCRF(bilateral_rgb=60.0))(image)
    plain = Predictor(model)(image)
    np.testing.assert_array_equal(prediction.unrefined, plain.unrefined)
    np.testing.assert_array_equal(prediction.affinity, plain.affinity)
    assert (prediction.labels != prediction.unrefined).any()
    assert prediction.labels.dtype == np.uint8


def test_files_are_written_for_each_image_in_order(model, source, tmp_path):
    predictor = CRFPredictor(model, DenseCRF(iterations=1), workers=1)
    written = predict_examples(predictor, source, tmp_path).written
    assert [path.name for path in written] == [f"image{index}_labels.png" for index in range(3)]
    assert len(list(tmp_path.glob("*_comparison.png"))) == 3
