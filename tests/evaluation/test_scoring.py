"""The one loop that scores predictions."""

import keras
import numpy as np
import pytest
from helpers import tiny  # noqa: F401 - the backbone "tiny"
from helpers.tiny import ListSource

from dilated_affinity.datasets.classes import ClassTable
from dilated_affinity.evaluation import scoring
from dilated_affinity.evaluation.counters import ClassCounter
from dilated_affinity.evaluation.evaluate import evaluate
from dilated_affinity.evaluation.scoring import RefinedClasses, classes, score
from dilated_affinity.inference.network import Network, logits_fn
from dilated_affinity.inference.refinement import as_refinement
from dilated_affinity.inference.refiners import make_refiner
from dilated_affinity.models.deeplab import DeepLabV3Plus


@pytest.fixture(scope="module")
def source():
    rng = np.random.default_rng(0)
    examples = [
        {
            "image": rng.integers(0, 256, (*size, 3), np.uint8),
            "label": rng.integers(0, 3, size, np.uint8),
            "id": str(size),
        }
        for size in ((33, 41), (28, 41), (40, 20))
    ]
    return ListSource(examples, ClassTable(("a", "b", "c"), ((0, 0, 0),) * 3))


def test_several_refinements_are_scored_in_one_pass(source):
    keras.utils.set_random_seed(0)
    model = DeepLabV3Plus(3, ((4, 4),), "tiny", weights=None, filters=8, separable=False)
    layer = model.get_layer("semantic_logits")
    layer.kernel.assign(layer.kernel * 300)
    refinements = {
        "propagation": (0, 2),
        "propagation_decoder_stride": (3,),
        "none": (0,),
    }
    logits, seen = logits_fn(model), []

    def counted(images):
        seen.append(images.shape)
        return logits(images)

    columns = [
        (make_refiner(model, as_refinement(name)), counts) for name, counts in refinements.items()
    ]
    counters = [ClassCounter(3) for counts in refinements.values() for _ in counts]
    predict = RefinedClasses(Network(counted), columns)
    score(source, predict, [[counter] for counter in counters], "test")
    assert len(seen) == len(source)
    expected = [
        row
        for name, counts in refinements.items()
        for row in evaluate(model, source, counts, refinement=name).class_iou
    ]
    for counter, row in zip(counters, expected, strict=True):
        np.testing.assert_array_equal(counter.class_iou(), row)
    assert len({tuple(row) for row in expected}) > 2


def test_labels_stay_paired_with_predictions_that_run_behind(source):
    """As those of several processes do; only the first `limit` examples are read."""
    counter = ClassCounter(3)

    def late(examples):
        yield from [(example["label"][np.newaxis],) for example in examples]

    score(source, late, [[counter]], "test", limit=2)
    assert counter.class_iou().tolist() == [1, 1, 1]
    assert counter.confusion_matrix().sum() == sum(source[index]["label"].size for index in (0, 1))


def test_a_prediction_without_a_counter_is_an_error(source):
    def predict(examples):
        return ([example["label"][np.newaxis]] * 2 for example in examples)

    with pytest.raises(ValueError, match="zip"):
        score(source, predict, [[ClassCounter(3)]], "test")


@pytest.mark.parametrize("num_classes", [1, 2, 7, 256, 300])
def test_classes_are_those_of_the_first_largest_probability(num_classes):
    """Over several of the pieces that are searched at once."""
    rng = np.random.default_rng(0)
    # Few values, so that most pixels have several that are largest.
    probabilities = rng.integers(0, 4, (2, 97, 131, num_classes)).astype(np.float32)
    given = probabilities.copy()
    np.testing.assert_array_equal(classes(probabilities), given.argmax(axis=-1))
    np.testing.assert_array_equal(probabilities, given)
    np.testing.assert_array_equal(classes(given[:1, :1, :1]), given[:1, :1, :1].argmax(axis=-1))
    np.testing.assert_array_equal(probabilities, given)


def test_classes_of_a_gpu_are_found_there(monkeypatch):
    probabilities = np.random.default_rng(0).random((1, 9, 7, 5), np.float32)
    expected = classes(probabilities)
    monkeypatch.setattr(scoring, "on_gpu", lambda: True)
    monkeypatch.setattr(scoring, "_largest", None)
    found = classes(keras.ops.convert_to_tensor(probabilities))
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, expected)
