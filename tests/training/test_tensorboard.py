"""What TensorBoard is given, read back from its event files by its own reader."""

import importlib.util
import io

import keras
import numpy as np
import pytest
from helpers.tiny import tiny_config, write_camvid
from PIL import Image

from dilated_affinity.affinity.loss import AffinityLoss
from dilated_affinity.affinity.statistics import AffinityStatistics
from dilated_affinity.datasets.registry import load_source
from dilated_affinity.errors import ConfigError
from dilated_affinity.evaluation.evaluate import Evaluation, evaluate
from dilated_affinity.evaluation.metrics import AffinityAccuracy
from dilated_affinity.models.deeplab import DeepLabV3Plus
from dilated_affinity.training.input_pipeline import training_dataset
from dilated_affinity.training.losses import SemanticLoss
from dilated_affinity.training.tensorboard import TensorBoardMonitor


def read(folder):
    """Scalars as {tag: [(step, value)]} and images as {tag: [(step, array)]}."""
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    events = event_accumulator.EventAccumulator(str(folder), {"tensors": 0, "images": 0})
    events.Reload()
    scalars, images = {}, {}
    for tag in events.Tags()["tensors"]:
        for event in events.Tensors(tag):
            if event.tensor_proto.string_val:
                picture = Image.open(io.BytesIO(event.tensor_proto.string_val[2]))
                images.setdefault(tag, []).append((event.step, np.asarray(picture)))
            else:
                content = np.frombuffer(event.tensor_proto.tensor_content, "float32")
                value = content[0] if content.size else event.tensor_proto.float_val[0]
                scalars.setdefault(tag, []).append((event.step, float(value)))
    return scalars, images


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A model fitted for two epochs of three steps, its validation, and what was written."""
    pytest.importorskip("tensorboard")
    folder = tmp_path_factory.mktemp("monitoring")
    config = tiny_config(write_camvid(folder / "camvid"), train_steps=6)
    source = load_source("camvid", "train", config.data_dir)
    labels = (source[index]["label"] for index in range(len(source)))
    statistics = AffinityStatistics.from_labels(labels, config.affinity_rates)
    model = DeepLabV3Plus(11, statistics.rates, "tiny", weights=None, filters=16)
    model.compile(
        keras.optimizers.SGD(keras.optimizers.schedules.PolynomialDecay(0.1, 10, 0.0)),
        loss={"semantic": SemanticLoss(), "affinity": AffinityLoss(statistics)},
        metrics={"affinity": [AffinityAccuracy(statistics.rates)]},
    )
    validation = load_source("camvid", "val", config.data_dir)
    monitor = TensorBoardMonitor(folder / "logs", validation, every=2, pictures=2, iterations=1)
    batches = training_dataset(config, source).repeat()
    history = model.fit(batches, epochs=2, steps_per_epoch=3, callbacks=[monitor], verbose=0)
    return model, validation, history.history, folder / "logs"


def test_losses_and_learning_rate(fitted):
    _, _, history, folder = fitted
    scalars, _ = read(folder / "train")
    for tag, name in (
        ("total", "loss"),
        ("semantic", "semantic_loss"),
        ("affinity", "affinity_loss"),
    ):
        written = dict(scalars[f"loss/{tag}"])
        assert sorted(written) == [2, 3, 5, 6]
        np.testing.assert_allclose([written[3], written[6]], history[name], rtol=1e-5)
    rates = dict(scalars["learning_rate"])
    np.testing.assert_allclose([rates[3], rates[6]], [0.07, 0.04], rtol=1e-5)
    accuracy = dict(scalars["metrics/affinity_accuracy"])
    np.testing.assert_allclose(accuracy[6], history["affinity_accuracy"][1], rtol=1e-5)


def test_affinity_accuracy_by_neighbour_count(fitted):
    model, _, _, folder = fitted
    scalars, _ = read(folder / "train")
    written = [tag for tag in scalars if tag.startswith("affinity_accuracy/n")]
    assert "affinity_accuracy/n8" in written and len(written) > 1
    values = dict(scalars["affinity_accuracy/n8"])
    assert sorted(values) == [3, 6] and all(0 <= value <= 1 for value in values.values())


def test_validation_equals_evaluate(fitted):
    model, validation, _, folder = fitted
    scalars, _ = read(folder / "validation")
    expected = evaluate(model, validation, (0, 1))
    for index, when in enumerate(("before_refinement", "after_refinement")):
        assert dict(scalars[f"mean_iou/{when}"])[6] == pytest.approx(expected.mean_iou[index])
        for name, value in zip(expected.class_names, expected.class_iou[index], strict=True):
            tag = f"iou_{when}/{name.replace(' ', '_')}"
            if np.isnan(value):
                assert 6 not in dict(scalars.get(tag, []))
            else:
                assert dict(scalars[tag])[6] == pytest.approx(value, abs=1e-6)
    by_count = np.nanmean(expected.affinity_accuracy, axis=0)
    assert dict(scalars["affinity_accuracy/n8"])[6] == pytest.approx(by_count[8], abs=1e-6)


def test_pictures(fitted):
    _, validation, _, folder = fitted
    _, images = read(folder / "validation")
    assert set(images) == {f"examples/{name}" for name in validation.ids[:2]}
    step, picture = images[f"examples/{validation.ids[0]}"][-1]
    assert step == 6
    image = validation[0]["image"]  # stands first, between its caption and the legend
    height, width = image.shape[:2]
    strips = (picture[top : top + height, :width] for top in range(len(picture) - height))
    assert any(np.array_equal(strip, image) for strip in strips)


def test_evaluation_at_one_number_of_iterations(tmp_path):
    evaluation = Evaluation(
        1, ("a/b c", "d"), (0,), "predicted", np.array([[0.25, np.nan]]), (0.5,), (0.5,)
    )
    monitor = TensorBoardMonitor(tmp_path)
    monitor.write_evaluation(evaluation, step=7)
    monitor.on_train_end()
    scalars, _ = read(tmp_path / "validation")
    assert scalars == {
        "mean_iou/before_refinement": [(7, 0.25)],
        "iou_before_refinement/a_b_c": [(7, 0.25)],
    }


def test_tensorboard_not_installed(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        TensorBoardMonitor(tmp_path)


def test_every_must_be_positive(tmp_path):
    with pytest.raises(ConfigError, match="every=0"):
        TensorBoardMonitor(tmp_path, every=0)
