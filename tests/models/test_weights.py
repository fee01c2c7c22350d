"""Tests of backbone weights from `keras.applications` and from files."""

import dataclasses

import keras
import numpy as np
import pytest
from helpers.networks import SMALL, application, weights_of

from dilated_affinity.errors import ConfigError, DataError
from dilated_affinity.models import deeplab
from dilated_affinity.models.deeplab import DeepLabV3Plus


def small_model(name=SMALL, **options):
    return DeepLabV3Plus(3, ((1, 1),), name, filters=8, **options)


def assert_backbone_has_weights_of(model, network, name=SMALL):
    layers = [layer for layer in model.get_layer(name).layers if layer.weights]
    assert len(layers) > 90
    for layer in layers:
        theirs = network.get_layer(layer.name).get_weights()
        for one, other in zip(layer.get_weights(), theirs, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", [SMALL, pytest.param("resnet50", marks=pytest.mark.slow)])
def test_load_weights_file(name, tmp_path):
    network = application(name)
    network.set_weights(weights_of(name))
    path = tmp_path / "backbone.weights.h5"
    network.save_weights(path)
    assert_backbone_has_weights_of(small_model(name, weights=path), network, name)


def replace_application(monkeypatch, imagenet):
    entry = deeplab.BACKBONES[SMALL]

    def build(weights, **options):
        return imagenet(**options) if weights else entry.application(weights=None, **options)

    monkeypatch.setitem(deeplab.BACKBONES, SMALL, dataclasses.replace(entry, application=build))


def test_imagenet_weights(monkeypatch):
    network = application()
    network.set_weights(weights_of(SMALL))
    replace_application(monkeypatch, lambda **_: network)
    assert_backbone_has_weights_of(small_model(weights="imagenet"), network)


def test_imagenet_weights_without_network(monkeypatch):
    def offline(**_):
        raise Exception("URL fetch failure: no route\nto host")

    replace_application(monkeypatch, offline)
    with pytest.raises(DataError, match=r"\.weights\.h5.*URL fetch failure") as caught:
        small_model(weights="imagenet")
    assert "\n" not in str(caught.value)


def test_missing_weights_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="none.weights.h5"):
        small_model(weights=tmp_path / "none.weights.h5")


@pytest.mark.parametrize("content", [b"", b"not hdf5"])
def test_damaged_weights_file_is_refused(tmp_path, content):
    path = tmp_path / "damaged.weights.h5"
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged.weights.h5"):
        small_model(weights=path)


def test_truncated_weights_file_is_refused(tmp_path):
    path = tmp_path / "whole.weights.h5"
    application().save_weights(path)
    cut = tmp_path / "cut.weights.h5"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="cut.weights.h5"):
        small_model(weights=cut)


def other_network(kind):
    if kind == "another width":
        return keras.applications.MobileNetV2(
            input_shape=(64, 64, 3), include_top=False, alpha=0.5, weights=None
        )
    if kind == "a part of the network":
        network = application()
        return keras.Model(network.input, network.get_layer("block_15_add").output)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])


@pytest.mark.filterwarnings("ignore:Skipping nested container")
@pytest.mark.parametrize("kind", ["another width", "another network", "a part of the network"])
def test_weights_of_another_network_are_refused(tmp_path, kind):
    path = tmp_path / "other.weights.h5"
    other_network(kind).save_weights(path)
    with pytest.raises(DataError, match="other.weights.h5") as caught:
        small_model(weights=path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("weights", ["model.keras", "Imagenet", ""])
def test_unsupported_weights_are_refused(weights):
    with pytest.raises(ConfigError, match="weights"):
        small_model(weights=weights)
