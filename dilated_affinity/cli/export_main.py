"""Exports the model of a run, its refinement included, for serving.

    export_main --model_dir=runs/camvid --output=exports/camvid
    export_main --model_dir=runs/camvid --format=onnx --output=exports/camvid.onnx

An export takes uint8 RGB images (batch, height, width, 3) of any size and gives labels and
probabilities. A SavedModel needs TensorFlow alone:

    model = tf.saved_model.load("exports/camvid")
    labels = model.serve(images)["labels"]

Every export is compared with the Keras model on an image of the validation split before it appears.
"""

import tensorflow as tf
from absl import flags, logging

from dilated_affinity.announcement import announce, refinement_in_words
from dilated_affinity.cli import app, config_flags
from dilated_affinity.datasets.loading import load_source
from dilated_affinity.errors import ConfigError
from dilated_affinity.export import check_output, export_model
from dilated_affinity.export_formats import FORMATS
from dilated_affinity.refinement import Refinement
from dilated_affinity.training import load_run
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
flags.DEFINE_alias("iterations", "propagation_iterations")
_MODEL_DIR = flags.DEFINE_string("model_dir", None, "Folder of the run.")
_CALIBRATED = app.define_calibrated()
_CHECKPOINT = config_flags.define_checkpoint()
_OUTPUT = flags.DEFINE_string(
    "output", None, "What to write: a folder for saved_model, else a file .keras, .onnx or .tflite."
)
_FORMAT = flags.DEFINE_enum(
    "format",
    "saved_model",
    tuple(FORMATS),
    "saved_model: for TensorFlow, without this package. keras: for Keras with this package. onnx: "
    "needs the extra `onnx`. litert: for LiteRT. The last two hold the propagation as plain "
    "operations, which are slow at many iterations; --iterations=0 leaves it out.",
)
_AFFINITY = flags.DEFINE_bool("affinity", False, "Output the affinity, too.")
_JIT_COMPILE = flags.DEFINE_bool(
    "jit_compile",
    True,
    "Let XLA compile the propagation of a SavedModel; no for a runtime without XLA.",
)
_FOLD_BATCH_NORM = flags.DEFINE_bool(
    "fold_batch_norm",
    False,
    "Fold batch norm into the convolutions: up to rounding the same outputs, in less time.",
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an export that exists.")


def _export():
    model_dir = app.required(_MODEL_DIR.value, "model_dir")
    output = app.required(_OUTPUT.value, "output")
    given = _given()
    check_output(output, _FORMAT.value, _OVERWRITE.value, given.get("mixed_precision"))
    config, model = load_run(model_dir, _CALIBRATED.value, _CHECKPOINT.value, **given)
    if config.scales != (1.0,) or config.eval_flip or config.eval_window:
        logging.warning(
            "The export predicts whole images at one scale; the run's eval_scales, eval_flip and "
            "eval_window are for eval_main and predict_main."
        )
    if config.postprocess == "crf":
        raise ConfigError(
            "A CRF cannot be exported; give --postprocess=propagate or none. "
            "Received: postprocess='crf'"
        )
    source = load_source(config.dataset, config.val_split, config.data_dir)
    announce(
        config,
        model,
        source.classes.num_classes,
        f"an image of {config.val_split} to check with",
        f"{_CHECKPOINT.value} checkpoint; {_FORMAT.value} at output stride "
        f"{config.eval_output_stride}, {refinement_in_words(config)}",
        output,
    )
    _quiet()
    agreement = export_model(
        model,
        output,
        source[0]["image"],
        _FORMAT.value,
        affinity=_AFFINITY.value,
        jit_compile=_JIT_COMPILE.value,
        overwrite=_OVERWRITE.value,
        metadata=_metadata(config, source.classes),
        refinement=Refinement.from_config(config),
        mixed_precision=config.mixed_precision,
        fold_batch_norm=_FOLD_BATCH_NORM.value,
    )
    print(f"{output}: {_FORMAT.value} written; on {source.ids[0]} in several sizes {agreement}")


def _quiet():
    """Keeps to themselves how TensorFlow and the converters get on, and where they write aside."""
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
        "propagation_iterations": config.iterations_of_refinement if config.affinity_rates else 0,
        "refinement": config.refinement,
        "mixed_precision": config.mixed_precision,
        "fold_batch_norm": _FOLD_BATCH_NORM.value,
    }


def main():
    """Entry point of the console script."""
    app.run(_export)


if __name__ == "__main__":
    main()
