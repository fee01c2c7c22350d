"""Predicts images with the model of a run.

    predict_main --model_dir=runs/camvid --input=photographs --output_dir=predictions

For each image it writes the labels as a palette PNG, an overlay, and per rate a picture of how
many neighbours are predicted to share the pixel's class. Sub-folders are mirrored. Without --input
it predicts the validation split, and adds a comparison with the ground truth and a map of errors.

    predict_main --model_dir=runs/cityscapes --input=leftImg8bit/test --output_dir=test \\
        --write_label_ids

writes the labels in the form that Cityscapes' test server expects: grey PNG of labelIds.

Images that cannot be predicted are listed at the end, with the reason, and the exit status is then
1. A file that cannot be written, for example on a full disk, ends the command. With --resume, the
same command continues an interrupted one and retries those images.
"""

import functools
import sys
from pathlib import Path

from absl import flags

from dilated_affinity.cli import app, config_flags
from dilated_affinity.datasets.classes import CITYSCAPES_LABEL_IDS
from dilated_affinity.datasets.registry import load_source, make_builder
from dilated_affinity.errors import ConfigError, printable
from dilated_affinity.inference.files import (
    PredictionStoppedError,
    check_output_dir,
    predict_examples,
    predict_files,
)
from dilated_affinity.inference.predictor import Predictor
from dilated_affinity.inference.refinement import Refinement
from dilated_affinity.run_dir.describe import log_run_summary, refinement_in_words, views_in_words
from dilated_affinity.run_dir.layout import load_classes
from dilated_affinity.run_dir.load import load_run

_given = config_flags.define(
    (
        "data_dir",
        "propagation_iterations",
        *config_flags.VIEWS,
        *config_flags.REFINEMENT,
        *config_flags.CRF,
    )
)
_MODEL_DIR = flags.DEFINE_string("model_dir", None, "Folder of the run.")
_CALIBRATED = app.define_calibrated()
_CHECKPOINT = config_flags.define_checkpoint()
_INPUT = flags.DEFINE_string(
    "input", None, "An image file, or a folder of images. Default: the split --split."
)
_SPLIT = flags.DEFINE_string(
    "split",
    None,
    "Without --input: split of the run's own data set to predict, with the ground truth beside "
    "each prediction. Default: the validation split.",
)
_LIMIT = flags.DEFINE_integer(
    "limit", None, "Without --input: how many images of the split. Default: all.", lower_bound=1
)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Folder to write to; made if missing.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace files that exist.")
_RESUME = flags.DEFINE_bool(
    "resume",
    False,
    "Skip images whose predictions are complete, of whatever model; predict the others.",
)
_PROBABILITIES = flags.DEFINE_bool(
    "probabilities",
    False,
    "Also write the refined probabilities of all classes (*_probabilities.npz, float16, H x W x "
    "C), and a grey picture of the largest at each pixel (*_confidence.png).",
)
_WRITE_LABEL_IDS = flags.DEFINE_bool(
    "write_label_ids",
    False,
    "Write Cityscapes' labelIds as grey PNG, as its test server expects, instead of a palette PNG "
    "of the 19 classes.",
)


def _predict():
    model_dir = app.required(_MODEL_DIR.value, "model_dir")
    output_dir = app.required(_OUTPUT_DIR.value, "output_dir")
    for flag in (_SPLIT, _LIMIT):
        if _INPUT.value and flag.value is not None:
            raise ConfigError(f"--{flag.name} is of the data set; drop it or --input.")
    check_output_dir(output_dir)
    config, model = load_run(model_dir, _CALIBRATED.value, _CHECKPOINT.value, **_given())
    label_ids = None
    if _WRITE_LABEL_IDS.value:
        if config.dataset != "cityscapes":
            raise ConfigError(
                "--write_label_ids is for runs on cityscapes, whose classes have labelIds. "
                f"Received: a run on {config.dataset}"
            )
        label_ids = CITYSCAPES_LABEL_IDS
    predictor = Predictor(model, None, Refinement.from_config(config), config.views)
    options = {
        "overwrite": _OVERWRITE.value,
        "resume": _RESUME.value,
        "label_ids": label_ids,
        "probabilities": _PROBABILITIES.value,
    }
    if _INPUT.value:
        # The first runs have no table of classes.
        classes = (
            load_classes(Path(model_dir)) or make_builder(config.dataset, config.data_dir).classes
        )
        _log_summary(config, model, classes, f"images of {_INPUT.value}", output_dir)
        predict = functools.partial(predict_files, predictor, classes, _INPUT.value)
    else:
        split = _SPLIT.value or config.val_split
        source = load_source(config.dataset, split, config.data_dir)
        images = f"{min(len(source), _LIMIT.value or len(source))} images of {split}"
        _log_summary(config, model, source.classes, images, output_dir)
        predict = functools.partial(predict_examples, predictor, source, limit=_LIMIT.value)
    try:
        result = predict(output_dir=output_dir, **options)
    except PredictionStoppedError as error:
        _report(output_dir, error.result)
        raise
    _report(output_dir, result)
    if result.failed:
        sys.exit(app.RUN_ERROR)


def _report(output_dir, result):
    parts = [f"predicted {len(result.written)} images"]
    if result.kept:
        parts.append(f"left {len(result.kept)} that were complete")
    if result.failed:
        parts.append(f"{len(result.failed)} could not be predicted")
    print(f"{output_dir}: {'; '.join(parts)}")
    for line in result.notes.lines():
        print(line)
    for reason in result.failed:
        app.complain(printable(reason))


def _log_summary(config, model, classes, images, output_dir):
    work = (
        f"{_CHECKPOINT.value} checkpoint; {views_in_words(config)}; {refinement_in_words(config)}"
    )
    log_run_summary(config, model, classes.num_classes, images, work, output_dir)


def main():
    """Entry point of the console script."""
    app.run(_predict)


if __name__ == "__main__":
    main()
