"""The views of an image."""

import pytest

from dilated_affinity.errors import ConfigError
from dilated_affinity.inference.views import Views


def test_the_default_is_the_image_as_it_is():
    assert Views() == Views(scales=[1], flip=False, window=0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"scales": ()},
        {"scales": (0.0,)},
        {"scales": (1.0, 1.0)},
        {"flip": 1},
        {"window": -1},
        {"window": 7.5},
        {"window": True},
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"{name} must be .*Received: {name}="):
        Views(**wrong)
