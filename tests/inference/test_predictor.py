import keras
import numpy as np
from helpers import tiny  # noqa: F401 - the backbone "tiny"

from dilated_affinity.affinity.affinities import steep_sigmoid
from dilated_affinity.affinity.propagation import propagate
from dilated_affinity.inference.model import inference_model
from dilated_affinity.inference.network import logits_fn
from dilated_affinity.inference.predictor import Predictor
from dilated_affinity.inference.views import Views
from dilated_affinity.models.deeplab import DeepLabV3Plus

RATES = ((2, 2), (2, 4), (4, 2))


def test_the_inference_model_is_network_then_softmax_then_propagation(model, images):
    outputs = inference_model(model, iterations=4, self_weight=3.0, mu=5.0)(images)
    logits = model(images.astype("float32"))
    expected = propagate(
        keras.ops.softmax(logits["semantic"]),
        steep_sigmoid(logits["affinity"], 5.0),
        RATES,
        4,
        3.0,
    )
    np.testing.assert_allclose(outputs["probabilities"], expected, atol=1e-5)
    labels = np.asarray(outputs["labels"])
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, np.argmax(outputs["probabilities"], axis=-1))
    np.testing.assert_allclose(
        outputs["affinity"], keras.ops.sigmoid(logits["affinity"]), atol=1e-6
    )


def test_a_model_without_affinity_gives_labels_and_probabilities(images):
    plain = DeepLabV3Plus(5, None, "mobilenet_v2_0.35", weights=None, filters=8)
    assert set(inference_model(plain)(images)) == {"labels", "probabilities"}


def test_the_predictor_agrees_with_the_inference_model_at_every_size(model, images):
    whole = inference_model(model, iterations=3)
    predict = Predictor(model, iterations=3)
    for height, width in ((97, 131), (60, 131), (97, 100), (33, 40), (1, 1)):
        image = images[0, :height, :width]
        expected = np.asarray(whole(image[np.newaxis])["labels"])[0]
        prediction = predict(image)
        assert prediction.labels.shape == (height, width)
        assert (prediction.labels == expected).mean() > 0.999  # ties of float32
        assert prediction.affinity.shape == (height, width, 24)


def test_the_predictor_averages_over_views(images):
    model = DeepLabV3Plus(5, RATES, "tiny", weights=None, filters=8)
    views = Views(scales=(0.75, 1.0), flip=True, window=64)
    image = images[0, :60, :80]
    logits = logits_fn(model, views)(image[np.newaxis])
    refined = propagate(
        keras.ops.softmax(logits["semantic"]), steep_sigmoid(logits["affinity"]), RATES, 2
    )
    prediction = Predictor(model, iterations=2, views=views)(image)
    assert (prediction.labels == np.argmax(refined, axis=-1)[0]).mean() > 0.999  # ties of float32
    np.testing.assert_array_equal(prediction.unrefined, np.argmax(logits["semantic"], axis=-1)[0])
    assert (prediction.unrefined != Predictor(model, 2)(image).unrefined).any()
