import math

import keras
import numpy as np
import pytest
from helpers import (
    reference,
    tiny,  # noqa: F401 - the backbone "tiny"
)

from dilated_affinity.errors import ConfigError
from dilated_affinity.inference.multi_view import MultiScale, SlidingWindow, window_starts
from dilated_affinity.inference.network import logits_fn
from dilated_affinity.inference.views import Views
from dilated_affinity.models.deeplab import DeepLabV3Plus

RATES = ((2, 2), (1, 3), (3, 1))
OFFSETS = reference.offsets(RATES)


@pytest.fixture(scope="module")
def convolution():
    """A network with a small field of view; both heads are random."""
    keras.utils.set_random_seed(1)
    images = keras.Input((None, None, 3), dtype="uint8")
    features = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(images)
    heads = {"semantic": 4, "affinity": len(OFFSETS)}
    return keras.Model(
        images,
        {
            head: keras.layers.Conv2D(channels, 3, padding="same")(features)
            for head, channels in heads.items()
        },
    )


@pytest.fixture(scope="module")
def pixelwise():
    """A network that looks at each pixel alone; no affinity."""
    keras.utils.set_random_seed(2)
    images = keras.Input((None, None, 3), dtype="uint8")
    semantic = keras.layers.Conv2D(4, 1)(keras.layers.Rescaling(1 / 50)(images))
    return keras.Model(images, {"semantic": semantic})


def random_image(*size):
    return np.random.default_rng(0).integers(0, 256, (1, *size, 3)).astype(np.uint8)


def knowing(images):
    """A network that reads the labels in the image, and is wrong about pairs that leave it."""
    labels = np.asarray(images)[0, ..., 0]
    targets = reference.affinity_targets(labels, RATES)
    affinity = np.where(targets == 1, 4.0, -4.0).astype(np.float32)
    semantic = np.eye(4, dtype=np.float32)[np.minimum(labels, 3)] * 3
    return {"semantic": semantic[None], "affinity": affinity[None]}


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def sigmoid(logits):
    return 1 / (1 + np.exp(-np.asarray(logits, np.float64)))


def resized(image, size):
    """Bilinear interpolation of (h, w, c) between the centres of pixels, weight by weight."""

    def weights(source, target):
        matrix = np.zeros((target, source))
        for position in range(target):
            center = min(max((position + 0.5) * source / target - 0.5, 0), source - 1)
            low = math.floor(center)
            matrix[position, low] += 1 - (center - low)
            matrix[position, min(low + 1, source - 1)] += center - low
        return matrix

    rows, columns = weights(image.shape[0], size[0]), weights(image.shape[1], size[1])
    return np.einsum("yh,xw,hwc->yxc", rows, columns, image.astype(np.float64))


def test_scales_and_mirror_images_are_averaged(convolution):
    # Weights of interpolation that float32 holds exactly: pixels halfway between two values.
    image, scales = random_image(14, 18), (0.5, 1.0, 2.0)
    semantic = []
    for scale in scales:
        size = [round(side * scale) for side in image.shape[1:3]]
        seen = np.round(resized(image[0], size)).astype(np.uint8)
        for mirror in (1, -1):
            logits = np.asarray(convolution(seen[None, :, ::mirror])["semantic"])[0, :, ::mirror]
            semantic.append(softmax(resized(logits, image.shape[1:3])))
    straight = sigmoid(convolution(image)["affinity"])[0]
    mirrored = sigmoid(convolution(image[:, :, ::-1])["affinity"])[0, :, ::-1]
    affinity = np.zeros_like(straight)
    for channel, (dy, dx) in enumerate(OFFSETS):
        rate = slice(8 * (channel // 8), 8 * (channel // 8) + 8)
        there = rate.start + OFFSETS[rate].index((dy, -dx))
        affinity[..., channel] = (straight[..., channel] + mirrored[..., there]) / 2

    logits = MultiScale(convolution, scales, flip=True, rates=RATES)(image)
    np.testing.assert_allclose(
        softmax(np.asarray(logits["semantic"])[0]), np.mean(semantic, axis=0), atol=1e-5
    )
    np.testing.assert_allclose(sigmoid(logits["affinity"])[0], affinity, atol=1e-5)


def test_mirrored_neighbours_are_exchanged():
    """What a network knows exactly is the same seen in a mirror."""
    labels = reference.random_labels(0, (12, 15), void_share=0)
    image = np.repeat(labels[None, ..., None], 3, axis=-1)
    expected = knowing(image)
    logits = MultiScale(knowing, (1.0,), flip=True, rates=RATES)(image)
    for head in expected:
        np.testing.assert_allclose(
            logits[head] - np.max(logits[head], axis=-1, keepdims=True),
            expected[head] - expected[head].max(axis=-1, keepdims=True),
            atol=1e-4,
        )


def test_affinity_is_that_of_the_original_scale_alone(convolution):
    image = random_image(14, 19)
    logits = MultiScale(convolution, (0.5, 2.0), flip=False, rates=RATES)(image)
    np.testing.assert_allclose(logits["affinity"], convolution(image)["affinity"], atol=1e-5)
    without = MultiScale(convolution, (0.5, 2.0), flip=False, rates=None)(image)
    assert set(without) == {"semantic"}
    np.testing.assert_array_equal(without["semantic"], logits["semantic"])


def test_logits_of_any_size_stay_finite():
    def network(images):
        shape = (*images.shape[:3], 1)
        return {
            "semantic": np.tile(np.float32([-300, 0, 300]), shape),
            "affinity": np.tile(np.float32([-300, -50, 0, 50, 300, 1, -1, 9]), shape),
        }

    logits = MultiScale(network, (1.0,), flip=True, rates=((1, 1),))(random_image(3, 4))
    assert all(np.isfinite(values).all() for values in logits.values())
    np.testing.assert_allclose(
        softmax(np.asarray(logits["semantic"]))[0, 0, 0], [0, 0, 1], atol=1e-30
    )


@pytest.mark.parametrize("size", [(40, 70), (12, 70), (40, 16), (17, 16)])
def test_windows_of_a_pixelwise_network_give_the_whole_image(pixelwise, size):
    image = random_image(*size)
    logits = SlidingWindow(pixelwise, 16, None)(image)
    expected = np.asarray(pixelwise(image)["semantic"])
    np.testing.assert_allclose(
        softmax(np.asarray(logits["semantic"])), softmax(expected), atol=1e-6
    )


def test_a_pair_counts_only_in_windows_with_both_pixels():
    labels = reference.random_labels(3, (31, 40), void_share=0)
    image = np.repeat(labels[None, ..., None], 3, axis=-1)
    logits = SlidingWindow(knowing, 12, RATES)(image)
    np.testing.assert_allclose(logits["affinity"], knowing(image)["affinity"], atol=1e-3)


def test_overlapping_windows_are_averaged_by_their_number():
    seen, positions = [], np.zeros((1, 20, 29, 3), np.uint8)
    positions[0, ..., 0], positions[0, ..., 1] = np.indices((20, 29))

    def network(images):
        seen.append((int(images[0, 0, 0, 0]), int(images[0, 0, 0, 1]), images.shape[1:3]))
        constant = np.float32([len(seen), -2.0, 0.5])
        return {"semantic": np.tile(constant, (*images.shape[:3], 1))}

    logits = SlidingWindow(network, 9, None)(positions)
    assert len(seen) > 6 and {size for _, _, size in seen} == {(9, 9)}
    for y, x in np.ndindex(20, 29):
        holding = [
            softmax(np.array([number + 1, -2.0, 0.5]))
            for number, (top, left, _) in enumerate(seen)
            if top <= y < top + 9 and left <= x < left + 9
        ]
        np.testing.assert_allclose(
            softmax(np.asarray(logits["semantic"])[0, y, x]), np.mean(holding, axis=0), atol=1e-6
        )


@pytest.mark.parametrize(("size", "window"), [(1024, 769), (2048, 769), (770, 769), (9, 4), (5, 1)])
def test_windows_cover_the_side_and_overlap_by_a_third(size, window):
    starts = window_starts(size, window)
    assert starts[0] == 0 and starts[-1] == size - window
    steps = np.diff(starts)
    assert steps.min() > 0 and steps.max() <= window - window // 3


def test_an_image_no_larger_than_the_window_is_not_cut():
    image, seen = random_image(14, 19), []

    def network(images):
        seen.append(images)
        return "logits"

    assert SlidingWindow(network, 19, RATES)(image) == "logits" and seen[0] is image


def test_combined_views_are_traced_once():
    model = DeepLabV3Plus(3, RATES, "tiny", 16, weights=None, filters=8)
    traced = []
    call = model.call

    def counted(*args, **kwargs):
        traced.append(1)
        return call(*args, **kwargs)

    model.call = counted
    predict = logits_fn(model, Views((0.5, 1.0, 1.3), flip=True, window=20))
    for size in ((33, 41), (33, 33), (25, 60), (7, 9)):
        logits = predict(random_image(*size))
        assert logits["semantic"].shape == (1, *size, 3)
        assert logits["affinity"].shape == (1, *size, 24)
    assert len(traced) == 1


def test_default_views_do_not_change_the_network():
    model = DeepLabV3Plus(3, RATES, "tiny", 16, weights=None, filters=8)
    image = random_image(33, 41)
    plain, same = (
        logits_fn(model)(image),
        logits_fn(model, Views(scales=(1,), flip=False, window=41))(image),
    )
    for head in plain:
        np.testing.assert_array_equal(plain[head], same[head])


@pytest.mark.parametrize("scales", [(), (0.0,), (-1.0,), (1.0, 1.0), (float("nan"),), 1.0, "large"])
def test_invalid_scales_are_refused(convolution, scales):
    with pytest.raises(ConfigError, match="scales must be .*Received"):
        MultiScale(convolution, scales, False, RATES)


@pytest.mark.parametrize("window", [0, -3, 7.5, True])
def test_invalid_windows_are_refused(convolution, window):
    with pytest.raises(ConfigError, match="window must be .*Received"):
        SlidingWindow(convolution, window, RATES)
