"""Pictures of labels and affinity, as uint8 RGB arrays, and the figure of their statistics."""

import cv2
import numpy as np

from dilated_affinity.affinity.geometry import NEIGHBORS, check_rates
from dilated_affinity.datasets.classes import ClassTable

_MARKERS = "osD^vPX*"
_CAPTION_HEIGHT = 22
_GAP = 4


def colorize(labels, classes: ClassTable) -> np.ndarray:
    """Label map uint8 (H, W) in the data set's colours, uint8 (H, W, 3)."""
    return classes.color_map()[labels]


def overlay(image, labels, classes: ClassTable, opacity=0.6) -> np.ndarray:
    """The labels' colours laid over the image, with the classes' boundaries drawn in white.

    Args:
        image: uint8 (H, W, 3).
        labels: uint8 (H, W).
        classes: Colours of the classes.
        opacity: Of the colours, 0 to 1. Defaults to 0.6.
    """
    mixed = cv2.addWeighted(image, 1 - opacity, colorize(labels, classes), opacity, 0)
    edges = np.zeros(labels.shape, bool)
    edges[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edges[1:] |= labels[1:] != labels[:-1]
    mixed[edges] = 255
    return mixed


def agreeing_neighbors(affinity) -> np.ndarray:
    """How many of a rate's 8 neighbours are predicted to share the class.

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
    """Per rate, how many neighbours agree: dark where none does, bright where all eight do.

    Args:
        affinity: (H, W, 8|R|), as for `agreeing_neighbors`.
        rates: (vertical, horizontal) pairs, as `parse_rates` returns them.

    Returns:
        uint8 (H', W', 3): a captioned panel for each rate, side by side.
    """
    counts = agreeing_neighbors(affinity)
    panels = [
        (f"rate ({vertical},{horizontal})", color_counts(counts[..., index]))
        for index, (vertical, horizontal) in enumerate(check_rates(rates))
    ]
    return side_by_side(panels)


def comparison(example, prediction, rates, classes: ClassTable) -> np.ndarray:
    """What the method does to one image: before, the affinity it uses, after, and the truth.

    Args:
        example: `"image"` uint8 (H, W, 3) and `"label"` uint8 (H, W).
        prediction: `inference.Prediction` of the image.
        rates: (vertical, horizontal) pairs; None for a model without affinity.
        classes: Colours of the classes.

    Returns:
        uint8 (H', W', 3): captioned panels side by side.
    """
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
    return side_by_side([*panels, ("ground truth", colorize(example["label"], classes))])


def color_counts(counts) -> np.ndarray:
    """Counts 0 to 8, uint8 (H, W), in a perceptually even colour scale (viridis), (H, W, 3)."""
    scaled = (counts.astype(np.float32) * (255 / NEIGHBORS)).astype(np.uint8)
    return cv2.applyColorMap(scaled, cv2.COLORMAP_VIRIDIS)[..., ::-1]


def side_by_side(panels) -> np.ndarray:
    """Captioned pictures of one height in a row, on white.

    Args:
        panels: Pairs of caption and uint8 (H, W, 3).

    Returns:
        uint8 (H', W', 3).
    """
    columns = []
    for caption, picture in panels:
        strip = np.full((_CAPTION_HEIGHT, picture.shape[1], 3), 255, np.uint8)
        cv2.putText(
            strip, caption, (2, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA
        )
        gap = np.full((_CAPTION_HEIGHT + picture.shape[0], _GAP, 3), 255, np.uint8)
        columns += [gap, np.concatenate([strip, picture])]
    return np.concatenate(columns[1:], axis=1)


def count_frequency_figure(statistics):
    """Fig. 3: how the shares of n0 to n8 change with the rate.

    The share of n8, which is most of the pixels, has a panel of its own above those of n0 to n7,
    on a logarithmic axis. A share of 0 is left out. Rates stand in the order of their geometric
    mean, in even steps.

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
    # Not needed by training; importing it takes a while. No pyplot: it keeps global state.
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    order = sorted(range(len(statistics.rates)), key=lambda index: np.prod(statistics.rates[index]))
    shares = 100 * statistics.count_frequencies[order]
    names = [
        str(vertical) if vertical == horizontal else f"({vertical},{horizontal})"
        for vertical, horizontal in (statistics.rates[index] for index in order)
    ]
    figure = Figure(figsize=(6.4, 6), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
    positions = np.arange(len(names))
    upper.plot(positions, shares[:, NEIGHBORS], color="black", marker="s", label="n8")
    upper.set_ylabel("n8: % of pixels")
    upper.yaxis.set_major_locator(MaxNLocator(5))
    # Cividis reads the same with every kind of colour vision; its lightest end is too pale.
    colors = matplotlib.colormaps["cividis"](np.linspace(0, 0.9, NEIGHBORS))
    for count in reversed(range(NEIGHBORS)):
        share = np.where(shares[:, count] > 0, shares[:, count], np.nan)
        lower.plot(positions, share, color=colors[count], marker=_MARKERS[count], label=f"n{count}")
    lower.set_ylabel("n0 to n7: % of pixels")
    if (shares[:, :NEIGHBORS] > 0).any():
        lower.set_yscale("log")
        lower.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    lower.set_xlabel("dilation rate (pixels)")
    lower.set_xticks(positions, names)
    lower.margins(x=0.06)
    for axes in (upper, lower):
        axes.grid(color="0.88")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    upper.set_title("Pixels by their number of neighbours of the same class")
    return figure


def refinement_search_figure(search):
    """mIoU by iterations of propagation, a panel for each mu and a line for each lambda.

    Args:
        search: `RefinementSearch`.

    Returns:
        `matplotlib.figure.Figure`, drawn without a display; `figure.savefig(path)` writes it.
    """
    # As in count_frequency_figure.
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1 + 3 * len(search.mus), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(search.mus), sharey=True, squeeze=False)[0]
    colors = matplotlib.colormaps["cividis"](np.linspace(0, 0.9, len(search.self_weights)))
    for panel, mu, rows in zip(panels, search.mus, search.mean_iou, strict=True):
        for index, (self_weight, values) in enumerate(zip(search.self_weights, rows, strict=True)):
            panel.plot(
                search.iterations,
                100 * values,
                color=colors[index],
                marker=_MARKERS[index % len(_MARKERS)],
                label=f"{self_weight:g}",
            )
        panel.set_title(f"mu = {mu:g}")
        panel.set_xlabel("iterations")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("mIoU, %")
    panels[-1].legend(title="lambda")
    return figure
