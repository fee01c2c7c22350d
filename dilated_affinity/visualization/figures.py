"""Matplotlib figures of training, evaluation and affinity, drawn without a display.

Every function returns a `matplotlib.figure.Figure`: a notebook shows it, `figure.savefig(path)`
writes it, `figure_array` converts it to an array. Colours are suitable for all kinds of colour
vision.
"""

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from dilated_affinity.affinity.geometry import NEIGHBORS, check_rates

MARKERS = "osD^vPX*"

# From the palette of Okabe and Ito.
_BLUE, _VERMILION, _GREEN = "#0072b2", "#d55e00", "#009e73"


def figure_array(figure: Figure) -> np.ndarray:
    """Renders a figure as an array, uint8 (H, W, 3)."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def learning_curves_figure(log):
    """Draws the losses of each head and the validation mIoU by training step.

    Args:
        log: Rows of a run's `log.csv`, as `csv.DictReader` reads them, or `history.history` of
            `model.fit`: numbers, or text of numbers, by name.

    Returns:
        `matplotlib.figure.Figure` with a panel for losses and, with validation, one for its mIoU.

    Example:

    >>> rows = [{"step": "10", "semantic_loss": "1.5"}, {"step": "20", "semantic_loss": "0.9"}]
    >>> learning_curves_figure(rows).axes[0].lines[0].get_ydata().tolist()
    [1.5, 0.9]
    """
    columns = _columns(log)
    steps = columns.get("step", np.arange(1, 1 + max(map(len, columns.values()), default=0)))
    names = ("val_mean_iou", "val_semantic_mean_iou", "semantic_mean_iou")
    scores = {name: columns[name] for name in names if name in columns}
    figure = new_figure(8.4 if scores else 4.6, 3.2)
    panels = figure.subplots(1, 2 if scores else 1, squeeze=False)[0]
    losses = (("semantic_loss", _BLUE, "o"), ("affinity_loss", _VERMILION, "s"))
    for name, color, marker in losses:
        if name in columns:
            label = name.removesuffix("_loss")
            panels[0].plot(steps, columns[name], color=color, marker=marker, label=label)
    panels[0].set_ylabel("training loss")
    panels[0].set_ylim(bottom=0)
    panels[0].legend(frameon=False)
    for name, values in scores.items():
        label = "validation" if name.startswith("val") else "training"
        color = _GREEN if label == "validation" else _BLUE
        panels[1].plot(steps, 100 * values, color=color, marker="D", label=label)
        panels[1].set_ylabel("mIoU, %")
        panels[1].legend(frameon=False)
    for axes in panels:
        axes.set_xlabel("step" if "step" in columns else "epoch")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        style_axes(axes)
    return figure


def _columns(log):
    """Converts a log to arrays by name, with NaN for missing values."""
    if not isinstance(log, dict):
        names = dict.fromkeys(name for row in log for name in row)
        log = {name: [row.get(name) for row in log] for name in names}
    return {name: np.array([_number(value) for value in values]) for name, values in log.items()}


def _number(text):
    try:
        return float(text)
    except (TypeError, ValueError):
        return np.nan


def confusion_matrix_figure(matrix, names):
    """Draws a confusion matrix in % of each class's pixels; rows are labels, columns predictions.

    Args:
        matrix: Counts of pixels (C, C), as `MeanIoU.confusion_matrix` returns them.
        names: Name of each class.

    Returns:
        `matplotlib.figure.Figure`; the row of a class that does not occur is blank.

    Example:

    >>> figure = confusion_matrix_figure(np.array([[3, 1], [0, 0]]), ("road", "sky"))
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['75', '25']
    """
    matrix = np.asarray(matrix, float)
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(100 * matrix, totals, out=np.full(matrix.shape, np.nan), where=totals > 0)
    side = 2.2 + 0.42 * len(names)
    figure = new_figure(side + 1, side)
    axes = figure.subplots()
    shown = axes.imshow(shares, cmap="cividis", vmin=0, vmax=100)
    ticks = range(len(names))
    axes.set_xticks(ticks, names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.5:
            color = "black" if share > 55 else "white"
            text = f"{share:.0f}"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    figure.colorbar(shown, label="% of the label's pixels", shrink=0.8)
    return figure


def class_iou_figure(names, before, after=None):
    """Draws the IoU of each class before and after refinement as bars.

    Args:
        names: Name of each class.
        before: IoU of each class, 0 to 1, NaN for a class that does not occur.
        after: The same after refinement; None without refinement.

    Returns:
        `matplotlib.figure.Figure`.
    """
    positions = np.arange(len(names))
    figure = new_figure(5.6, 1.2 + 0.36 * len(names))
    axes = figure.subplots()
    groups = [("before refinement", before, "0.65")]
    if after is not None:
        groups.append(("after", after, _BLUE))
    height = 0.8 / len(groups)
    for index, (label, values, color) in enumerate(groups):
        places = positions + (index - (len(groups) - 1) / 2) * height
        percent = 100 * np.nan_to_num(np.asarray(values, float))
        axes.barh(places, percent, height * 0.92, color=color, label=label)
    axes.set_yticks(positions, names)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("IoU, %")
    style_axes(axes)
    if after is not None:
        figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def affinity_accuracy_figure(accuracy, rates):
    """Draws the affinity's accuracy by the number of neighbours of the same class (Fig. 4).

    Args:
        accuracy: (|R|, 9), 0 to 1, NaN without any pair, as
            `AffinityAccuracy.by_rate_and_count` returns it.
        rates: Text such as `"8,(12,24),16"`, or numbers and (vertical, horizontal) pairs.

    Returns:
        `matplotlib.figure.Figure` with a line for each rate.
    """
    rates = check_rates(rates)
    figure = new_figure(6.4, 3.4)
    axes = figure.subplots()
    colors = matplotlib.colormaps["cividis"](np.linspace(0, 0.85, len(rates)))
    for index, (values, rate) in enumerate(zip(accuracy, rates, strict=True)):
        axes.plot(
            range(NEIGHBORS + 1),
            100 * np.asarray(values, float),
            color=colors[index],
            marker=MARKERS[index % len(MARKERS)],
            label=f"({rate[0]},{rate[1]})",
        )
    axes.set_xticks(range(NEIGHBORS + 1), [f"n{count}" for count in range(NEIGHBORS + 1)])
    axes.set_xlabel("neighbours of the same class")
    axes.set_ylabel("affinity accuracy, %")
    style_axes(axes)
    axes.legend(title="rate", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def count_frequency_figure(statistics):
    """Draws the shares of n0 to n8 by rate (Fig. 3).

    The share of n8, by far the largest, has its own panel above those of n0 to n7, which have a
    logarithmic axis. Shares of 0 are left out. Rates are equally spaced in the order of their
    geometric mean.

    Args:
        statistics: `AffinityStatistics`.

    Returns:
        `matplotlib.figure.Figure`, drawn without a display; `figure.savefig(path)` writes it.

    Example:

    >>> from dilated_affinity.affinity.statistics import AffinityStatistics
    >>> labels = np.eye(9, dtype=np.uint8)
    >>> statistics = AffinityStatistics.from_labels([labels], ((1, 1), (2, 2)))
    >>> [axes.get_ylabel() for axes in count_frequency_figure(statistics).axes]
    ['n8: % of pixels', 'n0 to n7: % of pixels']
    """
    order = sorted(range(len(statistics.rates)), key=lambda index: np.prod(statistics.rates[index]))
    shares = 100 * statistics.count_frequencies[order]
    names = [
        str(vertical) if vertical == horizontal else f"({vertical},{horizontal})"
        for vertical, horizontal in (statistics.rates[index] for index in order)
    ]
    figure = new_figure(6.4, 6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
    positions = np.arange(len(names))
    upper.plot(positions, shares[:, NEIGHBORS], color="black", marker="s", label="n8")
    upper.set_ylabel("n8: % of pixels")
    upper.yaxis.set_major_locator(MaxNLocator(5))
    # Cividis suits all kinds of colour vision; its lightest end is too pale.
    colors = matplotlib.colormaps["cividis"](np.linspace(0, 0.9, NEIGHBORS))
    for count in reversed(range(NEIGHBORS)):
        share = np.where(shares[:, count] > 0, shares[:, count], np.nan)
        lower.plot(positions, share, color=colors[count], marker=MARKERS[count], label=f"n{count}")
    lower.set_ylabel("n0 to n7: % of pixels")
    if (shares[:, :NEIGHBORS] > 0).any():
        lower.set_yscale("log")
        lower.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    lower.set_xlabel("dilation rate (pixels)")
    lower.set_xticks(positions, names)
    lower.margins(x=0.06)
    for axes in (upper, lower):
        style_axes(axes)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    upper.set_title("Pixels by their number of neighbours of the same class")
    return figure


def refinement_search_figure(search):
    """Draws mIoU by iterations, a panel for each mu and tau, a line for each lambda and symmetry.

    Args:
        search: `RefinementSearch`.

    Returns:
        `matplotlib.figure.Figure`, drawn without a display; `figure.savefig(path)` writes it.
    """
    mus = sorted({each.mu for each in search.refinements})
    thresholds = sorted({each.threshold for each in search.refinements})
    self_weights = sorted({each.self_weight for each in search.refinements})
    figure = new_figure(1 + 3 * len(mus), 0.6 + 3 * len(thresholds))
    panels = figure.subplots(len(thresholds), len(mus), sharex=True, sharey=True, squeeze=False)
    colors = matplotlib.colormaps["cividis"](np.linspace(0, 0.9, len(self_weights)))
    for each, values in zip(search.refinements, search.mean_iou, strict=True):
        panel = panels[thresholds.index(each.threshold), mus.index(each.mu)]
        index = self_weights.index(each.self_weight)
        panel.plot(
            search.iterations,
            100 * values,
            color=colors[index],
            marker=MARKERS[index % len(MARKERS)],
            linestyle="-" if each.symmetric else ":",
            label=f"{each.self_weight:g}{', symmetric' if each.symmetric else ''}",
        )
        panel.set_title(f"mu = {each.mu:g}, tau = {each.threshold:g}")
    for panel in panels.flat:
        style_axes(panel)
    for panel in panels[-1]:
        panel.set_xlabel("iterations")
    for panel in panels[:, 0]:
        panel.set_ylabel("mIoU, %")
    panels[-1, -1].legend(title="lambda")
    return figure


def new_figure(width, height):
    """Creates a figure without pyplot, which needs global state and a display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def style_axes(axes):
    """Draws a light grid and removes the frame of axes."""
    axes.grid(color="0.88")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
