"""Figure of a calibration: reliability of affinity logits, and gain by propagation."""

import matplotlib
import numpy as np

from dilated_affinity.visualization.figures import MARKERS, new_figure, style_axes


def calibration_figure(content: dict):
    """Draws a reliability diagram of the affinity by neighbour count, and mIoU by iterations.

    The left panel shows for pixels of n0 to n8 the share of pairs of the same class by their
    predicted logit, and the curve of Eq. 7 before and after calibration. For a category with
    calibrated affinity, the line crosses 50 % at the same logit as the curve.

    Args:
        content: As `Calibration.to_json` returns it.

    Returns:
        `matplotlib.figure.Figure`, drawn without a display; `figure.savefig(path)` writes it.
    """
    figure = new_figure(10.5, 5)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_reliability(left, content)
    for name, color, marker in (("given", "0.5", "s"), ("calibrated", "black", "o")):
        values = 100 * np.array(content["mean_iou"][name])
        right.plot(content["iterations"], values, color=color, marker=marker, label=name)
    right.set_xlabel("iterations of propagation")
    right.set_ylabel("mIoU, %")
    right.set_title(f"{content['images']} images of the fit")
    right.legend(frameon=False)
    for axes in (left, right):
        style_axes(axes)
    return figure


def _draw_reliability(axes, content):
    reliability = content["reliability"]
    edges = np.array(reliability["logit_edges"])
    pairs, same = (np.array(reliability[name], float) for name in ("pairs", "same"))
    shares = np.divide(100 * same, pairs, out=np.full(pairs.shape, np.nan), where=pairs > 0)
    centers = (edges[:-1] + edges[1:]) / 2
    colors = matplotlib.colormaps["cividis"](np.linspace(0, 0.9, len(shares)))
    for count, (values, color) in enumerate(zip(shares, colors, strict=True)):
        marker = MARKERS[count % len(MARKERS)]
        axes.plot(centers, values, color=color, marker=marker, markersize=4, label=f"n{count}")
    x = np.linspace(edges[0], edges[-1], 481)
    for name, key, style in (("given", "given", ":"), ("calibrated", "settings", "-")):
        settings = content[key]
        slope = np.log(settings["mu"])
        # Clipped so that the exponential does not overflow; the sigmoid is 0 or 1 there.
        exponent = np.clip(-(x - settings["affinity_threshold"]) * slope, -60, 60)
        curve = 100 / (1 + np.exp(exponent))
        label = f"Eq. 7 {name}: tau {settings['affinity_threshold']:g}, mu {settings['mu']:g}"
        axes.plot(x, curve, color="crimson", linestyle=style, label=label)
    axes.set_xlabel("affinity logit")
    axes.set_ylabel("pairs of the same class, %")
    axes.set_title("Reliability of the affinity by neighbours of the same class")
    axes.legend(fontsize="small", ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.14))
