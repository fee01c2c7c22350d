"""Draws the images of the `shapes` data set; example i of a split depends on (split, i) only.

The shape determines the class; hue and texture are only correlated with it. Textures, noise,
occlusion, thin parts and objects similar in colour to their background cause errors of a small
network that dilated affinity can correct: holes and blobs inside objects.
"""

import colorsys
import math

import cv2
import numpy as np

from dilated_affinity.datasets.classes import IGNORE_LABEL, SHAPES

IMAGE_SIZE = 160
_SHAPE = (IMAGE_SIZE, IMAGE_SIZE)

# Part of every seed; increase it and the builder's VERSION when anything below changes.
_DRAWING = 1
_SPLIT_SEEDS = {"train": 0, "val": 1}

_SUBPIXEL_BITS = 4

# Hue in degrees around which most objects of a class are, and the frequency of each texture.
_TEXTURES = ("plain", "stripes", "checks", "noise", "dots")
_PRIORS = {
    "disc": (0, (3, 1, 1, 3, 2)),
    "triangle": (60, (3, 3, 1, 2, 1)),
    "square": (120, (2, 2, 4, 1, 1)),
    "star": (180, (3, 1, 1, 2, 3)),
    "ring": (240, (4, 1, 1, 3, 1)),
    "bar": (300, (6, 1, 1, 2, 0)),
}
_HUE_SPREAD = 22.0
_ANY_HUE = 0.1
_LOW_CONTRAST = 0.15


def draw_example(split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws one example.

    Args:
        split: `"train"` or `"val"`.
        index: The number of the example, at least 0, without limit.

    Returns:
        The image, uint8 of shape `(160, 160, 3)`, RGB, and the label, uint8 of shape
        `(160, 160)`: classes of `SHAPES`, and 255 on the outlines of objects.
    """
    rng = np.random.default_rng([_DRAWING, _SPLIT_SEEDS[split], index])
    image = _background(rng)
    label = np.zeros(_SHAPE, np.uint8)
    for _ in range(rng.integers(5, 10)):
        name = SHAPES.names[rng.integers(1, SHAPES.num_classes)]
        coverage = _coverage(name, rng)
        _paint(image, label, coverage, name, rng)
    return _photograph(image, rng), label


def _paint(image, label, coverage, name, rng) -> None:
    """Draws an object over image and label, in place."""
    rows, columns = (np.flatnonzero(coverage.any(axis)) for axis in (1, 0))
    if not rows.size:
        return
    # Only its bounding box is processed, with a margin of one pixel for the outline.
    window = tuple(slice(max(at[0] - 1, 0), at[-1] + 2) for at in (rows, columns))
    image, label, coverage = image[window], label[window], coverage[window]
    inside = coverage >= 0.5
    color = _object_color(name, rng)
    if inside.any() and rng.random() < _LOW_CONTRAST:
        # Similar in colour to the background.
        color += rng.uniform(0.4, 0.7) * (image[inside].mean(0) - color)
    weights = np.array(_PRIORS[name][1], float)
    surface = _texture(rng.choice(_TEXTURES, p=weights / weights.sum()), color, label.shape, rng)
    # Brighter on the side that faces the light.
    surface *= 1 + rng.uniform(0.0, 0.3) * _ramp(rng.uniform(0, 2 * math.pi), label.shape)
    image += coverage[..., None] * (surface - image)
    outline = cv2.dilate(inside.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool) & ~inside
    label[outline] = IGNORE_LABEL
    label[inside] = SHAPES.names.index(name)


def _object_color(name, rng) -> np.ndarray:
    hue = _PRIORS[name][0] + _HUE_SPREAD * rng.standard_normal()
    if rng.random() < _ANY_HUE:
        hue = rng.uniform(0, 360)
    return _rgb(hue, rng.uniform(0.5, 0.9), rng.uniform(0.5, 0.95))


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """Returns a colour in 0..255 as float32; hue in degrees."""
    rgb = colorsys.hsv_to_rgb((hue / 360.0) % 1.0, saturation, value)
    return np.array(rgb, np.float32) * 255


def _background(rng) -> np.ndarray:
    """Two or three textured regions of background, whose edges are not class boundaries."""
    hue = rng.uniform(0, 360)
    image = np.zeros((*_SHAPE, 3), np.float32)
    for region in range(rng.integers(2, 4)):
        hue += rng.uniform(-60, 60)
        color = _rgb(hue, rng.uniform(0.0, 0.3), rng.uniform(0.3, 0.85))
        surface = _texture(rng.choice(_TEXTURES), color, _SHAPE, rng)
        share = 1.0
        if region:
            border = _ramp(rng.uniform(0, 2 * math.pi), _SHAPE) + 0.5 * _noise(40, _SHAPE, rng)
            share = np.clip((border - rng.uniform(-0.5, 0.5)) * 30 + 0.5, 0, 1)
        image += share * (surface - image)
    return image


def _texture(kind: str, color: np.ndarray, shape: tuple[int, int], rng) -> np.ndarray:
    """Returns a pattern around a colour; float32, (*shape, 3)."""
    angle = rng.uniform(0, math.pi)
    wave = 2 * math.pi / rng.uniform(6, 18)
    y = np.arange(shape[0], dtype=np.float32)[:, None] * wave + rng.uniform(0, 2 * math.pi)
    x = np.arange(shape[1], dtype=np.float32)[None, :] * wave + rng.uniform(0, 2 * math.pi)
    u = math.cos(angle) * x + math.sin(angle) * y
    v = math.cos(angle) * y - math.sin(angle) * x
    if kind == "stripes":
        pattern = np.tanh(2 * np.sin(u))
    elif kind == "checks":
        pattern = np.tanh(3 * np.sin(u) * np.sin(v))
    elif kind == "dots":
        pattern = np.tanh(4 * (np.cos(u) + np.cos(v) - 0.8))
    elif kind == "noise":
        pattern = 1.3 * _noise(rng.uniform(4, 16), shape, rng)[..., 0]
    else:
        pattern = 0.4 * _noise(27, shape, rng)[..., 0]
    # Patterns alternate in hue as well as in brightness.
    strength = rng.uniform(0.15, 0.4)
    other = np.clip(color * (1 - strength) + rng.uniform(-25, 25, 3), 0, 255).astype(np.float32)
    mix = (0.5 + 0.5 * np.clip(pattern, -1, 1))[..., None]
    return other + mix * (color - other)


def _noise(cell: float, shape: tuple[int, int], rng) -> np.ndarray:
    """Smooth random values of unit deviation, one drawn every `cell` pixels; (*shape, 1)."""
    height, width = (math.ceil(side / cell) + 1 for side in shape)
    coarse = rng.standard_normal((height, width), np.float32)
    size = (round(width * cell), round(height * cell))
    return cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)[: shape[0], : shape[1], None]


def _ramp(angle: float, shape: tuple[int, int]) -> np.ndarray:
    """A plane through the centre that rises along `angle`, by 1 to each border; (*shape, 1)."""
    y, x = (np.linspace(-1, 1, side, dtype=np.float32) for side in shape)
    return (math.cos(angle) * x[None, :] + math.sin(angle) * y[:, None])[..., None]


def _photograph(scene: np.ndarray, rng) -> np.ndarray:
    """Lights the scene from one side, with a soft shadow, and adds blur and sensor noise."""
    slope = rng.uniform(0, 0.35) * _ramp(rng.uniform(0, 2 * math.pi), _SHAPE)
    light = rng.uniform(0.85, 1.15) + slope
    if rng.random() < 0.4:
        edge = _ramp(rng.uniform(0, 2 * math.pi), _SHAPE) + 0.3 * _noise(53, _SHAPE, rng)
        light *= 1 - rng.uniform(0.2, 0.45) / (1 + np.exp(-12 * edge))
    image = cv2.GaussianBlur(scene * light, (0, 0), rng.uniform(0.4, 0.9))
    image += rng.uniform(4, 12) * rng.standard_normal(image.shape, np.float32)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _coverage(name: str, rng) -> np.ndarray:
    """Returns the coverage of each pixel by an object of random position and size, 0 to 1."""
    center = rng.uniform(0.05 * IMAGE_SIZE, 0.95 * IMAGE_SIZE, 2)
    radius = rng.uniform(15, 38)
    turn = rng.uniform(0, 2 * math.pi)
    if name == "bar":
        length, width = rng.uniform(20, 60), rng.uniform(2.5, 4.5)
        corners = np.array([(1, 1), (1, -1), (-1, -1), (-1, 1)]) * (length, width)
        return _filled(center + _turned(corners, turn))
    if name == "square":
        corners = np.array([(1, 1), (1, -1), (-1, -1), (-1, 1)]) * (1, rng.uniform(0.75, 1))
        return _filled(center + _turned(0.85 * radius * corners, turn))
    if name == "triangle":
        angles = turn + np.array([0, 2, 4]) * math.pi / 3 + rng.uniform(-0.3, 0.3, 3)
        return _filled(center + 1.2 * radius * _circle_points(angles))
    if name == "star":
        angles = turn + np.arange(10) * math.pi / 5
        reach = np.where(np.arange(10) % 2, rng.uniform(0.4, 0.5), 1.2)
        return _filled(center + radius * reach[:, None] * _circle_points(angles))
    angles = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    oval = _turned(_circle_points(angles) * (1, rng.uniform(0.8, 1)), turn)
    if name == "disc":
        return _filled(center + radius * oval)
    thickness = rng.uniform(6, 11)
    return _filled(center + radius * oval) - _filled(center + (radius - thickness) * oval)


def _circle_points(angles: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(angles), np.sin(angles)], -1)


def _turned(points: np.ndarray, angle: float) -> np.ndarray:
    cos, sin = math.cos(angle), math.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])


def _filled(points: np.ndarray) -> np.ndarray:
    """Returns the coverage of a polygon, anti-aliased; float32, (H, W), 0 to 1."""
    canvas = np.zeros(_SHAPE, np.uint8)
    fixed = np.rint(points * 2**_SUBPIXEL_BITS).astype(np.int32)
    cv2.fillPoly(canvas, [fixed], 255, lineType=cv2.LINE_AA, shift=_SUBPIXEL_BITS)
    return canvas.astype(np.float32) / 255
