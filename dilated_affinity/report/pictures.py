"""The pictures of the report as `data:` addresses, which make it a single file."""

import base64
import io

import numpy as np
from PIL import Image

from dilated_affinity.affinity.geometry import check_rates
from dilated_affinity.visualization import (
    ERROR_ENTRIES,
    REFINEMENT_ENTRIES,
    agreeing_neighbors,
    class_entries,
    color_counts,
    colorize,
    count_entries,
    error_map,
    overlay,
    refinement_map,
)

_WIDEST = 960
_NARROWEST = 360


def photograph(pixels) -> str:
    """Encodes a picture of many colours, uint8 (H, W, 3), as JPEG."""
    return _encoded(pixels, "JPEG", Image.Resampling.LANCZOS, quality=88)


def drawing(pixels) -> str:
    """Encodes a picture of few colours, uint8 (H, W, 3), as PNG."""
    return _encoded(pixels, "PNG", Image.Resampling.NEAREST, optimize=True)


def figure_source(figure) -> str:
    """Encodes a Matplotlib figure as SVG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    return _address("image/svg+xml", buffer.getvalue())


def compared(example, prediction, classes, refined):
    """Returns the two sides of a slider, each a caption and a picture.

    They show the prediction before and after refinement, or, without refinement, the image and the
    prediction.
    """
    image = example["image"]
    after = photograph(overlay(image, prediction.labels, classes))
    if not refined:
        return ("image", photograph(image)), ("prediction", after)
    before = photograph(overlay(image, prediction.unrefined, classes))
    return ("before", before), ("after refinement", after)


def panels(example, prediction, rates, classes, refined):
    """Yields caption, picture and legend entries of each panel below the slider."""
    image, label = example["image"], example["label"]
    yield "image", photograph(image), ()
    entries = class_entries(np.union1d(label, prediction.labels), classes)
    yield "ground truth", drawing(_enlarged(colorize(label, classes))), entries
    if refined:
        maps = label, prediction.unrefined, prediction.labels, classes.ignore_label
        changed = drawing(_enlarged(refinement_map(*maps)))
        yield "what refinement changed", changed, REFINEMENT_ENTRIES
    else:
        wrong = error_map(label, prediction.labels, classes.ignore_label)
        yield "errors", drawing(_enlarged(wrong)), ERROR_ENTRIES
    if rates is None:
        return
    vertical, horizontal = check_rates(rates)[0]
    counts = agreeing_neighbors(prediction.affinity)[..., 0]
    caption = f"neighbours of the same class at rate ({vertical},{horizontal})"
    yield caption, drawing(_enlarged(color_counts(counts))), count_entries()


def telling_pixel(affinity) -> tuple[int, int]:
    """Finds the (row, column) near the centre of the image whose affinities differ most."""
    height, width = affinity.shape[:2]
    inner = affinity[height // 4 : -(-3 * height // 4), width // 4 : -(-3 * width // 4)]
    spread = inner.std(axis=-1)
    row, column = np.unravel_index(spread.argmax(), spread.shape)
    return int(row + height // 4), int(column + width // 4)


def _enlarged(pixels):
    """Enlarges a small picture by an integer factor, so that browsers do not blur its edges."""
    times = -(-_NARROWEST // pixels.shape[1])
    return pixels.repeat(times, axis=0).repeat(times, axis=1)


def _encoded(pixels, file_format, resampling, **options):
    image = Image.fromarray(pixels)
    if image.width > _WIDEST:
        image = image.resize((_WIDEST, round(image.height * _WIDEST / image.width)), resampling)
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return _address(f"image/{file_format.lower()}", buffer.getvalue())


def _address(kind, content):
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
