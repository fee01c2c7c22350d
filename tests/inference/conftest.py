"""A model with the affinity of several rates, and a batch of images of an odd size."""

import keras
import numpy as np
import pytest

from dilated_affinity.models.deeplab import DeepLabV3Plus

RATES = ((2, 2), (2, 4), (4, 2))


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    model = DeepLabV3Plus(21, RATES, "mobilenet_v2_0.35", weights=None, filters=16)
    for name in ("semantic_logits", "affinity_logits"):  # logits of some size, not all near 0
        model.get_layer(name).kernel.assign(model.get_layer(name).kernel * 100)
    return model


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 97, 131, 3)).astype("uint8")
