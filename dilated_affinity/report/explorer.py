"""The affinity explorer of the report: Fig. 1(c) for whichever pixel the reader chooses."""

import base64
import io
import json
from html import escape

import numpy as np
from PIL import Image

from dilated_affinity.affinity.geometry import neighbor_offsets

STRIDE = 4
"""The decoder's stride, at which affinity is predicted before it is resized to the image."""

_LARGEST_SIDE = 256
"""Most rows and columns of pixels to choose from; of larger images fewer are kept."""


def explorer(name: str, affinity: np.ndarray, rates, pixel: tuple[int, int]) -> str:
    """A figure in which a click or the arrow keys choose a pixel, and its affinities are shown.

    `page.js` gives it life, and the photograph of the panels before it.

    Args:
        name: The image's name.
        affinity: float (H, W, 8|R|) in [0, 1], the probability that a neighbour shares the class.
        rates: Dilation rates, as `check_rates` returns them.
        pixel: (row, column) to begin at.

    Returns:
        HTML that holds the affinities of every fourth pixel in 8 bits.
    """
    height, width, channels = affinity.shape
    stride = kept_stride(height, width)
    kept = affinity[stride // 2 :: stride, stride // 2 :: stride]
    rows, columns = kept.shape[:2]
    settings = {
        "height": height,
        "width": width,
        "rows": rows,
        "columns": columns,
        "stride": stride,
        "row": min(pixel[0] // stride, rows - 1),
        "column": min(pixel[1] // stride, columns - 1),
        "rates": [list(rate) for rate in rates],
        "offsets": neighbor_offsets(rates).tolist(),
    }
    # One channel below the other; the browser's own decoder of PNG reads them.
    planes = np.rint(255 * kept).astype(np.uint8).transpose(2, 0, 1).reshape(-1, columns)
    label = escape(f"Affinity of a pixel of {name}. The arrow keys choose it, with Shift faster.")
    return (
        f'<figure class="explore" tabindex="0" role="group" aria-label="{label}" '
        f'data-settings="{escape(json.dumps(settings))}">'
        f'<img class="values" alt="" src="{_png(planes)}">'
        '<div class="whole"><img alt=""><i></i></div><svg class="near" aria-hidden="true"></svg>'
        '<div class="grids"></div><figcaption><output aria-live="polite"></output> Yellow: of the '
        "same class, blue: of another. Click on a pixel, or press the arrow keys (with Shift ten "
        "at a time).</figcaption></figure>"
    )


def kept_stride(height: int, width: int) -> int:
    """Distance of the pixels whose affinities are kept.

    Example:

    >>> kept_stride(375, 500), kept_stride(1024, 2048)
    (4, 8)
    """
    stride = STRIDE
    while max(height, width) > _LARGEST_SIDE * stride:
        stride *= 2
    return stride


def _png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
