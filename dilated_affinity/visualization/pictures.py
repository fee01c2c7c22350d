"""Pictures of labels, errors and affinity, as uint8 RGB arrays."""

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dilated_affinity.affinity.geometry import NEIGHBORS, check_rates
from dilated_affinity.datasets.classes import ClassTable

_GAP = 4

# Colours of Okabe and Ito, which differ for all kinds of colour vision.
BLUE = (0, 114, 178)
VERMILION = (213, 94, 0)
_RIGHT = (222, 222, 222)
_STILL_WRONG = (96, 96, 96)
_WHITE = (255, 255, 255)


def colorize(labels, classes: ClassTable) -> np.ndarray:
    """Draws a label map, uint8 (H, W), in the data set's colours, uint8 (H, W, 3)."""
    return classes.color_map()[labels]


def overlay(image, labels, classes: ClassTable, opacity=0.6) -> np.ndarray:
    """Blends the labels' colours with the image, and draws class boundaries in white.

    The image is converted to grey under the colours, so that they keep their hue. Pixels of a class
    named background are left unchanged.

    Args:
        image: uint8 (H, W, 3).
        labels: uint8 (H, W).
        classes: Colours of the classes.
        opacity: Opacity of the colours, 0 to 1. Defaults to 0.6.
    """
    grey = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=-1)
    mixed = cv2.addWeighted(grey, 1 - opacity, colorize(labels, classes), opacity, 0)
    background = np.isin(labels, _backgrounds(classes))
    mixed[background] = image[background]
    edges = np.zeros(labels.shape, bool)
    edges[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edges[1:] |= labels[1:] != labels[:-1]
    mixed[edges] = 255
    return mixed


def overlay_entries(labels, classes: ClassTable):
    """Legend entries for `overlay`: `class_entries` without a colour for the background."""
    names = {classes.names[index] for index in _backgrounds(classes)}
    return [
        (f"{name} (not coloured)", _WHITE) if name in names else (name, color)
        for name, color in class_entries(labels, classes)
    ]


def _backgrounds(classes):
    return [i for i, name in enumerate(classes.names) if name.strip().lower() == "background"]


def with_legend(picture, entries) -> np.ndarray:
    """Adds a legend below a picture: named patches of colour on white, in rows.

    Args:
        picture: uint8 (H, W, 3).
        entries: Pairs of name and (red, green, blue), such as those of `class_entries`.

    Returns:
        uint8 (H', W', 3), H' > H, and W' > W only if a single entry is wider than the picture.

    Example:

    >>> from dilated_affinity.datasets.classes import CAMVID
    >>> labels = np.array([[0, 3], [3, 255]], np.uint8)
    >>> class_entries(labels, CAMVID)
    [('sky', (128, 128, 128)), ('road', (128, 64, 128)), ('void', (0, 0, 0))]
    >>> with_legend(colorize(labels, CAMVID), class_entries(labels, CAMVID)).shape[2]
    3
    """
    font, patch, line = _lettering(picture.shape[0])
    widths = [patch + 6 + int(font.getlength(name)) + 14 for name, _ in entries]
    width = max([picture.shape[1], *widths])
    places, left, top = [], 0, 0
    for entry_width in widths:
        if left and left + entry_width > width:
            left, top = 0, top + line
        places.append((left, top))
        left += entry_width
    legend = Image.new("RGB", (width, top + line + _GAP), _WHITE)
    draw = ImageDraw.Draw(legend)
    for (name, color), (x, y) in zip(entries, places, strict=True):
        corner = (x + 2, y + _GAP + patch // 4)
        opposite = (corner[0] + patch - 1, corner[1] + patch - 1)
        draw.rectangle((corner, opposite), fill=tuple(map(int, color)), outline=(90, 90, 90))
        draw.text((corner[0] + patch + 5, corner[1] + patch / 2), name, "black", font, "lm")
    canvas = np.full((picture.shape[0], width, 3), 255, np.uint8)
    canvas[:, : picture.shape[1]] = picture
    return np.concatenate([canvas, np.asarray(legend)])


def class_entries(labels, classes: ClassTable):
    """Legend entries of the classes, and of void, that occur in the labels."""
    colors = classes.color_map()
    names = dict(enumerate(classes.names)) | {classes.ignore_label: "void"}
    return [
        (names[value], tuple(colors[value].tolist()))
        for value in np.unique(labels).tolist()
        if value in names
    ]


def error_map(label, predicted, ignore_label=255) -> np.ndarray:
    """Draws wrong pixels of a prediction in vermilion, correct ones in light grey, void in white.

    Args:
        label: Ground truth, uint8 (H, W).
        predicted: Predicted classes, uint8 (H, W).
        ignore_label: The void label. Defaults to 255.

    Returns:
        uint8 (H, W, 3).

    Example:

    >>> error_map(np.array([[0, 1, 255]]), np.array([[0, 0, 0]])).tolist()
    [[[222, 222, 222], [213, 94, 0], [255, 255, 255]]]
    """
    label, predicted = np.asarray(label), np.asarray(predicted)
    picture = np.where((label == predicted)[..., None], _RIGHT, VERMILION).astype(np.uint8)
    picture[label == ignore_label] = _WHITE
    return picture


ERROR_ENTRIES = (("wrong", VERMILION), ("right", _RIGHT), ("void", _WHITE))
"""The legend of `error_map`, for `with_legend`."""


def refinement_map(label, before, after, ignore_label=255) -> np.ndarray:
    """Draws the effect of refinement: corrected blue, worsened vermilion, still wrong dark grey.

    Args:
        label: Ground truth, uint8 (H, W).
        before: Classes predicted before propagation, uint8 (H, W).
        after: Classes predicted after propagation, uint8 (H, W).
        ignore_label: The void label. Defaults to 255.

    Returns:
        uint8 (H, W, 3); pixels correct before and after are light grey, void is white.

    Example:

    >>> label = np.zeros((1, 4), np.uint8)
    >>> picture = refinement_map(label, np.array([[0, 1, 0, 1]]), np.array([[0, 0, 1, 2]]))
    >>> picture[0].tolist()
    [[222, 222, 222], [0, 114, 178], [213, 94, 0], [96, 96, 96]]
    """
    right_before, right_after = label == before, label == after
    picture = np.empty((*np.shape(label), 3), np.uint8)
    picture[right_before & right_after] = _RIGHT
    picture[~right_before & right_after] = BLUE
    picture[right_before & ~right_after] = VERMILION
    picture[~right_before & ~right_after] = _STILL_WRONG
    picture[label == ignore_label] = _WHITE
    return picture


REFINEMENT_ENTRIES = (
    ("repaired", BLUE),
    ("harmed", VERMILION),
    ("wrong before and after", _STILL_WRONG),
    ("right", _RIGHT),
    ("void", _WHITE),
)
"""The legend of `refinement_map`, for `with_legend`."""


def error_picture(label, prediction, ignore_label=255) -> np.ndarray:
    """Draws wrong pixels of a prediction and the effect of any refinement, with a legend.

    Args:
        label: Ground truth, uint8 (H, W).
        prediction: `inference.Prediction` of the image.
        ignore_label: The void label. Defaults to 255.

    Returns:
        uint8 (H', W', 3).
    """
    if prediction.affinity is None:
        return with_legend(error_map(label, prediction.labels, ignore_label), ERROR_ENTRIES)
    changed = refinement_map(label, prediction.unrefined, prediction.labels, ignore_label)
    return with_legend(changed, REFINEMENT_ENTRIES)


def agreeing_neighbors(affinity) -> np.ndarray:
    """Counts the neighbours of each rate that are predicted to share the class.

    Args:
        affinity: (H, W, 8|R|) probabilities, "same" above 0.5; or targets, "same" where 1.

    Returns:
        uint8 (H, W, |R|), 0 to 8.
    """
    affinity = np.asarray(affinity)
    same = affinity == 1 if affinity.dtype.kind in "iu" else affinity > 0.5
    grouped = same.reshape(*affinity.shape[:2], -1, NEIGHBORS)
    return grouped.sum(axis=-1).astype(np.uint8)


def affinity_picture(affinity, rates) -> np.ndarray:
    """Draws the number of agreeing neighbours of each rate: dark for none, bright for all eight.

    Args:
        affinity: (H, W, 8|R|), as for `agreeing_neighbors`.
        rates: Text such as `"8,(12,24),16"`, or numbers and (vertical, horizontal) pairs.

    Returns:
        uint8 (H', W', 3): a captioned panel for each rate, side by side, above the colours of 0 to
        8.
    """
    counts = agreeing_neighbors(affinity)
    panels = [
        (f"rate ({vertical},{horizontal})", color_counts(counts[..., index]))
        for index, (vertical, horizontal) in enumerate(check_rates(rates))
    ]
    return with_legend(side_by_side(panels), count_entries())


def comparison(example, prediction, rates, classes: ClassTable) -> np.ndarray:
    """Draws the prediction before and after propagation, the affinity, and the ground truth.

    Args:
        example: `"image"` uint8 (H, W, 3) and `"label"` uint8 (H, W).
        prediction: `inference.Prediction` of the image.
        rates: (vertical, horizontal) pairs; None for a model without affinity.
        classes: Colours of the classes.

    Returns:
        uint8 (H', W', 3): captioned panels side by side, above a legend of the classes.
    """
    label = example["label"]
    panels = [
        ("image", example["image"]),
        ("prediction", colorize(prediction.unrefined, classes)),
    ]
    if rates is not None:
        vertical, horizontal = check_rates(rates)[0]
        counts = agreeing_neighbors(prediction.affinity)[..., 0]
        panels += [
            (f"affinity, rate ({vertical},{horizontal})", color_counts(counts)),
            ("refined", colorize(prediction.labels, classes)),
        ]
    panels.append(("ground truth", colorize(label, classes)))
    shown = np.concatenate([label, prediction.unrefined, prediction.labels])
    return with_legend(side_by_side(panels), class_entries(shown, classes))


def color_counts(counts) -> np.ndarray:
    """Draws counts 0 to 8, uint8 (H, W), in a perceptually uniform colour map (viridis)."""
    scaled = (counts.astype(np.float32) * (255 / NEIGHBORS)).astype(np.uint8)
    return cv2.applyColorMap(scaled, cv2.COLORMAP_VIRIDIS)[..., ::-1]


def count_entries():
    """Legend entries for `color_counts`."""
    colors = color_counts(np.arange(NEIGHBORS + 1, dtype=np.uint8)[np.newaxis])[0]
    names = [*map(str, range(NEIGHBORS)), f"{NEIGHBORS} neighbours alike"]
    return [(name, tuple(color)) for name, color in zip(names, colors.tolist(), strict=True)]


def side_by_side(panels) -> np.ndarray:
    """Draws captioned pictures of one height in a row, on white.

    Args:
        panels: Pairs of caption and uint8 (H, W, 3).

    Returns:
        uint8 (H', W', 3).
    """
    columns = []
    for caption, picture in panels:
        font, _, line = _lettering(picture.shape[0])
        strip = Image.new("RGB", (picture.shape[1], line), _WHITE)
        ImageDraw.Draw(strip).text((2, line / 2), caption, "black", font, "lm")
        gap = np.full((line + picture.shape[0], _GAP, 3), 255, np.uint8)
        columns += [gap, np.concatenate([np.asarray(strip), picture])]
    return np.concatenate(columns[1:], axis=1)


def _lettering(height):
    """Font, its size and the line height, larger for pictures that are shown at reduced size."""
    size = max(13, height // 38)
    return ImageFont.load_default(size), size, size * 22 // 13
