"""Writes a run as one HTML file: settings, curves, tables, its best and worst images.

    report_main --model_dir=runs/camvid

The file needs no other: it can be sent, or kept beside the run. It includes the results of
`eval_main` with predicted and with ground-truth affinity.
"""

from pathlib import Path

from absl import flags, logging

from dilated_affinity.cli import app, config_flags
from dilated_affinity.datasets.registry import load_source
from dilated_affinity.errors import ConfigError
from dilated_affinity.inference.predictor import Predictor
from dilated_affinity.inference.refinement import Refinement
from dilated_affinity.report import RunFiles, measure, report_page
from dilated_affinity.run_dir.describe import log_run_summary, refinement_in_words, views_in_words
from dilated_affinity.run_dir.load import load_run
from dilated_affinity.run_dir.selection_bias import selection_bias
from dilated_affinity.runtime.files import write_atomically

_given = config_flags.define(
    (
        "data_dir",
        "val_split",
        "propagation_iterations",
        *config_flags.VIEWS,
        *config_flags.REFINEMENT,
    )
)
_MODEL_DIR = flags.DEFINE_string("model_dir", None, "Folder of the run.")
_CALIBRATED = app.define_calibrated()
_CHECKPOINT = config_flags.define_checkpoint()
_OUTPUT = flags.DEFINE_string("output", None, "HTML file to write. Default: model_dir/report.html.")
_EXAMPLES = flags.DEFINE_integer(
    "examples", 3, "Number of the best and of the worst images to show.", lower_bound=0
)
_LIMIT = flags.DEFINE_integer(
    "limit", None, "Number of images of the split to measure. Default: all.", lower_bound=1
)


def _report():
    model_dir = Path(app.required(_MODEL_DIR.value, "model_dir"))
    output = Path(_OUTPUT.value or model_dir / "report.html")
    config, model = load_run(model_dir, _CALIBRATED.value, _CHECKPOINT.value, **_given())
    if config.refine == "crf":
        raise ConfigError(
            "A report shows propagation or no refinement (--refine=propagation or none). "
            "Received: refine='crf'"
        )
    files = RunFiles.read(model_dir, _CHECKPOINT.value)
    source = load_source(config.dataset, config.val_split, config.data_dir)
    predictor = Predictor(model, None, Refinement.from_config(config), config.views)
    log_run_summary(
        config,
        model,
        source.classes.num_classes,
        f"{min(len(source), _LIMIT.value or len(source))} images of {config.val_split}",
        f"{_CHECKPOINT.value} checkpoint; {views_in_words(config)}; {refinement_in_words(config)}",
        output,
    )
    cautions = selection_bias(model_dir, _CHECKPOINT.value, config, source, _CALIBRATED.value)
    for caution in cautions:
        logging.warning("%s: %s", model_dir, caution)
    measurement = measure(predictor, source, _LIMIT.value)
    page = report_page(config, files, measurement, predictor, source, _EXAMPLES.value, cautions)
    write_atomically(output, page.encode())
    print(f"{output}: report of {len(measurement.scores)} images")


def main():
    """Entry point of the console script."""
    app.run(_report)


if __name__ == "__main__":
    main()
