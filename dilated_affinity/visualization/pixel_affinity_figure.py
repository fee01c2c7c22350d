"""Figures of the affinity of a single pixel, as in Fig. 1(c)."""

import numpy as np
from matplotlib.colors import LinearSegmentedColormap

from dilated_affinity.affinity.geometry import neighbor_offsets
from dilated_affinity.errors import ConfigError
from dilated_affinity.visualization.figures import new_figure

# The paper's blue and yellow.
_DIFFERENT_TO_SAME = ("#0057b7", "#e0e0e0", "#ffd500")


def pixel_affinity_figure(image, affinity, rates, pixel):
    """Draws a pixel's neighbours, yellow for the same class and blue for another (Fig. 1(c)).

    Args:
        image: uint8 (H, W, 3).
        affinity: (H, W, 8|R|) probabilities that a neighbour shares the class; or targets, whose
            value 255 is not drawn.
        rates: Text such as `"8,(12,24),16"`, or numbers and (vertical, horizontal) pairs.
        pixel: (row, column).

    Returns:
        `matplotlib.figure.Figure` of the lightened surroundings of the pixel, which is marked by a
        cross. Neighbours outside the image are left out.

    Raises:
        ConfigError: If the pixel is outside the image.

    Example:

    >>> image, affinity = np.zeros((9, 9, 3), np.uint8), np.full((9, 9, 8), 0.75)
    >>> figure = pixel_affinity_figure(image, affinity, ((2, 2),), (0, 4))
    >>> len(figure.axes[0].collections[0].get_offsets())  # without those above the image
    5
    """
    figure = new_figure(5.6, 4.6)
    _draw_pixel_affinity(figure, figure.subplots(), image, affinity, rates, pixel)
    return figure


def explore_affinity(figure, image, affinity, rates):
    """Shows the affinity of each pixel on which the user clicks, as in Fig. 1(c).

    Args:
        figure: An empty, interactive `matplotlib.figure.Figure`, such as `plt.figure()` in a
            program that calls `plt.show()`, or in a notebook with `%matplotlib widget`.
        image: uint8 (H, W, 3).
        affinity: As for `pixel_affinity_figure`.
        rates: Text such as `"8,(12,24),16"`, or numbers and (vertical, horizontal) pairs.

    Example:

    >>> from matplotlib import pyplot as plt
    >>> image, affinity = np.zeros((9, 9, 3), np.uint8), np.full((9, 9, 8), 0.75)
    >>> explore_affinity(plt.figure(figsize=(9, 4)), image, affinity, ((2, 2),))
    >>> plt.show()  # doctest: +SKIP
    """
    map_figure, pixel_figure = figure.subfigures(1, 2)
    whole = map_figure.subplots()
    whole.imshow(image)
    whole.set_axis_off()
    whole.set_title("click on a pixel")
    marks = []

    def show(pixel):
        row, column = pixel
        while marks:
            marks.pop().remove()
        marks.extend(_mark_pixel(whole, pixel))
        pixel_figure.clear()
        axes = pixel_figure.subplots()
        _draw_pixel_affinity(pixel_figure, axes, image, affinity, rates, pixel)
        axes.set_title(f"row {row}, column {column}")
        figure.canvas.draw_idle()

    def clicked(event):
        # While the toolbar zooms or pans, clicks belong to it.
        toolbar = getattr(figure.canvas, "toolbar", None)
        if event.inaxes is not whole or getattr(toolbar, "mode", ""):
            return
        row, column = round(event.ydata), round(event.xdata)
        if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
            show((row, column))

    figure.canvas.mpl_connect("button_press_event", clicked)
    show(tuple(side // 2 for side in image.shape[:2]))


def _draw_pixel_affinity(figure, axes, image, affinity, rates, pixel):
    height, width = image.shape[:2]
    row, column = pixel
    if not (0 <= row < height and 0 <= column < width):
        raise ConfigError(
            f"pixel must be (row, column) inside the image of {height}x{width}. Received: {pixel}"
        )
    places = neighbor_offsets(rates) + [row, column]
    values = np.asarray(affinity[row, column], float)
    exists = ((places >= 0) & (places < [height, width])).all(axis=1) & (values <= 1)
    # Lightened, so that the points are visible on every image.
    axes.imshow((255 - (255 - image.astype(np.float32)) * 0.7).astype(np.uint8))
    points = axes.scatter(
        places[exists, 1],
        places[exists, 0],
        c=values[exists],
        cmap=LinearSegmentedColormap.from_list("affinity", _DIFFERENT_TO_SAME),
        vmin=0,
        vmax=1,
        s=70,
        edgecolors="black",
        linewidths=0.8,
        zorder=3,
    )
    _mark_pixel(axes, pixel)
    axes.set_axis_off()
    # Cropped to the surroundings, so that the points do not overlap.
    margin = 4 * np.abs(places - [row, column]).max()
    axes.set_xlim(max(column - margin, 0) - 0.5, min(column + margin, width - 1) + 0.5)
    axes.set_ylim(min(row + margin, height - 1) + 0.5, max(row - margin, 0) - 0.5)
    figure.colorbar(points, ax=axes, shrink=0.8, label="probability of the same class")


def _mark_pixel(axes, pixel):
    row, column = pixel
    return axes.plot(column, row, marker="P", color="white", markeredgecolor="black", markersize=12)
