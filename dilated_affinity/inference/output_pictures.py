"""The pictures that a prediction is written as, and its labels as an image."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from dilated_affinity.affinity.geometry import Rates
from dilated_affinity.datasets.classes import ClassTable
from dilated_affinity.inference.predictor import Prediction
from dilated_affinity.visualization import (
    affinity_picture,
    comparison,
    error_picture,
    overlay,
    overlay_entries,
    with_legend,
)


def output_pictures(
    prediction: Prediction,
    rates: Rates | None,
    classes: ClassTable,
    example: dict,
    label_ids: Sequence[int] | None = None,
) -> dict[str, Image.Image]:
    """Makes the pictures of a prediction by their kind, see `predict_files`.

    Args:
        prediction: `Prediction`.
        rates: The rates of its affinity; None without affinity.
        classes: Names and colours of the classes.
        example: The image and, where it is known, the label.
        label_ids: See `label_id_image`. Defaults to None: the labels are a palette image.
    """
    labels = (
        palette_image(prediction.labels, classes)
        if label_ids is None
        else label_id_image(prediction.labels, label_ids)
    )
    entries = overlay_entries(prediction.labels, classes)
    colored = overlay(example["image"], prediction.labels, classes)
    arrays = {"overlay": with_legend(colored, entries)}
    if prediction.affinity is not None:
        arrays["affinity"] = affinity_picture(prediction.affinity, rates)
    if prediction.probabilities is not None:
        arrays["confidence"] = confidence_picture(prediction.probabilities)
    if "label" in example:
        arrays["comparison"] = comparison(example, prediction, rates, classes)
        arrays["errors"] = error_picture(example["label"], prediction, classes.ignore_label)
    return {"labels": labels, **{kind: Image.fromarray(array) for kind, array in arrays.items()}}


def confidence_picture(probabilities) -> np.ndarray:
    """Returns 255 times the largest probability of each pixel, uint8 (H, W).

    Args:
        probabilities: float (H, W, C), adding up to 1.

    Example:

    >>> confidence_picture(np.array([[[1.0, 0.0], [0.4, 0.6]]])).tolist()
    [[255, 153]]
    """
    return np.rint(255 * np.clip(probabilities.max(axis=-1), 0, 1)).astype(np.uint8)


def palette_image(labels, classes: ClassTable) -> Image.Image:
    """Makes a palette image of labels, uint8 (H, W), in the colours of the data set."""
    image = Image.frombytes("P", labels.shape[::-1], labels.tobytes())
    image.putpalette(classes.color_map().ravel().tolist())
    return image


def label_id_image(labels, label_ids: Sequence[int]) -> Image.Image:
    """Makes a grey image of the ids that the data set's label files use.

    Args:
        labels: Classes, uint8 (H, W).
        label_ids: The id of each class, 0 to 255.

    Example:

    >>> from dilated_affinity.datasets.classes import CITYSCAPES_LABEL_IDS
    >>> image = label_id_image(np.array([[0, 18]], np.uint8), CITYSCAPES_LABEL_IDS)
    >>> image.mode, np.asarray(image).tolist()
    ('L', [[7, 33]])
    """
    return Image.fromarray(np.array(label_ids, np.uint8)[labels])
