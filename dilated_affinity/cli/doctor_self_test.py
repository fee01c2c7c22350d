"""The self-test of `doctor`: training, propagation and export, on images drawn for it."""

import contextlib
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import flags

from dilated_affinity.cli.doctor_finding import FAILED, OK, Finding
from dilated_affinity.errors import first_line

_IMAGES = {"train": 4, "val": 1}
_SETTINGS = {
    "backbone": "doctor",
    "backbone_weights": "none",
    "batch_norm": "sync",
    "separable": False,
    "rates": "4",
    "atrous_rates": "1",
    "filters": 8,
    "crop_size": 65,
    "batch_size": 2,
    "train_steps": 2,
    "validate_every": 2,
    "eval_output_stride": 16,
    "propagation_iterations": 2,
    "calibrate": "none",
}
_RATES = ((1, 1), (2, 3))
_LARGEST_DIFFERENCE = 1e-5
_REMEDY = "report it with all lines of `doctor --debug`"


def self_test() -> Iterator[Finding]:
    """Trains two steps, compares the propagation with its equation, exports and reads back."""
    with tempfile.TemporaryDirectory() as folder:
        trained = _attempt("training", _train, Path(folder))
        yield trained
        yield _attempt("propagation", _propagate)
        if trained.status == OK:
            yield _attempt("export", _export, Path(folder))


def _attempt(name, check, *arguments):
    start = time.monotonic()
    try:
        text = check(*arguments)
    except Exception as error:  # to be shown, whatever it is
        if flags.FLAGS.debug:
            raise
        return Finding(FAILED, f"{name}: {type(error).__name__}: {first_line(error)}", _REMEDY)
    return Finding(OK, f"{name}: {text} ({time.monotonic() - start:.0f} s)")


def _train(folder):
    import keras

    from dilated_affinity.config import Config
    from dilated_affinity.models.backbone import Backbone
    from dilated_affinity.models.deeplab import BACKBONES
    from dilated_affinity.training.trainer import train

    BACKBONES["doctor"] = Backbone(
        application=_small_network,
        preprocess=lambda: keras.layers.Rescaling(1 / 127.5, offset=-1.0),
        low_level="relu1",
        high_level="relu4",
        padding="same",
    )
    _draw(folder / "data")
    config = Config.for_dataset("folder", data_dir=str(folder / "data"), **_SETTINGS)
    with _eager_functions():
        result = train(config, folder / "run")
    return (
        f"{result.step} steps on drawn shapes, validation mIoU {100 * result.best_mean_iou:.1f} %"
    )


@contextlib.contextmanager
def _eager_functions():
    """Context in which TensorFlow runs functions operation by operation.

    Tracing those of a training takes longer than two steps of it. The propagation and the export
    are traced and compiled as always.
    """
    import tensorflow as tf

    eager = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        with warnings.catch_warnings():
            # That tf.data traces its functions nevertheless.
            warnings.filterwarnings("ignore", "Even though the `tf.config", UserWarning)
            yield
    finally:
        tf.config.run_functions_eagerly(eager)


def _small_network(weights, input_shape):
    """Five strided convolutions, which are traced in a tenth of a MobileNet's time."""
    import keras

    layers = keras.layers
    features = images = layers.Input(input_shape)
    for level in range(5):
        convolution = layers.Conv2D(8, 3, 2, "same", use_bias=False, name=f"conv{level}")
        features = layers.BatchNormalization(name=f"bn{level}")(convolution(features))
        features = layers.ReLU(name=f"relu{level}")(features)
    return keras.Model(images, features, name="doctor")


def _draw(folder):
    from PIL import Image

    from dilated_affinity.datasets.shapes.drawing import draw_example

    for split, count in _IMAGES.items():
        for index in range(count):
            for kind, pixels in zip(("images", "masks"), draw_example(split, index), strict=True):
                path = folder / kind / split / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)


def _propagate():
    from dilated_affinity.affinity.propagation import propagate

    generator = np.random.default_rng(0)
    probabilities = generator.random((9, 8, 3), np.float32)
    probabilities /= probabilities.sum(axis=-1, keepdims=True)
    affinities = generator.random((9, 8, 8 * len(_RATES)), np.float32)
    found = propagate(probabilities[np.newaxis], affinities[np.newaxis], _RATES, 3)
    expected = _equation_6(probabilities, affinities, _RATES, 3)
    difference = float(np.abs(np.asarray(found)[0] - expected).max())
    if not difference <= _LARGEST_DIFFERENCE:
        raise ArithmeticError(f"probabilities differ from Eq. 6 by {difference:.2g}")
    return f"3 iterations differ from Eq. 6 by at most {difference:.0e}"


def _equation_6(probabilities, affinities, rates, iterations, self_weight=6.0):
    from dilated_affinity.affinity.geometry import neighbor_offsets

    height, width, _ = probabilities.shape
    for _ in range(iterations):
        largest = probabilities.max(axis=-1, keepdims=True)
        mixed = self_weight * probabilities * largest
        for y, x in np.ndindex(height, width):
            for channel, (down, right) in enumerate(neighbor_offsets(rates)):
                row, column = y + down, x + right
                if 0 <= row < height and 0 <= column < width:
                    mixed[y, x] += affinities[y, x, channel] * probabilities[row, column]
        probabilities = mixed / mixed.sum(axis=-1, keepdims=True)
    return probabilities


def _export(folder):
    import keras

    from dilated_affinity.datasets.shapes.drawing import draw_example
    from dilated_affinity.export.export import export_model
    from dilated_affinity.inference.refinement import Refinement
    from dilated_affinity.run_dir.load import load_run

    config, model = load_run(folder / "run")
    image, _ = draw_example("val", 0)
    refinement = Refinement.from_config(config.replace(refine="none"))
    # Other backends cannot write a SavedModel.
    tensorflow = keras.backend.backend() == "tensorflow"
    output, format = ("export", "saved_model") if tensorflow else ("export.keras", "keras")
    settings = {"format": format, "jit_compile": False, "refinement": refinement}
    agreement = export_model(model, folder / output, image[:65, :65], **settings)
    name = "SavedModel" if tensorflow else "Keras model"
    return f"a {name}, read back, gives probabilities within {agreement.probabilities:.0e}"
