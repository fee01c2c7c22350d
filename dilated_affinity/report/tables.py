"""The tables of the report as HTML."""

import dataclasses
import math
from html import escape

from dilated_affinity.config import Config
from dilated_affinity.inference.refiners import METHODS
from dilated_affinity.inference.views import Views
from dilated_affinity.run_dir.describe import describe_affinity, describe_views

_AFFINITY = {"ground_truth": "ground-truth"}


def table(header, rows, total=None, kind="") -> str:
    """Renders an HTML table.

    Args:
        header: Cells of the first row, HTML.
        rows: Rows of cells, HTML; the first cell names the row.
        total: A highlighted last row. Defaults to None.
        kind: CSS class.
    """
    lines = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in header) + "</tr>"]
    lines += [_row(row) for row in rows]
    if total is not None:
        lines.append(_row(total, ' class="total"'))
    return f'<div class="scroll"><table class="{kind}">{"".join(lines)}</table></div>'


def percent(value, signed=False) -> str:
    """Formats a fraction in %; a dash for NaN and None."""
    if value is None or math.isnan(value):
        return "&ndash;"
    return f"{100 * value:{'+' if signed else ''}.2f}"


def swatch(color) -> str:
    """Renders a patch of an RGB colour."""
    return '<i class="swatch" style="background:#{:02x}{:02x}{:02x}"></i>'.format(*color)


def class_table(classes, before, after, mean_before, mean_after) -> str:
    """Renders the IoU of each class before and, unless `after` is None, after refinement."""
    names = [
        f"{swatch(color)}{escape(name)}"
        for color, name in zip(classes.palette, classes.names, strict=True)
    ]
    if after is None:
        rows = [[name, percent(value)] for name, value in zip(names, before, strict=True)]
        return table(["class", "IoU, %"], rows, ["mean", percent(mean_before)])
    rows = [
        [name, percent(first), percent(second), percent(second - first, signed=True)]
        for name, first, second in zip(names, before, after, strict=True)
    ]
    gain = percent(mean_after - mean_before, signed=True)
    total = ["mean", percent(mean_before), percent(mean_after), gain]
    return table(["class", "before, %", "after, %", "difference"], rows, total)


def iterations_table(evaluations) -> str:
    """Renders mIoU, boundary IoU and pixel accuracy by iterations for each evaluation."""
    parts = []
    for kind, content in evaluations.items():
        header = [f"{_AFFINITY.get(kind, escape(kind))} affinity", *map(str, content["iterations"])]
        measures = ("mean_iou", "boundary_iou", "pixel_accuracy")
        names = ("mIoU", "boundary IoU", "pixel accuracy")
        rows = [
            [name, *map(percent, content[measure])]
            for name, measure in zip(names, measures, strict=True)
        ]
        parts.append(table(header, rows))
        parts.append(f'<p class="note">{escape(_measured_on(content))}; columns: iterations.</p>')
    return "".join(parts)


def _measured_on(content):
    """The images and settings of an evaluation, without those that have no effect."""
    words = [
        f"{content['split']}, {content['images']} images",
        describe_affinity(
            content["self_weight"],
            content["mu"],
            content.get("affinity_threshold", 0.0),
            content.get("symmetric_affinity", False),
        ),
        describe_views(content["output_stride"], _views(content)),
    ]
    if content["refine"] != "propagation":
        words.append(METHODS[content["refine"]].title)
    return ", ".join(words)


def _views(content):
    names = (field.name for field in dataclasses.fields(Views))
    return Views(**{name: content[name] for name in names if name in content})


def affinity_table(accuracy) -> str:
    """Renders the affinity accuracy of an evaluation by rate and neighbour count."""
    header = ["rate", "all", *(f"n{count}" for count in range(9))]
    rows = [
        [f"({vertical},{horizontal})", *map(percent, [overall, *counts])]
        for (vertical, horizontal), overall, counts in zip(
            accuracy["rates"], accuracy["by_rate"], accuracy["by_rate_and_count"], strict=True
        )
    ]
    return table(header, rows)


def settings_table(config: Config) -> str:
    """Renders every setting with its value, a different value of the recipe, and its meaning."""
    recipe = Config.for_dataset(config.dataset)
    rows = []
    for field in dataclasses.fields(config):
        value, usual = getattr(config, field.name), getattr(recipe, field.name)
        note = "" if value == usual else escape(f"recipe: {usual}")
        meaning = escape(field.metadata["help"])
        rows.append([f"<code>{field.name}</code>", escape(str(value)), note, meaning])
    return table(["setting", "value", "", "meaning"], rows, kind="settings")


def _row(cells, attributes=""):
    return f"<tr{attributes}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
