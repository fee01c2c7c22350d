"""Draws the paper's figures from records and predictions."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dilated_affinity.affinity.geometry import NEIGHBORS
from dilated_affinity.runtime.files import write_atomically
from dilated_affinity.visualization import colorize, figure_array, pixel_affinity_figure
from experiments.tables import Records

_PANELS = (
    ("sqrt-reweight", "weighting_sqrt_neighbor"),
    ("neighbor-reweight", "weighting_neighbor"),
)
_WEIGHTINGS = (
    ("baseline", "weighting_none"),
    ("signal-reweight", "weighting_signal"),
    *reversed(_PANELS),
)
_MARKERS = "osD^"


def save(figure: Figure, path: Path):
    """Writes a figure as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda aside: figure.savefig(aside, dpi=110))


def accuracy_figure(records: Records, dataset, scale) -> Figure:
    """Draws Fig. 4 from the runs of Table 1: two weightings by rate, then the mean of each."""
    figure = _new_figure(12.5, 3.6)
    panels = figure.subplots(1, 3, sharey=True)
    for axes, (title, variant) in zip(panels, _PANELS, strict=False):
        rates, accuracy = mean_accuracy(records, dataset, scale, variant)
        _lines(axes, title, "rate", zip(map(_rate_text, rates), accuracy, strict=True))
    lines = []
    for name, variant in _WEIGHTINGS:
        _, accuracy = mean_accuracy(records, dataset, scale, variant)
        if len(accuracy):
            lines.append((name, _nanmean(accuracy)))
    _lines(panels[-1], "mean over the rates", "weighting", lines)
    panels[0].set_ylabel("affinity accuracy, %")
    return figure


def mean_accuracy(records: Records, dataset, scale, variant):
    """Rates, and the mean accuracy (|R|, 9) in % over the seeds; both are empty without runs."""
    runs = records.runs(dataset, scale, variant)
    found = [run["evaluation"]["predicted"]["affinity_accuracy"] for run in runs.values()]
    if not found:
        return [], []
    accuracies = [np.array(each["by_rate_and_count"], float) for each in found]
    return found[0]["rates"], 100 * _nanmean(accuracies)


def affinity_example(image, label, plain, refined, rates, pixel, classes) -> Figure:
    """Draws Fig. 1 for one image.

    Args:
        image: uint8 (H, W, 3).
        label: uint8 (H, W).
        plain: `Prediction` of DeepLabv3+.
        refined: `Prediction` with affinity.
        rates: Rates of `refined`.
        pixel: (row, column) of the pixel whose affinity is shown.
        classes: The `ClassTable` with the colours.
    """
    affinity = figure_array(pixel_affinity_figure(image, refined.affinity, rates, pixel))
    pictures = {
        "image": image,
        "DeepLabv3+": colorize(plain.labels, classes),
        "affinity": affinity,
        "with dilated affinity": colorize(refined.labels, classes),
        "ground truth": colorize(label, classes),
    }
    figure = _new_figure(3.2 * len(pictures), 3.2)
    panels = figure.subplots(1, len(pictures))
    for axes, (title, picture) in zip(panels, pictures.items(), strict=True):
        axes.imshow(picture)
        axes.set_title(title)
        axes.set_axis_off()
        if title != "affinity":
            axes.plot(pixel[1], pixel[0], "+", color="white", markersize=12)
    return figure


def _lines(axes, title, legend, named):
    named = list(named)
    colors = matplotlib.colormaps["cividis"](np.linspace(0, 0.85, len(named)))
    for index, (name, values) in enumerate(named):
        marker = _MARKERS[index % len(_MARKERS)]
        axes.plot(range(NEIGHBORS + 1), values, color=colors[index], marker=marker, label=name)
    axes.set_title(title if named else f"{title}: not run")
    axes.set_xticks(range(NEIGHBORS + 1), [f"n{count}" for count in range(NEIGHBORS + 1)])
    axes.grid(color="0.88")
    if named:
        axes.legend(title=legend, frameon=False)


def _nanmean(values):
    """Mean over the first axis, NaN where all values are."""
    values = np.asarray(values, float)
    counts = np.isfinite(values).sum(axis=0)
    return np.divide(
        np.nansum(values, axis=0), counts, out=np.full(counts.shape, np.nan), where=counts > 0
    )


def _rate_text(rate):
    return str(rate[0]) if rate[0] == rate[1] else f"({rate[0]},{rate[1]})"


def _new_figure(width, height):
    """Makes a figure without pyplot, which keeps global state and needs a display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
