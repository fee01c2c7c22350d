import json

import keras
import numpy as np
import pytest
from helpers.tiny import ListSource

from dilated_affinity.affinity.affinities import steep_sigmoid
from dilated_affinity.affinity.geometry import neighbor_offsets
from dilated_affinity.affinity.propagation import propagate
from dilated_affinity.affinity.targets import affinity_targets
from dilated_affinity.datasets.classes import ClassTable
from dilated_affinity.errors import ConfigError
from dilated_affinity.evaluation.evaluate import (
    Evaluation,
    Measurement,
    class_iou,
    evaluate,
    evaluate_all,
)
from dilated_affinity.evaluation.metrics import mean_over_classes
from dilated_affinity.evaluation.search import search_refinement
from dilated_affinity.inference.network import logits_fn
from dilated_affinity.inference.padding import pad_to
from dilated_affinity.inference.predictor import Predictor
from dilated_affinity.inference.refinement import Refinement
from dilated_affinity.inference.views import Views
from dilated_affinity.models.deeplab import AffinityHead, DeepLabV3Plus
from dilated_affinity.report import measure

RATES = ((1, 2), (2, 1))
CLASSES = ClassTable(("sky", "road", "car", "never"), ((0, 0, 0),) * 4)
SIZES = [(13, 17), (13, 17), (20, 9), (31, 31), (1, 1)]


@pytest.fixture(scope="module")
def source():
    rng = np.random.default_rng(3)
    examples = []
    for number, (height, width) in enumerate(SIZES):
        label = np.repeat(rng.integers(0, 3, (height, 1)), width, axis=1).astype(np.uint8)
        label[:, width // 2 :] = (label[:, width // 2 :] + 1) % 3
        label[rng.random((height, width)) < 0.1] = 255
        noisy = np.where(label == 255, 0, label * 80) + rng.normal(0, 30, label.shape)
        image = np.repeat(np.clip(noisy, 0, 255).astype(np.uint8)[..., None], 3, axis=-1)
        examples.append({"image": image, "label": label, "id": str(number)})
    return ListSource(examples, CLASSES)


@pytest.fixture(scope="module")
def model():
    """Predicts the class whose grey value, 80 times the class, is nearest; affinity is random."""
    keras.utils.set_random_seed(0)
    images = keras.Input((None, None, 3))
    features = keras.layers.Rescaling(1 / 80)(images)
    head = keras.layers.Conv2D(4, 1)
    semantic = head(features)
    affinity = AffinityHead(RATES, name="affinity_logits")(features)
    classes = np.arange(4.0)
    head.kernel.assign(np.tile(2 * classes / 3, (1, 1, 3, 1)))
    head.bias.assign(-(classes**2) - [0, 0, 0, 100])
    return keras.Model(images, {"semantic": semantic, "affinity": affinity})


def expected_confusions(model, source, iterations, ground_truth):
    """The same measurement, image by image without padding or accumulation tricks."""
    confusions = {count: np.zeros((4, 4), int) for count in iterations}
    for index in range(len(source)):
        label = source[index]["label"]
        logits = model(source[index]["image"][np.newaxis].astype("float32"))
        targets = affinity_targets(label[np.newaxis], RATES).numpy()
        affinities = (
            (targets == 1).astype("float32") if ground_truth else steep_sigmoid(logits["affinity"])
        )
        start = keras.ops.softmax(logits["semantic"])
        for count in iterations:
            refined = propagate(start, affinities, RATES, count)
            predicted = np.argmax(refined, axis=-1)[0]
            for truth, guess in zip(label.ravel(), predicted.ravel(), strict=True):
                if truth != 255:
                    confusions[count][truth, guess] += 1
    return confusions


def iou(confusion):
    union = confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    return np.where(confusion.sum(1) > 0, np.diag(confusion) / np.maximum(union, 1), np.nan)


@pytest.mark.parametrize("affinity_source", ["predicted", "ground_truth"])
def test_equals_image_by_image_measurement(model, source, affinity_source):
    iterations = (0, 1, 3)
    result = evaluate(model, source, iterations, affinity_source)
    expected = expected_confusions(model, source, iterations, affinity_source == "ground_truth")
    for row, count in enumerate(iterations):
        np.testing.assert_allclose(result.class_iou[row], iou(expected[count]), atol=1e-12)
        accuracy = np.trace(expected[count]) / expected[count].sum()
        assert result.pixel_accuracy[row] == pytest.approx(accuracy)


def test_several_measurements_equal_single_ones(model, source):
    measurements = [
        Measurement(Refinement(mu=50.0), (0, 2)),
        Measurement(affinity_source="ground_truth", iterations=(1, 3)),
        Measurement(Refinement(variant="none"), (0,)),
    ]
    together = evaluate_all(model, source, measurements)
    alone = [
        evaluate(model, source, (0, 2), mu=50.0),
        evaluate(model, source, (1, 3), "ground_truth"),
        evaluate(model, source, (0,), refinement="none"),
    ]
    assert [each.to_json() for each in together] == [each.to_json() for each in alone]
    assert len({each.mean_iou[-1] for each in alone}) == 3


def test_ground_truth_affinity_improves_noisy_labels(model, source):
    result = evaluate(model, source, (0, 1, 3, 6, 10), "ground_truth")
    assert result.mean_iou[1] > result.mean_iou[0] and result.mean_iou[4] > result.mean_iou[1]


def test_a_class_never_seen_is_left_out_and_named(model, source):
    result = evaluate(model, source, (0,))
    assert result.absent_classes == ("never",)
    assert result.mean_iou[0] == pytest.approx(np.nanmean(result.class_iou[0][:3]))
    assert "not in the labels, left out of the means: never" in result.table()


def test_means_are_over_the_classes_of_the_labels():
    ious = np.array([[0.6, 0.4, np.nan], [0.5, 0.0, np.nan]])
    names = ("sky", "road", "ghost")
    result = Evaluation(1, names, (0, 1), "predicted", ious, (0.5, 0.5), (0.5, 0.5))
    assert result.mean_iou == pytest.approx((0.5, 0.25))
    assert result.absent_classes == ("ghost",)


@pytest.fixture(scope="module")
def ghost(model):
    """The model, which now predicts "never" where that is not ruled out; no label is of it."""
    other = keras.models.clone_model(model)
    other.set_weights(model.get_weights())
    head = next(layer for layer in other.layers if type(layer) is keras.layers.Conv2D)
    head.bias.assign(head.bias + np.array([0, 0, 0, 100], "float32"))
    return other


def test_every_way_of_measuring_agrees_to_the_last_digit(ghost, source):
    """With classes predicted that no label has, whichever other columns there are."""
    counts = (0, 1, 10)
    predicted = [
        np.unique(Predictor(ghost, count)(source[index]["image"]).labels)
        for count in (0, 10)
        for index in range(len(source))
    ]
    assert 3 in np.concatenate(predicted)
    mean = evaluate(ghost, source, counts, mu=1000.0).mean_iou
    for row, count in enumerate(counts):
        assert evaluate(ghost, source, count, mu=1000.0).mean_iou == (mean[row],)
        report = measure(Predictor(ghost, count, mu=1000.0), source).mean_iou
        assert report == (mean[0], mean[row])
    single = {"self_weights": (6.0,), "mus": (1000.0,), "thresholds": (0.0,), "symmetric": (False,)}
    found = search_refinement(ghost, source, counts, **single)
    assert tuple(found.mean_iou[0]) == mean
    assert found.absent_classes == ("never",) and found.to_json()["absent_classes"] == ["never"]
    assert "left out of the means: never" in found.table()
    validated = class_iou(logits_fn(ghost), source)
    assert mean_over_classes(validated) == mean[0]
    confusion = expected_confusions(ghost, source, (0,), False)[0]
    np.testing.assert_allclose(mean[0], np.nanmean(iou(confusion)), rtol=1e-12)


def test_a_single_number_of_iterations(model, source):
    assert evaluate(model, source, 0).mean_iou == evaluate(model, source, (0,)).mean_iou


def test_affinity_accuracy_is_counted_over_existing_pairs(model, source):
    right = existing = 0
    for index in range(len(source)):
        label = source[index]["label"].astype(int)
        logits = np.asarray(model(source[index]["image"][np.newaxis].astype("float32"))["affinity"])
        for channel, (dy, dx) in enumerate(neighbor_offsets(RATES)[:8]):
            for y, x in np.ndindex(label.shape):
                if 0 <= y + dy < label.shape[0] and 0 <= x + dx < label.shape[1]:
                    pair = label[y, x], label[y + dy, x + dx]
                    if 255 not in pair:
                        existing += 1
                        right += (logits[0, y, x, channel] > 0) == (pair[0] == pair[1])
    result = evaluate(model, source, (0,))
    assert result.affinity_accuracy_by_rate[0] == pytest.approx(right / existing)


def test_class_iou_equals_zero_iterations(model, source):
    np.testing.assert_allclose(
        class_iou(logits_fn(model), source), evaluate(model, source, (0,)).class_iou[0]
    )


def test_json_holds_plain_numbers(model, source):
    content = json.loads(json.dumps(evaluate(model, source, (0, 1)).to_json(), allow_nan=False))
    assert content["images"] == len(SIZES) and content["class_iou"]["never"] == [None, None]
    assert len(content["affinity_accuracy"]["by_rate_and_count"]) == len(RATES)


@pytest.mark.parametrize("iterations", [(), (1, 0), (1, 1), (-1, 0)])
def test_invalid_iterations_are_refused(model, source, iterations):
    with pytest.raises(ConfigError, match="iterations"):
        evaluate(model, source, iterations)


def test_padding_does_not_affect_network_propagation_or_metrics(source):
    """Images after the first lie on a canvas that is larger; alone they are not padded."""
    model = DeepLabV3Plus(4, RATES, "tiny", 16, weights=None, filters=8)
    model.get_layer("semantic_logits").kernel.assign(30 * model.get_layer("semantic_logits").kernel)
    examples = sorted(
        (source[index] for index in range(len(source))), key=lambda e: -e["label"].size
    )
    together = evaluate(model, ListSource(examples, CLASSES), (0, 2))
    confusions = np.zeros((2, 4, 4), int)
    for example in examples:
        alone = expected_confusions(model, ListSource([example], CLASSES), (0, 2), False)
        confusions += np.stack([alone[0], alone[2]])
    for row, confusion in enumerate(confusions):
        np.testing.assert_allclose(together.class_iou[row], iou(confusion), atol=1e-12)

    image = examples[1]["image"]
    height, width = image.shape[:2]
    whole, padded = (
        logits_fn(model)(image[np.newaxis]),
        logits_fn(model)(pad_to(image, (32, 32), 127)),
    )
    difference = whole["semantic"] - padded["semantic"][:, :height, :width]
    assert np.abs(difference).max() > 1e-3, "a network that would not notice padding tests nothing"


def test_evaluation_averages_over_views(model, source):
    views = Views(scales=(0.5, 1.0), flip=True, window=12)
    predict = logits_fn(model, views)
    confusion = np.zeros((4, 4), int)
    for index in range(len(source)):
        label = source[index]["label"]
        predicted = np.argmax(predict(source[index]["image"][np.newaxis])["semantic"], axis=-1)[0]
        np.add.at(confusion, (label[label != 255], predicted[label != 255]), 1)
    result = evaluate(model, source, (0,), views=views)
    np.testing.assert_allclose(result.class_iou[0], iou(confusion), atol=1e-12)
    assert result.mean_iou != evaluate(model, source, (0,)).mean_iou


def test_a_model_without_affinity_is_evaluated_without_refinement(source):
    plain = DeepLabV3Plus(4, None, "mobilenet_v2_0.35", weights=None, filters=8)
    assert evaluate(plain, source, (0,)).to_json().get("affinity_accuracy") is None
    with pytest.raises(ConfigError, match="without affinity"):
        evaluate(plain, source, (0, 1))
