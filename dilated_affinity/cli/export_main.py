"""Exports the model of a run, its refinement included, for serving.

    export_main --model_dir=runs/camvid --output=exports/camvid
    export_main --model_dir=runs/camvid --format=onnx --output=exports/camvid.onnx

An export takes uint8 RGB images (batch, height, width, 3) of any size and gives labels and
probabilities. A SavedModel needs TensorFlow alone:

    model = tf.saved_model.load("exports/camvid")
    labels = model.serve(images)["labels"]

Every export is compared with the Keras model before it appears: on an image of the validation
split, on --image=FILE, or, where the data set is not on this machine, on a drawn one.

    export_main --model_dir=runs/camvid --format=litert --output=camvid.tflite \\
        --propagation_iterations=0 --quantization=int8
"""

import os
from pathlib import Path

import tensorflow as tf
from absl import flags, logging

from dilated_affinity.cli import app, config_flags
from dilated_affinity.datasets.files.images import read_bytes, read_image
from dilated_affinity.datasets.files.listing import find_images
from dilated_affinity.datasets.files.pairs import raise_first
from dilated_affinity.datasets.notes import log_once
from dilated_affinity.datasets.registry import load_source, make_builder
from dilated_affinity.datasets.shapes.drawing import draw_example
from dilated_affinity.errors import ConfigError, DataError, MissingDataError
from dilated_affinity.export.export import check_output, export_model
from dilated_affinity.export.formats import FORMATS, QUANTIZATIONS
from dilated_affinity.inference.refinement import Refinement
from dilated_affinity.inference.views import Views
from dilated_affinity.run_dir.describe import log_run_summary, refinement_in_words
from dilated_affinity.run_dir.layout import load_classes
from dilated_affinity.run_dir.load import load_run
from dilated_affinity.version import __version__

_given = config_flags.define(
    (
        "data_dir",
        "val_split",
        "eval_output_stride",
        "propagation_iterations",
        "mixed_precision",
        *config_flags.REFINEMENT,
    )
)
_MODEL_DIR = flags.DEFINE_string("model_dir", None, "Folder of the run.")
_CALIBRATED = app.define_calibrated()
_CHECKPOINT = config_flags.define_checkpoint()
_OUTPUT = flags.DEFINE_string(
    "output", None, "Output: a folder for saved_model, otherwise a file .keras, .onnx or .tflite."
)
_FORMAT = flags.DEFINE_enum(
    "format",
    "saved_model",
    tuple(FORMATS),
    "saved_model: for TensorFlow, without this package. keras: for Keras with this package. onnx: "
    "needs the extra `onnx`. litert: for LiteRT. The last two contain the propagation as plain "
    "operations, which are slow at many iterations; --propagation_iterations=0 leaves it out.",
)
_AFFINITY = flags.DEFINE_bool("affinity", False, "Also output the affinity.")
_JIT_COMPILE = flags.DEFINE_bool(
    "jit_compile",
    True,
    "Compile the propagation of a SavedModel by XLA; no for a runtime without XLA.",
)
_FOLD_BATCH_NORM = flags.DEFINE_bool(
    "fold_batch_norm",
    False,
    "Fold batch norm into the convolutions: the same outputs up to rounding, in less time.",
)
_QUANTIZATION = flags.DEFINE_enum(
    "quantization",
    "none",
    QUANTIZATIONS,
    "For litert. float16: weights in float16. dynamic_int8: weights in int8. int8: all in int8, "
    "which needs calibration images and --propagation_iterations=0.",
)
_CALIBRATION_IMAGES = flags.DEFINE_integer(
    "calibration_images",
    32,
    "For int8: how many images to calibrate with, evenly spread over the training split.",
    lower_bound=1,
)
_CALIBRATION_DIR = flags.DEFINE_string(
    "calibration_dir", None, "For int8: calibrate with the images of this folder instead."
)
_IMAGE = flags.DEFINE_string(
    "image", None, "Image file to check the export on. Default: the first of the validation split."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an export that exists.")


def _export():
    model_dir = app.required(_MODEL_DIR.value, "model_dir")
    output = app.required(_OUTPUT.value, "output")
    given = _given()
    precision, quantization = given.get("mixed_precision"), _QUANTIZATION.value
    check_output(output, _FORMAT.value, _OVERWRITE.value, precision, quantization)
    _check_calibration_flags(quantization)
    config, model = load_run(model_dir, _CALIBRATED.value, _CHECKPOINT.value, **given)
    if config.views != Views():
        logging.warning(
            "The export predicts whole images at one scale; the run's eval_scales, eval_flip and "
            "eval_window are for eval_main and predict_main."
        )
    if quantization == "int8" and config.propagates:
        raise ConfigError(
            "--quantization=int8 is for the network alone, with --propagation_iterations=0. "
            f"Received: {config.propagation_iterations} iterations of propagation"
        )
    image, name, classes = _image_to_check_with(config, Path(model_dir))
    log_run_summary(
        config,
        model,
        classes.num_classes,
        f"{name} to check with",
        f"{_CHECKPOINT.value} checkpoint; {_FORMAT.value} at output stride "
        f"{config.eval_output_stride}, {refinement_in_words(config)}",
        output,
    )
    _quiet()
    agreement = export_model(
        model,
        output,
        image,
        _FORMAT.value,
        affinity=_AFFINITY.value,
        jit_compile=_JIT_COMPILE.value,
        overwrite=_OVERWRITE.value,
        metadata=_metadata(config, classes),
        refinement=Refinement.from_config(config),
        mixed_precision=config.mixed_precision,
        fold_batch_norm=_FOLD_BATCH_NORM.value,
        quantization=quantization,
        calibration_images=_calibration_images(config) if quantization == "int8" else (),
    )
    size = f"{_bytes_of(Path(output)) / 1e6:.1f} MB"
    print(f"{output}: {_FORMAT.value} written, {size}; on {name} in several sizes {agreement}")


def _check_calibration_flags(quantization):
    given = [
        f"--{flag.name}={flag.value}"
        for flag in (_CALIBRATION_DIR, _CALIBRATION_IMAGES)
        if flag.present
    ]
    if given and quantization != "int8":
        raise ConfigError(
            f"{given[0]} is for --quantization=int8. Received: --quantization={quantization}"
        )
    if len(given) > 1:
        raise ConfigError(
            "--calibration_images is for the training split; all images of --calibration_dir are "
            f"taken. Received: {' '.join(given)}"
        )


def _image_to_check_with(config, model_dir):
    """An image, its name in messages, and the classes of the run."""
    classes = load_classes(model_dir)
    if _IMAGE.value:
        # The first runs have no table of classes.
        classes = classes or make_builder(config.dataset, config.data_dir).classes
        return _read_image(_IMAGE.value), _IMAGE.value, classes
    try:
        source = load_source(config.dataset, config.val_split, config.data_dir)
        return source[0]["image"], source.ids[0], source.classes
    except DataError as error:
        if classes is None:
            raise
        logging.warning("%s; the export is checked on a drawn image, see --image", error)
        return draw_example("val", 0)[0], "a drawn image", classes


def _calibration_images(config):
    if _CALIBRATION_DIR.value:
        found = find_images(_CALIBRATION_DIR.value)
        raise_first(found.problems)
        log_once(found.notes.lines())
        return [_read_image(path) for path in found.images]
    try:
        source = load_source(config.dataset, config.train_split, config.data_dir)
    except MissingDataError as error:
        raise MissingDataError(f"{error} --calibration_dir names a folder of images.") from None
    count = min(_CALIBRATION_IMAGES.value, len(source))
    return [source[index * len(source) // count]["image"] for index in range(count)]


def _read_image(path):
    image, remarks = read_image(read_bytes(path), str(path))
    for remark in remarks:
        logging.warning("%s: one of the %s", path, remark)
    return image


def _bytes_of(path):
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(os.path.getsize(each) for each in files if each.is_file())


def _quiet():
    """Hides the progress messages of TensorFlow and the converters."""
    logging.set_verbosity(logging.WARNING)
    tf.get_logger().setLevel("ERROR")


def _metadata(config, classes):
    return {
        "package_version": __version__,
        "checkpoint": _CHECKPOINT.value,
        "dataset": config.dataset,
        "classes": list(classes.names),
        "rates": config.affinity_rates,
        **Refinement.from_config(config).to_config(),
        "propagation_iterations": config.refinement_iterations if config.affinity_rates else 0,
        "refine": config.refine,
        "mixed_precision": config.mixed_precision,
        "fold_batch_norm": _FOLD_BATCH_NORM.value,
    }


def main():
    """Entry point of the console script."""
    app.run(_export)


if __name__ == "__main__":
    main()
