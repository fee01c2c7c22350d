"""Validation between two intervals of training."""

from pathlib import Path

import keras
import numpy as np
from absl import logging

from dilated_affinity.config import Config
from dilated_affinity.datasets.registry import Source
from dilated_affinity.errors import DataError
from dilated_affinity.evaluation.evaluate import class_iou
from dilated_affinity.inference.network import logits_fn
from dilated_affinity.inference.predictor import Predictor
from dilated_affinity.inference.refinement import Refinement
from dilated_affinity.run_dir.checkpoints import read_state
from dilated_affinity.run_dir.model import at_output_stride, copy_weights
from dilated_affinity.runtime.distribution import broadcast, on_own_devices


class Validation:
    """Measures the model of a run at its evaluation output stride, without refinement.

    Args:
        config: The run's settings.
        model: The model.
        source: The validation examples.
    """

    def __init__(self, config: Config, model: keras.Model, source: Source):
        self._config = config
        self._model = model
        self._source = source
        self._evaluated = self._predict = self._predictor = None

    def measure(self) -> list[float]:
        """Returns the IoU of each class, on every process; the first one computes it."""
        with on_own_devices():
            return broadcast(lambda: self.class_iou().tolist())

    def class_iou(self) -> np.ndarray:
        """Returns the IoU of each class, float64 (C,); NaN for classes that do not occur."""
        if self._evaluated is None:
            self._evaluated = at_output_stride(self._model, self._config)
            self._predict = logits_fn(self._evaluated)
        copy_weights(self._model, self._evaluated)
        return class_iou(self._predict, self._source)

    def show(self, monitor, ious: list[float], step: int):
        """Writes what was measured, and pictures of the first images, for TensorBoard.

        Args:
            monitor: A `TensorBoardMonitor`.
            ious: As `measure` returned them, in this process.
            step: The step of the model.
        """
        if self._predictor is None:
            refinement = Refinement.from_config(self._config)
            if not refinement.propagates:  # a CRF needs an extra, which training does not
                refinement = refinement.replace(variant="none")
            self._predictor = Predictor(self._evaluated, refinement=refinement)
        monitor.write_class_iou(self._source.classes.names, ious, step=step)
        monitor.write_pictures(self._predictor, self._source, step=step)


def is_whole(best: Path) -> bool:
    """Returns whether the best model can be read; warns if it has to be replaced."""
    try:
        read_state(best)
    except DataError as error:
        logging.warning("%s. It is replaced by the model of this validation.", error)
        return False
    return True
