"""The report as one self-contained HTML page."""

from collections.abc import Sequence
from html import escape
from importlib import resources
from string import Template

import numpy as np

from dilated_affinity.affinity.geometry import check_rates, format_rates
from dilated_affinity.config import Config
from dilated_affinity.datasets.registry import Source
from dilated_affinity.inference.predictor import Predictor
from dilated_affinity.report import pictures, tables
from dilated_affinity.report.explorer import explorer
from dilated_affinity.report.measurement import Measurement
from dilated_affinity.report.run_files import RunFiles
from dilated_affinity.run_dir.describe import describe_affinity
from dilated_affinity.version import __version__
from dilated_affinity.visualization import (
    affinity_accuracy_figure,
    calibration_figure,
    class_iou_figure,
    confusion_matrix_figure,
    learning_curves_figure,
)


def report_page(
    config: Config,
    files: RunFiles,
    measurement: Measurement,
    predictor: Predictor,
    source: Source,
    examples: int = 3,
    cautions: Sequence[str] = (),
) -> str:
    """Renders the report of a run.

    Args:
        config: The run's settings.
        files: The files of its folder.
        measurement: The result of `measure`.
        predictor: Predicts the images to show.
        source: The examples that were measured.
        examples: Number of the best and of the worst images to show. Defaults to 3.
        cautions: Remarks about the numbers, such as those of `selection_bias`. Defaults to none.

    Returns:
        HTML that loads no other file: styles, script and pictures are included.
    """
    sections = [
        _summary(config, files, measurement, cautions),
        _curves(files),
        _classes(config, measurement, source.classes),
        _confusion(measurement, source.classes),
        _iterations(config, files),
        _calibration(files.calibration),
        _affinity(files),
        _images("Best images", measurement.best(examples), config, predictor, source),
        _images("Worst images", measurement.worst(examples), config, predictor, source),
        _section("Settings", tables.settings_table(config)),
    ]
    rates = "no affinity" if predictor.rates is None else f"R = {{{format_rates(predictor.rates)}}}"
    folder = resources.files("dilated_affinity.report")
    return Template(folder.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=escape(f"{config.dataset}: {files.model_dir.resolve().name}"),
        subtitle=escape(
            f"{config.backbone}, output stride {config.eval_output_stride} in evaluation, {rates}"
        ),
        style=folder.joinpath("page.css").read_text(encoding="utf-8"),
        script=folder.joinpath("page.js").read_text(encoding="utf-8"),
        sections="\n".join(sections),
        version=__version__,
    )


def _section(title, content):
    if not content:
        return ""
    anchor = title.lower().replace(" ", "-")
    return f'<section id="{anchor}"><h2>{escape(title)}</h2>\n{content}\n</section>'


def _figure(figure, alt):
    return f'<img src="{pictures.figure_source(figure)}" alt="{escape(alt)}">'


def _summary(config, files, measurement, cautions):
    before, after = measurement.mean_iou
    refines = config.propagates
    name = "mIoU before refinement" if refines else "mIoU"
    tiles = [(name, f"{100 * before:.2f} %")]
    if refines:
        gain = f"after {config.propagation_iterations} iterations ({100 * (after - before):+.2f})"
        tiles.append((gain, f"{100 * after:.2f} %"))
    matrix = measurement.confusion_after
    tiles.append(("pixel accuracy", f"{100 * np.trace(matrix) / max(matrix.sum(), 1):.2f} %"))
    tiles.append((f"images of {config.val_split}", str(len(measurement.scores))))
    if files.step is not None:
        tiles.append((f"training steps, {files.checkpoint} checkpoint", str(files.step)))
    cells = (
        f'<div class="tile"><b>{value}</b><span>{escape(name)}</span></div>'
        for name, value in tiles
    )
    sentences = (escape(caution[0].upper() + caution[1:]) for caution in cautions)
    notes = "".join(f'<p class="note">{sentence}.</p>' for sentence in sentences)
    return f'<div class="tiles">{"".join(cells)}</div>{notes}'


def _curves(files):
    if not files.log:
        return ""
    figure = _figure(learning_curves_figure(files.log), "losses and validation mIoU by step")
    return _section("Training", figure)


def _classes(config, measurement, classes):
    before = measurement.iou_before
    after = measurement.iou_after if config.propagates else None
    content = tables.class_table(classes, before, after, *measurement.mean_iou)
    bars = _figure(class_iou_figure(classes.names, before, after), "IoU of each class as bars")
    note = ""
    if np.isnan(measurement.iou_before).any():
        note = '<p class="note">&ndash;: not in the labels, left out of the means.</p>'
    return _section("Classes", f'<div class="beside"><div>{content}{note}</div>{bars}</div>')


def _confusion(measurement, classes):
    figure = confusion_matrix_figure(measurement.confusion_after, classes.names)
    return _section("Confusion", _figure(figure, "confusion matrix in % of each class"))


def _iterations(config, files):
    if config.affinity_rates is None:
        return ""
    command = f"eval_main --model_dir={escape(str(files.model_dir))}"
    if files.checkpoint != "best":
        command += f" --checkpoint={files.checkpoint}"
    missing = [
        f'<p class="note">Not measured yet: <code>{command}{flag}</code></p>'
        for kind, flag in (("predicted", ""), ("ground_truth", " --affinity_source=ground_truth"))
        if kind not in files.evaluations
    ]
    content = tables.iterations_table(files.evaluations) + "".join(missing)
    return _section("Iterations of propagation", content)


def _calibration(content):
    if content is None:
        return ""
    settings = describe_affinity(
        *(content["settings"][name] for name in ("self_weight", "mu")),
        content["settings"]["affinity_threshold"],
        content["settings"]["symmetric_affinity"],
    )
    count = content["settings"]["propagation_iterations"]
    note = (
        f'<p class="note">Fitted by {escape(content["by"])} on {escape(content["split"])}: {count} '
        f"iterations with {settings}.</p>"
    )
    chart = ""
    if content["by"] == "calibration":
        alt = "reliability of the affinity, and mIoU by iterations"
        chart = _figure(calibration_figure(content), alt)
    return _section("Calibration", note + chart)


def _affinity(files):
    for content in files.evaluations.values():
        accuracy = content.get("affinity_accuracy")
        if accuracy:
            values = np.array(accuracy["by_rate_and_count"], float)
            figure = affinity_accuracy_figure(values, [tuple(rate) for rate in accuracy["rates"]])
            chart = _figure(figure, "affinity accuracy by neighbours of the same class")
            note = '<p class="note">n0 to n8: pixels by their neighbours of the same class.</p>'
            return _section("Affinity accuracy", tables.affinity_table(accuracy) + note + chart)
    return ""


def _images(title, scores, config, predictor, source):
    images = (_image(score, config.propagates, predictor, source) for score in scores)
    return _section(title, "".join(images))


def _image(score, refined, predictor, source):
    example = source[score.index]
    prediction = predictor(example["image"])
    (left, first), (right, second) = pictures.compared(example, prediction, source.classes, refined)
    shown = f"mIoU {100 * score.before:.1f} %"
    if refined:
        shown += f", refined {100 * score.after:.1f} %"
    name = escape(score.name)
    panels = "".join(
        f'<figure><img src="{address}" alt="{escape(caption)} of {name}">'
        f"<figcaption>{escape(caption)}{_legend(entries)}</figcaption></figure>"
        for caption, address, entries in pictures.panels(
            example, prediction, predictor.rates, source.classes, refined
        )
    )
    return (
        f"<h3>{name}: {shown}</h3>"
        f'<figure class="compare"><img src="{first}" alt="{left} of {name}">'
        f'<img src="{second}" alt="{right} of {name}">'
        f'<span class="left">{left}</span><span class="right">{right}</span>'
        f'<input type="range" min="0" max="100" value="50" aria-label="{left} or {right}, {name}">'
        f'</figure><div class="panels">{panels}</div>{_explorer(score.name, prediction, predictor)}'
    )


def _explorer(name, prediction, predictor):
    if predictor.rates is None:
        return ""
    pixel = pictures.telling_pixel(prediction.affinity)
    return explorer(name, prediction.affinity, check_rates(predictor.rates), pixel)


def _legend(entries):
    if not entries:
        return ""
    names = "".join(f"<span>{tables.swatch(color)}{escape(name)}</span>" for name, color in entries)
    return f'<div class="legend">{names}</div>'
