"""A small model to export, and checks of its exports."""

import numpy as np

from dilated_affinity.models.deeplab import DeepLabV3Plus
from helpers import tiny  # noqa: F401 - the backbone "tiny"

RATES = ((2, 4),)
SETTINGS = {"iterations": 3, "self_weight": 4.0, "mu": 20.0}
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 97, 131, 3)).astype("uint8")
IMAGE = IMAGES[0, :40, :50]
"""The image with which an export is checked; `IMAGES` have other sizes."""


def small_model(rates=RATES, **options):
    return decisive(DeepLabV3Plus(5, rates, "tiny", weights=None, filters=8, **options))


def decisive(model):
    """Sets the heads' weights so that logits are not all near 0."""
    for name in ("semantic_logits", "affinity_logits"):
        kernel = model.get_layer(name).kernel
        kernel.assign(kernel * 100)
    return model


def assert_agrees(received, expected):
    assert set(received) == set(expected)
    for name, value in expected.items():
        assert received[name].dtype == np.asarray(value).dtype
        if name == "labels":
            np.testing.assert_array_equal(received[name], value)
        else:
            np.testing.assert_allclose(received[name], value, atol=1e-4)
