"""Tests that invalid input is refused with one line that shows the received value."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import tiny  # noqa: F401 - the backbone "tiny"

from dilated_affinity.affinity.early_stopping import (
    EarlyStoppingPropagation,
    propagate_until_stable,
)
from dilated_affinity.affinity.propagation import AffinityPropagation, propagate
from dilated_affinity.errors import ConfigError
from dilated_affinity.inference.model import inference_model
from dilated_affinity.inference.predictor import Predictor
from dilated_affinity.models.deeplab import DeepLabV3Plus

RATES = ((1, 1),)


def layer(kind):
    # The layers take logits, and no rates.
    return lambda probabilities, affinities, rates, valid_mask=None: kind(rates)(
        [probabilities, affinities], valid_mask=valid_mask
    )


WAYS = {
    "propagate": propagate,
    "propagate_until_stable": propagate_until_stable,
    "AffinityPropagation": layer(AffinityPropagation),
    "EarlyStoppingPropagation": layer(EarlyStoppingPropagation),
}
each_way = pytest.mark.parametrize("refine", WAYS.values(), ids=WAYS)


@pytest.fixture
def inputs():
    return np.full((2, 4, 5, 3), 1 / 3, np.float32), np.ones((2, 4, 5, 8), np.float32)


def refused(refine, *arguments, match, **options):
    with pytest.raises(ConfigError, match=match) as error:
        refine(*arguments, **options)
    # Keras appends lines to the messages of errors in layers.
    assert "Received: " in str(error.value)


@pytest.mark.parametrize("refine", [propagate, propagate_until_stable])
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("dtype", ["uint8", "int32", "bool"])
def test_integer_values_are_refused(refine, inputs, which, dtype):
    arguments = list(inputs)
    arguments[which] = arguments[which].astype(dtype)
    name = ("probabilities", "affinities")[which]
    refused(refine, *arguments, RATES, match=f"{name} must be floating.*Received: dtype {dtype}")
    arguments[which] = tf.constant(arguments[which])
    refused(refine, *arguments, RATES, match=f"{name} must be floating.*Received: dtype {dtype}")


def test_targets_passed_as_affinities(inputs):
    targets = np.full(inputs[1].shape, 255, np.uint8)
    refused(propagate, inputs[0], targets, RATES, match="affinities_from_targets")


@each_way
def test_mask_of_numbers_is_refused(refine, inputs):
    mask = np.full((2, 4, 5), 255, np.uint8)
    refused(refine, *inputs, RATES, match="valid_mask must be boolean", valid_mask=mask)


def test_mask_as_list(inputs):
    mask = np.random.default_rng(0).random((2, 4, 5)) < 0.5
    refined = [propagate(*inputs, RATES, valid_mask=each) for each in (mask, mask.tolist())]
    np.testing.assert_array_equal(*refined)


@each_way
def test_mismatched_rates_are_refused(refine, inputs):
    refused(refine, *inputs, ((1, 1), (2, 2)), match="must have 16 channels.*Received")


@each_way
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_values_are_refused(refine, inputs, which, value):
    inputs[which][1, 2, 3, 1] = value
    # The sigmoid of an infinite logit is finite.
    if value == np.inf and which and refine not in (propagate, propagate_until_stable):
        assert np.isfinite(refine(*inputs, RATES)).all()
        return
    refused(refine, *inputs, RATES, match="must be finite.* 1 pixels")


@each_way
def test_non_finite_values_outside_the_mask(refine, inputs):
    mask = np.ones((2, 4, 5), bool)
    mask[1, 2, 3] = False
    for values in inputs:
        values[1, 2, 3] = np.nan
    assert np.isfinite(np.asarray(refine(*inputs, RATES, valid_mask=mask))[mask]).all()


def test_values_are_not_checked_in_a_graph(inputs):
    inputs[0][0, 0, 0] = np.nan
    for compiled in (False, True):
        graph = tf.function(lambda *given: propagate(*given, RATES, 1), jit_compile=compiled)
        assert np.isnan(graph(*map(tf.constant, inputs))).any()


@pytest.mark.parametrize("iterations", [-1, 1.5, True])
def test_iterations(iterations, inputs):
    match = "iterations must be a whole number, at least 0. Received"
    refused(propagate, *inputs, RATES, iterations, match=match)
    refused(propagate_until_stable, *inputs, RATES, iterations, match=match)
    for kind in (AffinityPropagation, EarlyStoppingPropagation):
        refused(kind, RATES, iterations, match=match)


# Images.


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return DeepLabV3Plus(3, ((2, 2),), "tiny", weights=None, filters=8, separable=False)


@pytest.fixture(scope="module")
def whole(model):
    return inference_model(model, iterations=1)


IMAGES = {
    "float32": np.full((33, 41, 3), np.nan, "float32"),
    "int64": np.zeros((33, 41, 3), "int64"),
    "1 channel": np.zeros((33, 41, 1), "uint8"),
    "4 channels": np.zeros((33, 41, 4), "uint8"),
    "channels first": np.zeros((3, 33, 41), "uint8"),
    "grey": np.zeros((33, 41), "uint8"),
    "empty": np.zeros((0, 41, 3), "uint8"),
}


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_invalid_images_are_refused(model, whole, image):
    received = rf"Received: {image.dtype} of shape \({', '.join(map(str, image.shape))}\)"
    refused(
        Predictor(model, 1), image, match=rf"uint8 RGB of shape \(height, width, 3\). {received}"
    )
    batch = image[np.newaxis]
    received = received.replace(r"\(", r"\(1, ")
    match = rf"uint8 RGB of shape \(batch, height, width, 3\). {received}"
    refused(whole, batch, match=match)
    refused(whole, tf.constant(batch), match=match)
    if batch.size:
        with pytest.raises(ConfigError, match="uint8 RGB"):
            whole.predict(batch, verbose=0)


def test_list_as_image_is_refused(model, whole):
    refused(Predictor(model, 1), [[[0, 0, 0]]], match="Received: list")
    refused(whole, [[[[0, 0, 0]]]], match="Received: list")


def test_saved_inference_model_checks_images(whole, tmp_path):
    whole.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    refused(loaded, np.zeros((1, 33, 41, 3), "float32"), match="uint8 RGB.*Received: float32")


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ({"iterations": -1}, "iterations"),
        ({"self_weight": -1.0}, "self_weight"),
        ({"self_weight": float("nan")}, "self_weight"),
        ({"mu": 1.0}, "mu must be above 1"),
    ],
    ids=str,
)
@pytest.mark.parametrize("rates", [((2, 2),), None], ids=str)
def test_invalid_settings_of_predictor(model, setting, match, rates):
    if rates is None:
        model = DeepLabV3Plus(3, None, "tiny", weights=None, filters=8, separable=False)
    refused(inference_model, model, match=match, **setting)
    refused(Predictor, model, match=match, **setting)


def test_non_finite_logits_are_refused(model):
    model = keras.models.clone_model(model)
    model.get_layer("semantic_logits").bias.assign([np.nan, 0, 0])
    refused(Predictor(model, 1), np.zeros((33, 41, 3), "uint8"), match="must be finite")
