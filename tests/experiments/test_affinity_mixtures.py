import keras
import numpy as np
import pytest
from helpers.tiny import ListSource

from dilated_affinity.datasets.classes import ClassTable
from dilated_affinity.evaluation.evaluate import evaluate
from dilated_affinity.inference.refinement import Refinement
from dilated_affinity.models.deeplab import AffinityHead
from experiments.affinity_mixtures import COUNTS, SHARES, measure

RATES = ((1, 2), (2, 1))


@pytest.fixture
def source():
    rng = np.random.default_rng(3)
    examples = []
    for number, size in enumerate([(13, 17), (20, 9), (31, 31)]):
        label = np.repeat(rng.integers(0, 3, (size[0], 1)), size[1], axis=1).astype(np.uint8)
        label[rng.random(size) < 0.1] = 255
        noisy = np.where(label == 255, 0, label * 80) + rng.normal(0, 50, size)
        image = np.repeat(np.clip(noisy, 0, 255).astype(np.uint8)[..., None], 3, axis=-1)
        examples.append({"image": image, "label": label, "id": str(number)})
    return ListSource(examples, ClassTable(("sky", "road", "car"), ((0, 0, 0),) * 3))


@pytest.fixture
def model():
    images = keras.Input((None, None, 3))
    features = keras.layers.Rescaling(1 / 80)(images)
    heads = keras.layers.Conv2D(3, 1), AffinityHead(RATES, name="affinity_logits")
    return keras.Model(
        images, {name: h(features) for name, h in zip(("semantic", "affinity"), heads, strict=True)}
    )


def test_ends_are_the_predicted_and_the_true_affinity(model, source):
    refinement = Refinement(iterations=4, self_weight=2.0, mu=50.0, symmetric=True)
    first, *between, last = measure(model, source, RATES, refinement)
    assert (first["share"], last["share"]) == (0.0, 1.0)
    for row, affinity_source in ((first, "predicted"), (last, "ground_truth")):
        expected = evaluate(model, source, (0, 4), affinity_source, refinement)
        np.testing.assert_array_equal(row["mean_iou"], expected.mean_iou)
    assert [last[f"accuracy_n{count}"] for count in COUNTS] == [1.0, 1.0]
    for count in COUNTS:
        accuracies = [row[f"accuracy_n{count}"] for row in (first, *between, last)]
        wrong = 1 - accuracies[0]
        assert wrong > 0.1
        # Each error is kept with the probability 1 - share.
        np.testing.assert_allclose(
            1 - np.array(accuracies), wrong * (1 - np.array(SHARES)), atol=0.05
        )


def test_accuracy_is_that_of_the_logits(model, source):
    (first, *_) = measure(model, source, RATES, Refinement(iterations=1))
    expected = evaluate(model, source, (0,)).affinity_accuracy
    for count in COUNTS:
        assert first[f"accuracy_n{count}"] == pytest.approx(expected[:, count].mean())
