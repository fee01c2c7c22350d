"""A padded network under JAX against the same network on the images alone under TensorFlow.

The functions that run under JAX are those of this file, see `jax_processes`.
"""

import dataclasses
import sys

import keras
import numpy as np
import pytest
from helpers import jax_processes, networks, tiny
from helpers.jax_processes import needs_jax

from dilated_affinity.datasets.classes import ClassTable
from dilated_affinity.evaluation.evaluate import class_iou, evaluate
from dilated_affinity.inference.network import Network, logits_fn
from dilated_affinity.inference.padded_network import PaddedNetwork, can_be_padded
from dilated_affinity.inference.predictor import Predictor
from dilated_affinity.models import deeplab
from dilated_affinity.models.backbone import Backbone
from dilated_affinity.models.deeplab import DeepLabV3Plus

SIZES = ((60, 70), (33, 41), (64, 64), (47, 80), (1, 5), (62, 61))
"""Of all remainders by 4, and some by 16, where "same" padding places features differently."""

CLASSES = 3
RATES = ((1, 1), (2, 4))


def _symmetric(weights, input_shape):
    """Strided layers after padding layers, one of them a pool, as in ResNets."""
    assert weights is None
    features = images = keras.Input(input_shape)
    for level in range(5):
        features = keras.layers.ZeroPadding2D(1, name=f"pad{level}")(features)
        if level == 1:
            features = keras.layers.MaxPooling2D(3, 2, name="pool")(features)
        else:
            features = keras.layers.Conv2D(8, 3, 2, name=f"conv{level}")(features)
        features = keras.layers.BatchNormalization(name=f"bn{level}")(features)
        features = keras.layers.ReLU(name=f"relu{level}")(features)
    return keras.Model(images, features, name="tiny_symmetric")


deeplab.BACKBONES["tiny_symmetric"] = Backbone(
    application=_symmetric,
    preprocess=lambda: keras.layers.Rescaling(1 / 127.5, offset=-1.0),
    low_level="relu1",
    high_level="relu4",
    padding="symmetric",
)


def network(backbone, output_stride=16, **more):
    model = DeepLabV3Plus(CLASSES, RATES, backbone, output_stride, weights=None, filters=8, **more)
    model.set_weights(networks.random_weights(model))
    return model


def pictures(sizes):
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


def logits(*backbones):
    """Logits of each image, and the padded shapes."""
    results = {}
    for backbone in backbones:
        predict = logits_fn(network(backbone, output_stride=8))
        for image in pictures(SIZES):
            for head, values in predict(image[np.newaxis]).items():
                results[f"{backbone}/{image.shape[:2]}/{head}"] = values
    return results


def refined(backbone):
    """Refined probabilities and labels of each image."""
    predict = Predictor(network(backbone), iterations=3)
    results = {}
    for image in pictures(SIZES):
        prediction = predict(image)
        results[f"{image.shape[:2]}/probabilities"] = prediction.probabilities
        results[f"{image.shape[:2]}/affinity"] = prediction.affinity
    return results


def evaluated():
    """Measures of a split of images of all sizes."""
    model, source = network("tiny"), _source(SIZES)
    evaluation = evaluate(model, source, (0, 2))
    return {
        "validation": class_iou(logits_fn(model), source),
        "class_iou": evaluation.class_iou,
        "boundary_iou": np.array(evaluation.boundary_iou),
        "affinity_accuracy": evaluation.affinity_accuracy,
    }


def _source(sizes):
    rng = np.random.default_rng(2)
    examples = [
        {
            "image": image,
            "label": rng.integers(0, CLASSES, image.shape[:2], np.uint8),
            "id": str(number),
        }
        for number, image in enumerate(pictures(sizes))
    ]
    return tiny.ListSource(examples, ClassTable(tuple("abc"), ((0, 0, 0),) * CLASSES))


def compilations():
    """Compilations of further sizes, and for other weights, once the padded shapes are known."""
    from jax import monitoring

    from dilated_affinity.runtime.xla import trace_once

    seen = []
    monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: (
            seen.append(event) if event.endswith("backend_compile_duration") else None
        )
    )

    def counted(function, *arguments):
        before = len(seen)
        function(*arguments)
        return len(seen) - before

    model = network("tiny")
    predict, padded = Predictor(model, iterations=2), Network(logits_fn(model))
    by_size = trace_once(model, lambda images: model(images, training=False)["semantic"])
    first, others = SIZES[:3], ((50, 50), (57, 69), (20, 70), (11, 12))

    def for_each(function, sizes):
        for image in pictures(sizes):
            function(image)

    results = {"first": counted(for_each, predict, first)}
    results["others"] = counted(for_each, predict, others)
    results["network"] = counted(for_each, padded, first)
    results["other sizes"] = counted(for_each, padded, others)
    before = np.asarray(padded(pictures(others)[0]).probabilities)
    model.set_weights([2 * each for each in model.get_weights()])
    results["other weights"] = counted(for_each, padded, others)
    results["change"] = np.abs(padded(pictures(others)[0]).probabilities - before).max()
    results["by size"] = counted(for_each, lambda image: by_size(image[np.newaxis]), others)
    for name, measure in (
        ("validation", lambda source: class_iou(logits_fn(model), source)),
        ("evaluation", lambda source: evaluate(model, source, (0, 1))),
    ):
        four, eight = _source(others * 2), _source((*others, *SIZES[3:], (40, 41)))
        measure(four)
        results[f"{name} of four sizes"] = counted(measure, four)
        results[f"{name} of eight sizes"] = counted(measure, eight)
    return results


def under_jax(folder, function, *arguments):
    (results,) = jax_processes.run_under_jax(__file__, function, folder, *arguments)
    return results


def assert_equal(results, expected, tolerance=1e-5):
    assert set(results) == set(expected)
    for name, values in expected.items():
        values = np.asarray(values)
        assert results[name].shape == values.shape
        scale = max(np.nanmax(np.abs(values)), 1.0)
        np.testing.assert_allclose(
            results[name], values, rtol=0, atol=tolerance * scale, err_msg=name
        )


@needs_jax
def test_logits_equal_those_of_the_images_alone(tmp_path):
    backbones = "tiny", "tiny_symmetric"
    expected = logits(*backbones)
    assert len(expected) == 2 * 2 * len(SIZES)
    assert_equal(under_jax(tmp_path, "logits", *backbones), expected)


@needs_jax
@pytest.mark.slow
@pytest.mark.parametrize("backbone", [networks.SMALL, "resnet50", "resnet_v1_50_beta"])
def test_logits_of_real_backbones_equal_those_of_the_images_alone(tmp_path, backbone):
    assert_equal(under_jax(tmp_path, "logits", backbone), logits(backbone), tolerance=1e-4)


@needs_jax
def test_refined_probabilities_equal_those_of_the_images_alone(tmp_path):
    assert_equal(under_jax(tmp_path, "refined", "tiny"), refined("tiny"))


@needs_jax
def test_measures_equal_those_of_tensorflow(tmp_path):
    results, expected = under_jax(tmp_path, "evaluated"), evaluated()
    assert set(results) == set(expected)
    for name, values in expected.items():
        # A pixel of equal scores may fall to either class.
        np.testing.assert_allclose(results[name], values, atol=1e-3, err_msg=name)


@needs_jax
def test_further_sizes_and_other_weights_compile_nothing(tmp_path):
    counts = under_jax(tmp_path, "compilations")
    assert counts["first"] > 2
    assert counts["others"] == counts["other sizes"] == counts["other weights"] == 0
    assert counts["change"] > 1e-3
    assert counts["by size"] == 4
    for name in ("validation", "evaluation"):
        # A network of its own, compiled for the same padded shapes.
        assert counts[f"{name} of eight sizes"] == counts[f"{name} of four sizes"] > 0


def with_layer(layer, padding="same"):
    """A model whose backbone has one more layer."""

    def application(weights, input_shape):
        plain = deeplab.BACKBONES["tiny" if padding == "same" else "tiny_symmetric"].application
        plain = plain(weights=weights, input_shape=input_shape)
        images = keras.Input(input_shape)
        first, *others = (type(each).from_config(each.get_config()) for each in plain.layers[1:])
        features = first(images)
        for each in (layer, *others):
            features = each(features)
        return keras.Model(images, features, name="more")

    entry = dataclasses.replace(deeplab.BACKBONES["tiny"], application=application, padding=padding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(deeplab.BACKBONES, "more", entry)
        return DeepLabV3Plus(CLASSES, RATES, "more", weights=None, filters=8)


@pytest.mark.parametrize(
    "layer, padding, known",
    [
        (lambda: keras.layers.ReLU(), "same", True),
        (lambda: keras.layers.Conv2D(8, 3, padding="same"), "same", True),
        (lambda: keras.layers.Conv2D(8, 3, padding="same"), "symmetric", True),
        (lambda: keras.layers.Conv2D(8, 2, padding="same"), "same", False),
        (lambda: keras.layers.MaxPooling2D(3, 2, padding="same"), "same", False),
        (lambda: keras.layers.SeparableConv2D(8, 3, padding="same"), "same", False),
        (lambda: keras.layers.ZeroPadding2D(((0, 1), (0, 1))), "symmetric", False),
    ],
)
def test_a_network_is_padded_if_all_its_layers_are_known(layer, padding, known):
    assert can_be_padded(with_layer(layer(), padding)) == known


def test_a_network_that_propagates_is_not_padded():
    assert can_be_padded(DeepLabV3Plus(CLASSES, None, "tiny", weights=None, filters=8))
    assert not can_be_padded(network("tiny", propagation_iterations=1))


@needs_jax
def test_only_jax_pads_the_network():
    assert not isinstance(logits_fn(network("tiny")), PaddedNetwork)


if __name__ == "__main__":
    jax_processes.main(globals(), *sys.argv[1:])
