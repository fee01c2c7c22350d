"""TensorBoard: losses of each head, learning rate, IoU of each class, affinity, pictures."""

import importlib.util
import os
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from dilated_affinity.datasets.registry import Source
from dilated_affinity.errors import ConfigError
from dilated_affinity.evaluation.evaluate import Evaluation, evaluate
from dilated_affinity.evaluation.metrics import AffinityAccuracy, mean_over_classes
from dilated_affinity.inference.predictor import Predictor
from dilated_affinity.inference.refinement import as_refinement
from dilated_affinity.visualization import comparison


class TensorBoardMonitor(keras.callbacks.Callback):
    """Writes losses, metrics and pictures of `model.fit` for TensorBoard.

    During training it writes `loss/*`, `metrics/*` and `learning_rate` every `every` batches, and
    after an epoch `affinity_accuracy/n0` to `n8`, by the number of a pixel's neighbours of the same
    class. Losses and accuracies are Keras' running means over the epoch. With `validation` it
    writes after every epoch, before and after refinement, `mean_iou/*`,
    `iou_before_refinement/<class>`, `iou_after_refinement/<class>`, the affinity's accuracy, and
    pictures of some examples.

    Args:
        log_dir: Folder of the event files, made if missing.
        validation: Examples to evaluate after every epoch; None, the default, for none. Then
            `write_evaluation` and `write_pictures` write results obtained elsewhere.
        every: Batches between two values of losses and learning rate. Defaults to 50.
        pictures: Number of examples of `validation` to draw. Defaults to 3.
        iterations: Iterations of propagation for `validation`. Defaults to those of `refinement`.
        refinement: As for `inference_model`.
        **settings: As for `inference_model`.

    Raises:
        ConfigError: If TensorBoard is not installed, or `every` is below 1.

    Example:

    >>> import tempfile
    >>> images, labels = np.zeros((2, 9, 9, 3), "float32"), np.zeros((2, 9, 9), "uint8")
    >>> model = keras.Sequential([keras.Input((9, 9, 3)), keras.layers.Conv2D(4, 1)])
    >>> model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     monitor = TensorBoardMonitor(folder, every=1)
    ...     history = model.fit(images, labels, callbacks=[monitor], verbose=0)
    ...     [path.name for path in Path(folder).iterdir()]
    ['train']
    """

    def __init__(
        self,
        log_dir: str | os.PathLike,
        validation: Source | None = None,
        every=50,
        pictures=3,
        iterations: int | None = None,
        refinement=None,
        **settings,
    ):
        super().__init__()
        check_tensorboard()
        if every < 1:
            raise ConfigError(f"every must be at least 1. Received: every={every}")
        self._log_dir = Path(log_dir)
        self._validation = validation
        self._every = every
        self._pictures = pictures
        self._refinement = as_refinement(refinement, iterations=iterations, **settings)
        self._predictor = None
        self._writers = {}

    def on_train_batch_end(self, batch, logs=None):
        if (batch + 1) % self._every == 0:
            self._write_training(logs or {})

    def on_epoch_end(self, epoch, logs=None):
        self._write_training(logs or {})
        with self._writing("train"):
            for metric in _affinity_metrics(self.model):
                _write_by_count(metric.by_count())
        if self._validation is not None:
            self._validate()

    def on_train_end(self, logs=None):
        for writer in self._writers.values():
            writer.flush()

    def write_class_iou(self, class_names, class_iou, when="before_refinement", step=None):
        """Writes the IoU of each class and their mean.

        Args:
            class_names: Name of each class.
            class_iou: IoU of each class, 0 to 1; NaN, for a class not in the labels, is left out.
            when: Suffix of the tags. Defaults to `"before_refinement"`.
            step: Training step; that of the model's optimizer when None.
        """
        with self._writing("validation", step):
            self._scalar(f"mean_iou/{when}", mean_over_classes(class_iou))
            for name, value in zip(class_names, class_iou, strict=True):
                self._scalar(f"iou_{when}/{_tag(name)}", value)

    def write_evaluation(self, evaluation: Evaluation, step=None):
        """Writes an `Evaluation`: IoU before and after refinement, and affinity accuracy.

        Args:
            evaluation: An evaluation at one or more numbers of iterations; the first is written
                as before refinement, the last as after it.
            step: Training step; that of the model's optimizer when None.
        """
        names, iou = evaluation.class_names, evaluation.class_iou
        self.write_class_iou(names, iou[0], step=step)
        if len(iou) > 1:
            self.write_class_iou(names, iou[-1], "after_refinement", step)
        if evaluation.affinity_accuracy is not None:
            with self._writing("validation", step):
                # A plain mean over the rates, in which counts occur about equally often.
                _write_by_count(_mean_over_rates(evaluation.affinity_accuracy))

    def write_pictures(self, predictor: Predictor, source: Source, count=3, step=None):
        """Writes image, prediction, affinity, refinement and ground truth of the first examples.

        Args:
            predictor: Predicts the examples.
            source: The examples.
            count: Number of examples, from the first on. Defaults to 3.
            step: Training step; that of the model's optimizer when None.
        """
        with self._writing("validation", step):
            for index in range(min(count, len(source))):
                example = source[index]
                prediction = predictor(example["image"])
                picture = comparison(example, prediction, predictor.rates, source.classes)
                tf.summary.image(f"examples/{_tag(example['id'])}", picture[np.newaxis])

    def _write_training(self, logs):
        with self._writing("train"):
            for name, value in logs.items():
                if name.startswith("val_"):
                    continue
                head = "total" if name == "loss" else name.removesuffix("_loss")
                group = "loss" if name.endswith("loss") else "metrics"
                self._scalar(f"{group}/{head}", value)
            self._scalar("learning_rate", self.model.optimizer.learning_rate)

    def _validate(self):
        if self._predictor is None:
            self._predictor = Predictor(self.model, refinement=self._refinement)
        iterations = self._refinement.iterations
        measured = (0,) if self._predictor.rates is None or not iterations else (0, iterations)
        evaluation = evaluate(self.model, self._validation, measured, refinement=self._refinement)
        self.write_evaluation(evaluation)
        self.write_pictures(self._predictor, self._validation, self._pictures)

    def _scalar(self, name, value):
        value = float(np.asarray(keras.ops.convert_to_numpy(value)))
        if np.isfinite(value):
            tf.summary.scalar(name, value)

    def _writing(self, part, step=None):
        """Returns a context that writes summaries at a step to the event file of a part."""
        if part not in self._writers:
            self._writers[part] = tf.summary.create_file_writer(str(self._log_dir / part))
        if step is None:
            step = int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))
        return self._writers[part].as_default(step)


def check_tensorboard():
    """Raises `ConfigError` if TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ConfigError("TensorBoard is not installed: pip install tensorboard")


def _affinity_metrics(model):
    """The compiled metrics of the affinity head, if any."""
    pending = list(model.metrics)
    while pending:
        metric = pending.pop()
        if isinstance(metric, AffinityAccuracy):
            yield metric
        pending += getattr(metric, "metrics", [])


def _write_by_count(accuracy):
    for count, value in enumerate(accuracy):
        if np.isfinite(value):
            tf.summary.scalar(f"affinity_accuracy/n{count}", float(value))


def _mean_over_rates(accuracy):
    seen = np.isfinite(accuracy)
    total = np.where(seen, accuracy, 0).sum(axis=0)
    return np.divide(total, seen.sum(axis=0), out=np.full(9, np.nan), where=seen.any(axis=0))


def _tag(name):
    """Returns a name without slashes, which TensorBoard would take for groups."""
    return str(name).replace("/", "_").replace(" ", "_")
