"""Backbones with random weights, and the `keras.applications` models they are compared with.

Networks are cached: every test that uses one sets its weights first.
"""

import functools
import re

import keras
import numpy as np

from dilated_affinity.models import deeplab
from dilated_affinity.models.backbone import atrous

SMALL = "mobilenet_v2_0.35"

_APPLICATIONS = {
    SMALL: functools.partial(keras.applications.MobileNetV2, alpha=0.35),
    "mobilenet_v2": keras.applications.MobileNetV2,
    "resnet50": keras.applications.ResNet50,
    "resnet101": keras.applications.ResNet101,
}


@functools.cache
def application(name=SMALL, size=(None, None)):
    return _APPLICATIONS[name](input_shape=(*size, 3), include_top=False, weights=None)


@functools.cache
def _original(name):
    return deeplab.BACKBONES[name].application(weights=None, input_shape=(None, None, 3))


@functools.cache
def dilated(output_stride, name=SMALL, **options):
    return atrous(_original(name), deeplab.BACKBONES[name].padding, output_stride, **options)


def random_weights(model, seed=0):
    """Random weights and batch statistics that keep features from vanishing or exploding."""
    rng = np.random.default_rng(seed)
    weights = []
    for variable in model.weights:
        shape = tuple(variable.shape)
        if variable.name == "moving_variance":
            weights.append(rng.uniform(0.5, 1.5, shape))
        elif variable.name == "gamma":
            # Residuals are smaller than shortcuts, or features would double with every unit.
            scale = 0.15 if re.search("_(conv)?3_bn", variable.path) else 1.0
            weights.append(scale * rng.uniform(0.8, 1.6, shape))
        elif variable.name in ("beta", "bias", "moving_mean"):
            weights.append(rng.normal(0, 0.3, shape))
        else:
            taps = 9 if "depthwise" in variable.path else np.prod(shape[:-1])
            weights.append(rng.normal(0, (1.5 / taps) ** 0.5, shape))
    return [each.astype(np.float32) for each in weights]


weights_of = functools.cache(lambda name: random_weights(dilated(32, name)))
"""Cached, so that all tests of a backbone use the same random weights."""


def features_of(model, weights, images):
    model.set_weights(weights)
    features = np.asarray(model(images, training=False))
    assert 0.05 < features.std() < 10
    return features


def images(*size, batch=1):
    return np.random.default_rng(1).uniform(-1, 1, (batch, *size, 3)).astype(np.float32)
