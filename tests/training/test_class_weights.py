"""Class weights: counted, read, kept by a run, and what the loss makes of them."""

import json

import keras
import numpy as np
import pytest
from helpers.tiny import ListSource, tiny_config, write_camvid

from dilated_affinity.datasets.classes import CAMVID, ClassTable
from dilated_affinity.datasets.registry import load_source
from dilated_affinity.errors import ConfigError, DataError
from dilated_affinity.run_dir.layout import CLASS_WEIGHTS_FILE
from dilated_affinity.run_dir.model import build_model
from dilated_affinity.training.class_weights import (
    balanced_weights,
    count_class_pixels,
    read_class_weights,
    run_class_weights,
)
from dilated_affinity.training.compile import compile_model
from dilated_affinity.training.losses import SemanticLoss

CLASSES = ClassTable(("a", "b", "c"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)))


def weighted_mean(labels, logits, weights):
    """The definition of PyTorch's CrossEntropyLoss, pixel by pixel."""
    total = divisor = 0.0
    for label, row in zip(labels.ravel(), logits.reshape(-1, logits.shape[-1]), strict=True):
        if label != 255:
            total -= weights[label] * (row[label] - np.log(np.exp(row).sum()))
            divisor += weights[label]
    return total / divisor if divisor else 0.0


@pytest.mark.parametrize("weights", [(1.0, 2.0, 0.5), (1e-3, 0.0, 2e-3), (5, 5, 5)])
def test_loss_is_weighted_mean(weights):
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 2, 255], (2, 3, 4)).astype("uint8")
    logits = rng.normal(size=(2, 3, 4, 3)).astype("float32")
    loss = SemanticLoss(class_weights=weights)
    expected = weighted_mean(labels, logits, weights)
    assert float(loss(labels, logits)) == pytest.approx(expected, rel=1e-5)
    again = SemanticLoss.from_config(json.loads(json.dumps(loss.get_config())))
    assert float(again(labels, logits)) == pytest.approx(expected, rel=1e-5)
    per_pixel = SemanticLoss(class_weights=weights, reduction="none")(labels, logits)
    assert float(keras.ops.mean(per_pixel)) == pytest.approx(expected, rel=1e-5)
    assert float(loss(np.full_like(labels, 255), logits)) == 0


def test_equal_weights_give_plain_mean():
    rng = np.random.default_rng(1)
    labels, logits = rng.integers(0, 3, (1, 4, 4)), rng.normal(size=(1, 4, 4, 3))
    plain = float(SemanticLoss()(labels, logits))
    assert float(SemanticLoss(class_weights=[7] * 3)(labels, logits)) == pytest.approx(plain)


@pytest.mark.parametrize("weights", [(), (0, 0), (1, -1), (1, float("nan")), "ab", 3])
def test_invalid_weights(weights):
    with pytest.raises(ConfigError, match="class_weights must be .*Received"):
        SemanticLoss(class_weights=weights)


def test_wrong_number_of_classes():
    with pytest.raises(ValueError, match="must have 2 classes, as class_weights"):
        SemanticLoss(class_weights=(1, 2))(np.zeros((1, 2, 2), int), np.zeros((1, 2, 2, 3)))


def test_balanced_weights():
    labels = [np.array([[0, 0, 0, 0, 2]]), np.array([[2, 255, 0, 0, 0]])]
    source = ListSource(
        [{"image": None, "label": each.astype("uint8"), "id": ""} for each in labels], CLASSES
    )
    pixels = count_class_pixels(source)
    assert pixels.tolist() == [7, 0, 2]
    weights = balanced_weights(pixels)
    shares = weights * pixels
    assert shares[0] == pytest.approx(shares[2]) and weights[1] == 0
    assert shares.sum() / pixels.sum() == pytest.approx(1)
    with pytest.raises(DataError, match="at least one pixel"):
        balanced_weights([0, 0])


def test_file_by_name_or_in_order(tmp_path):
    path = tmp_path / "weights.json"
    for content in ({"b": 2, "a": 1, "c": 0.5}, [1, 2, 0.5]):
        path.write_text(json.dumps(content))
        assert read_class_weights(path, CLASSES) == [1, 2, 0.5]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "must be JSON"),
        ("3", "must be finite numbers"),
        (
            '{"a": 1, "b": 2, "d": 3}',
            r"no weight for \['c'\], and weights for unknown classes \['d'\]",
        ),
        ("[1, 2]", "must be 3 numbers.* Received: 2"),
        ('[1, 2, "x"]', "must be finite numbers"),
        ("[0, 0, 0]", "one of them above 0"),
    ],
)
def test_invalid_files(tmp_path, content, message):
    path = tmp_path / "weights.json"
    path.write_text(content)
    with pytest.raises(DataError, match=f"weights.json: .*{message}"):
        read_class_weights(path, CLASSES)
    with pytest.raises(DataError, match="none.json: cannot read class weights"):
        read_class_weights(tmp_path / "none.json", CLASSES)


def test_weights_are_saved_with_the_run(tmp_path):
    config = tiny_config(write_camvid(tmp_path / "camvid"), rates="none")
    source = load_source(config.dataset, config.train_split, config.data_dir)
    assert run_class_weights(config, source, tmp_path) is None
    weights = run_class_weights(config.replace(class_weights="balanced"), source, tmp_path)
    pixels = np.zeros(11)
    for index in range(len(source)):
        for label in range(11):
            pixels[label] += (source[index]["label"] == label).sum()
    occurs = pixels > 0
    np.testing.assert_allclose(
        np.array(weights)[occurs], pixels.sum() / (occurs.sum() * pixels[occurs])
    )
    content = json.loads((tmp_path / CLASS_WEIGHTS_FILE).read_text())
    assert list(content) == list(CAMVID.names) and list(content.values()) == weights
    # From now on they are the folder's, whatever becomes of the file or the data.
    given = tmp_path / "given.json"
    given.write_text(json.dumps([1.0] * 10 + [3.0]))
    settings = config.replace(class_weights=str(given))
    assert run_class_weights(settings, source, tmp_path) == weights
    other = tmp_path / "other"
    other.mkdir()
    assert run_class_weights(settings, source, other)[-1] == 3
    given.unlink()
    assert run_class_weights(settings, source, other)[-1] == 3

    trained = compile_model(build_model(config, 11), config, class_weights=weights)
    assert trained.loss["semantic"].class_weights == tuple(weights)
