"""The methods of refinement, and that every way of using a model knows them."""

import dataclasses

import keras
import numpy as np
import pytest
from helpers import tiny  # noqa: F401 - the backbone "tiny"
from helpers.tiny import ListSource

from dilated_affinity.affinity.affinities import steep_sigmoid, symmetric_logits
from dilated_affinity.affinity.early_stopping import EarlyStop, propagate_until_stable
from dilated_affinity.affinity.propagation import propagate
from dilated_affinity.baselines.crf import DenseCRF
from dilated_affinity.config import Config
from dilated_affinity.datasets.classes import ClassTable
from dilated_affinity.errors import ConfigError
from dilated_affinity.evaluation.evaluate import evaluate
from dilated_affinity.evaluation.search import search_refinement
from dilated_affinity.inference.model import inference_model
from dilated_affinity.inference.network import ImageOutputs
from dilated_affinity.inference.predictor import Predictor
from dilated_affinity.inference.refinement import Refinement, as_refinement
from dilated_affinity.inference.refiners import METHODS, RENAMED, make_refiner
from dilated_affinity.models.deeplab import AffinityHead, DeepLabV3Plus

RATES = ((4, 4), (4, 8))
CLASSES = 4
PROPAGATIONS = tuple(name for name, method in METHODS.items() if method.propagates)
OFFSETS = {33: 0, 50: 1, 35: 2, 40: 3, 2: 1, 1: 0}
"""The first pixel on which a feature of stride 4 stands, for some sides of an image."""


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    model = DeepLabV3Plus(CLASSES, RATES, "tiny", weights=None, filters=8, separable=False)
    for name in ("semantic_logits", "affinity_logits"):  # logits of some size, not all near 0
        kernel = model.get_layer(name).kernel * 300
        # Of different signs for whatever features there are, so that no class is always first.
        model.get_layer(name).kernel.assign(kernel - keras.ops.mean(kernel, axis=-2, keepdims=True))
    return model


def prediction(size, seed=0):
    rng = np.random.default_rng(seed)
    exponentials = np.exp(rng.normal(0, 2, (*size, CLASSES)))
    probabilities = exponentials / exponentials.sum(-1, keepdims=True)
    affinities = rng.uniform(0, 1, (*size, 8 * len(RATES)))
    return probabilities.astype(np.float32), affinities.astype(np.float32)


def refined(model, refinement, size, iterations, shape=None, self_weight=6.0):
    probabilities, affinities = prediction(size)
    refine = make_refiner(model, as_refinement(refinement, self_weight=self_weight))
    outputs = image_outputs(probabilities, None, shape or size)
    outputs = dataclasses.replace(outputs, given=outputs.pad(affinities, np.nan))
    return [np.asarray(each) for each in refine(outputs, iterations)]


def image_outputs(probabilities, logits, shape):
    """Outputs for an image that no method here looks at."""
    batches = [None if each is None else each[np.newaxis] for each in (probabilities, logits)]
    return ImageOutputs(np.zeros((*probabilities.shape[:2], 3), np.uint8), *batches, shape)


@pytest.mark.parametrize("size", [(33, 50), (35, 40), (40, 33), (50, 35), (2, 1)], ids=str)
def test_decoder_stride_is_exact_at_decoder_features(model, size):
    results = refined(model, "propagation_decoder_stride", size, (1, 3))
    exact = refined(model, "propagation", size, (1, 3))
    top, left = (OFFSETS[side] for side in size)
    for result, expected in zip(results, exact, strict=True):
        assert result.shape == expected.shape == (1, *size, CLASSES)
        np.testing.assert_allclose(
            result[:, top::4, left::4], expected[:, top::4, left::4], atol=1e-5
        )
        np.testing.assert_allclose(result.sum(-1), 1, atol=1e-5)
    if min(size) > 4:
        assert np.abs(results[1] - exact[1]).max() > 0.1


def test_decoder_stride_interpolates_other_pixels(model):
    result = refined(model, "propagation_decoder_stride", (33, 50), (2,))[0][0]
    for row in (0, 8, 32):
        for column in range(CLASSES):
            known = np.arange(1, 50, 4)
            between = np.interp(np.arange(50), known, result[row, known, column])
            np.testing.assert_allclose(result[row, :, column], between, atol=1e-5)
    np.testing.assert_allclose(result[5], 0.75 * result[4] + 0.25 * result[8], atol=1e-5)


@pytest.mark.parametrize("refinement", PROPAGATIONS)
@pytest.mark.parametrize("size", [(33, 50), (35, 40)], ids=str)
def test_padding_changes_nothing(model, refinement, size):
    alone = refined(model, refinement, size, (0, 1, 4))
    padded = refined(model, refinement, size, (0, 1, 4), shape=(64, 64))
    for one, other in zip(alone, padded, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("refinement", PROPAGATIONS)
def test_no_iterations_change_nothing(model, refinement):
    unrefined = refined(model, refinement, (33, 50), (0,))[0]
    np.testing.assert_array_equal(unrefined[0], prediction((33, 50))[0])


def test_propagation_is_that_of_the_function(model):
    probabilities, affinities = (each[np.newaxis] for each in prediction((33, 50)))
    for count, result in zip((1, 4), refined(model, "propagation", (33, 50), (1, 4)), strict=True):
        expected = propagate(probabilities, affinities, RATES, count)
        np.testing.assert_allclose(result, expected, atol=1e-6)


def test_early_stop_restarts_for_each_number_of_iterations(model):
    probabilities, affinities = (each[np.newaxis] for each in prediction((33, 50)))
    stop = EarlyStop(2, 0.05)
    for count, result in zip((3, 9), refined(model, stop, (33, 50), (3, 9)), strict=True):
        expected = propagate_until_stable(probabilities, affinities, RATES, count, stop=stop)
        np.testing.assert_allclose(result, expected, atol=1e-6)


def test_none_leaves_predictions_alone(model):
    outputs = image_outputs(*prediction((33, 50)), (64, 64))
    results = list(make_refiner(model, Refinement(variant="none"))(outputs, (0, 3)))
    assert len(results) == 2 and all(each is outputs.probabilities for each in results)


@pytest.mark.parametrize("old", RENAMED)
def test_old_names_are_taken_with_a_warning(old):
    with pytest.warns(FutureWarning, match=f"{old} is called {RENAMED[old]} since"):
        assert as_refinement(old) == Refinement(variant=RENAMED[old])


# What a model does not allow.


def test_rates_must_be_multiples_of_the_stride():
    model = DeepLabV3Plus(CLASSES, ((4, 4), (4, 6)), "tiny", weights=None, filters=8)
    source = ListSource([], ClassTable(("a", "b"), ((0, 0, 0),) * 2))
    for use in (
        lambda: inference_model(model, refinement="propagation_decoder_stride"),
        lambda: Predictor(model, refinement="propagation_decoder_stride"),
        lambda: evaluate(model, source, refinement="propagation_decoder_stride"),
        lambda: search_refinement(model, source, refinement="propagation_decoder_stride"),
    ):
        with pytest.raises(ConfigError, match=r"multiples of 4. Received: rates=.*\(4, 6\)"):
            use()


def test_decoder_stride_needs_an_unrefined_deeplab():
    images = keras.Input((None, None, 3))
    semantic = keras.layers.Conv2D(4, 1)(images)
    affinity = AffinityHead(RATES, name="affinity")(images)
    strange = keras.Model(images, {"semantic": semantic, "affinity": affinity})
    inside = DeepLabV3Plus(
        CLASSES, RATES, "tiny", weights=None, filters=8, propagation_iterations=1
    )
    for model in (strange, inside):
        with pytest.raises(ConfigError, match="needs a model of DeepLabV3Plus.*Received"):
            Predictor(model, refinement="propagation_decoder_stride")
        with pytest.raises(ConfigError, match="needs a model of DeepLabV3Plus.*Received"):
            inference_model(model, refinement="propagation_decoder_stride")


@pytest.mark.parametrize("refinement", ["fast", 3, "Propagation"])
def test_unknown_methods_are_refused(model, refinement):
    with pytest.raises(ConfigError, match="refinement must be one of none, propagation, "):
        inference_model(model, refinement=refinement)
    with pytest.raises(ConfigError, match="refinement must be one of none, propagation, "):
        Predictor(model, refinement=refinement)


def test_a_model_without_affinity_is_not_refined():
    plain = DeepLabV3Plus(CLASSES, None, "tiny", weights=None, filters=8)
    image = np.zeros((33, 41, 3), np.uint8)
    for refinement in PROPAGATIONS[1:]:
        assert Predictor(plain, refinement=refinement)(image).labels.shape == (33, 41)
        assert "affinity" not in inference_model(plain, refinement=refinement)(image[np.newaxis])


# Every way of using a model.


@pytest.fixture(scope="module")
def image():
    blocks = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    return blocks.repeat(10, axis=0).repeat(10, axis=1)


STOP = EarlyStop(1, 0.05)


@pytest.mark.parametrize("refinement", ["propagation_decoder_stride", STOP], ids=str)
def test_inference_model_predictor_and_evaluation_agree(model, image, refinement):
    settings = {"self_weight": 2.0, "mu": 5.0, "threshold": 0.3, "symmetric": True}
    settings["refinement"] = refinement
    outputs = inference_model(model, 6, **settings)(image[np.newaxis])
    labels = np.asarray(outputs["labels"])[0]
    logits = model(image[np.newaxis].astype("float32"))
    outputs_of_image = ImageOutputs(
        image,
        keras.ops.softmax(logits["semantic"]),
        logits["affinity"],
        (70, 90),
        given=steep_sigmoid(symmetric_logits(logits["affinity"], RATES), 5.0, 0.3),
    )
    expected = make_refiner(model, as_refinement(refinement, self_weight=2.0))(
        outputs_of_image, (6,)
    )
    np.testing.assert_allclose(outputs["probabilities"], next(expected), atol=1e-4)
    np.testing.assert_allclose(
        outputs["affinity"], keras.ops.sigmoid(logits["affinity"] - 0.3), atol=1e-6
    )
    predicted = Predictor(model, 6, **settings)(image).labels
    assert (predicted == labels).mean() > 0.999  # ties of float32
    exact = Predictor(model, 6, **{**settings, "refinement": "propagation"})(image).labels
    assert (predicted != exact).mean() > 0.002

    classes = ClassTable(tuple("abcd"), ((0, 0, 0),) * 4)
    source = ListSource([{"image": image, "label": predicted, "id": "0"}], classes)
    accuracy = evaluate(model, source, (0, 6), **settings).pixel_accuracy
    assert accuracy[0] < 0.99 and accuracy[1] == 1


def test_a_search_uses_the_method(model, image):
    settings = {"self_weight": 2.0, "mu": 5.0, "symmetric": True}
    label = Predictor(model, 3, "propagation_decoder_stride", **settings)(image).labels
    source = ListSource(
        [{"image": image, "label": label, "id": "0"}], ClassTable(tuple("abcd"), ((0, 0, 0),) * 4)
    )
    found = search_refinement(
        model, source, (1, 3), (2.0, 6.0), (5.0,), (0.0,), refinement="propagation_decoder_stride"
    )
    assert found.best.iterations == 3 and found.best.self_weight == 2
    assert found.best_mean_iou == 1


def test_a_config_makes_the_refinement():
    assert Refinement.from_config(Config()) == Refinement()
    early = Config(refine="propagation_early_stop", stop_patience=3, stop_tolerance=0.0)
    expected = Refinement(variant="propagation_early_stop", stop=EarlyStop(3, 0.0))
    assert Refinement.from_config(early) == expected
    assert Refinement.from_config(Config(refine="none")) == Refinement(0, variant="none")
    crf = Refinement.from_config(Config(refine="crf", crf_iterations=3, crf_bilateral_rgb=5.0))
    assert (crf.iterations, crf.variant, crf.propagates) == (3, "crf", False)
    assert crf.crf == DenseCRF(iterations=3, bilateral_rgb=5.0)


def test_calibrated_settings_survive_a_config():
    refinement = Refinement(4, 2.0, 50.0, -0.5, True)
    config = Config(**refinement.to_config())
    assert Refinement.from_config(config) == refinement


def test_as_refinement_accepts_names_and_values():
    assert as_refinement() == Refinement()
    assert as_refinement("propagation_decoder_stride", mu=9.0) == Refinement(
        mu=9.0, variant="propagation_decoder_stride"
    )
    crf = DenseCRF(iterations=4)
    assert as_refinement(crf) == Refinement(4, variant="crf", crf=crf)
    stop = EarlyStop(2, 0.1)
    assert as_refinement(stop) == Refinement(variant="propagation_early_stop", stop=stop)
    assert as_refinement(Refinement(3), iterations=None, threshold=1.0) == Refinement(
        3, threshold=1.0
    )
    with pytest.raises(ConfigError, match="Received: tau"):
        as_refinement(tau=1.0)
    with pytest.raises(ConfigError, match="threshold must be finite. Received: threshold=nan"):
        as_refinement(threshold=float("nan"))


@pytest.mark.parametrize("symmetric", [False, True])
def test_padding_does_not_change_predicted_affinities(model, symmetric):
    """Where the image is padded, symmetry must not look beyond it."""
    probabilities, _ = prediction((33, 50))
    logits = np.random.default_rng(3).normal(0, 2, (33, 50, 16)).astype(np.float32)
    refine = make_refiner(model, Refinement(4, symmetric=symmetric, threshold=0.5))
    results = [
        np.asarray(next(refine(image_outputs(probabilities, logits, shape))))
        for shape in ((33, 50), (64, 64))
    ]
    np.testing.assert_allclose(*results, atol=1e-6)
    if symmetric:
        logits = np.asarray(symmetric_logits(logits[None], RATES))[0]
    expected = propagate(probabilities[None], steep_sigmoid(logits[None], 7.0, 0.5), RATES, 4)
    np.testing.assert_allclose(results[0], expected, atol=1e-6)
