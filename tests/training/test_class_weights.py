"""Class weights: counted, read, kept by a run, and what the loss makes of them."""

import json

import keras
import numpy as np
import pytest
from helpers.tiny import ListSource, tiny_config, write_camvid

from dilated_affinity.datasets.classes import CAMVID, ClassTable
from dilated_affinity.datasets.registry import load_source
from dilated_affinity.errors import ConfigError, DataError
from dilated_affinity.run_dir.layout import CLASS_WEIGHTS_FILE, LOG_FILE
from dilated_affinity.run_dir.model import build_model
from dilated_affinity.training.class_weights import (
    balanced_weights,
    count_class_pixels,
    read_class_weights,
    run_class_weights,
)
from dilated_affinity.training.compile import compile_model
from dilated_affinity.training.losses import SemanticLoss, check_class_weights
from dilated_affinity.training.run_checks import load_sources

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


@pytest.mark.parametrize(
    "weights",
    [
        *[(), (0, 0), (1, -1), (1, float("nan")), (1, 10**400), "ab", "123", b"12", 3, None],
        # Keras' own class_weight has this form; its keys would be taken for weights.
        *[{0: 1.0, 1: 2.0}, {1.0, 2.0}, ("1", 2), (True, 2), np.array([True, False])],
    ],
    ids=str,
)
def test_invalid_weights(weights):
    with pytest.raises(ConfigError, match="class_weights must be .*Received"):
        check_class_weights(weights)


@pytest.mark.parametrize("largest", [np.float32(3), np.int64(7), 1e39, 1e-320])
def test_only_ratios_matter(largest):
    """Also where the weights themselves are beyond float32."""
    rng = np.random.default_rng(2)
    labels, logits = rng.integers(0, 2, (1, 4, 5)), rng.normal(size=(1, 4, 5, 2))
    found = float(SemanticLoss(class_weights=(largest, largest / 2))(labels, logits))
    assert found == pytest.approx(weighted_mean(labels, logits, (1, 0.5)), rel=1e-5)


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
        ("3", "must be a sequence of finite numbers"),
        (
            '{"a": 1, "b": 2, "d": 3}',
            r"no weight for \['c'\], and weights for unknown classes \['d'\]",
        ),
        ("[1, 2]", "must be 3 numbers.* Received: 2"),
        ('[1, 2, "x"]', "must be a sequence of finite numbers"),
        ("[0, 0, 0]", "one of them above 0"),
        ('["1", 2, 3]', "must be a sequence of finite numbers"),
        ("[true, 1, 2]", "must be a sequence of finite numbers"),
        ('{"a": 1, "b": 2, "a": 3, "c": 1}', "must name each class once. Received: a, b, a, c"),
    ],
)
def test_invalid_files(tmp_path, content, message):
    path = tmp_path / "weights.json"
    path.write_text(content)
    with pytest.raises(DataError, match=f"weights.json: .*{message}"):
        read_class_weights(path, CLASSES)
    with pytest.raises(DataError, match="none.json: cannot read class weights"):
        read_class_weights(tmp_path / "none.json", CLASSES)


def test_weights_are_saved_with_the_run(tmp_path, caplog):
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
    # Until something is trained, a file may still be corrected.
    given = tmp_path / "given.json"
    settings = config.replace(class_weights=str(given))
    for largest in (3.0, 4.0):
        given.write_text(json.dumps([1.0] * 10 + [largest]))
        assert run_class_weights(settings, source, tmp_path)[-1] == largest
    # From then on they are the folder's, whatever becomes of the file.
    (tmp_path / LOG_FILE).touch()
    given.write_text(json.dumps([1.0] * 10 + [5.0]))
    caplog.clear()
    assert run_class_weights(settings, source, tmp_path)[-1] == 4
    assert f"{given}: its weights have changed since training began, and are not" in caplog.text
    given.unlink()
    assert run_class_weights(settings, source, tmp_path)[-1] == 4

    trained = compile_model(build_model(config, 11), config, class_weights=weights)
    assert trained.loss["semantic"].class_weights == tuple(weights)


def test_names_in_another_unicode_form(tmp_path):
    path, classes = tmp_path / "weights.json", ClassTable(("B\u00e4ume",), ((0, 0, 0),))
    path.write_text(json.dumps({"Ba\u0308ume": 2}))
    assert read_class_weights(path, classes) == [2]


def test_weights_of_classes_that_no_label_has_are_refused(tmp_path):
    config = tiny_config(write_camvid(tmp_path / "camvid"), rates="none")
    source = load_source(config.dataset, config.train_split, config.data_dir)
    missing = int(np.flatnonzero(count_class_pixels(source) == 0)[0])
    path = tmp_path / "weights.json"
    config = config.replace(class_weights=str(path))
    path.write_text(json.dumps([float(index == missing) for index in range(11)]))
    with pytest.raises(DataError, match=f"weights for {CAMVID.names[missing]} alone"):
        load_sources(config)
    path.write_text(json.dumps([1.0] * 11))
    load_sources(config)
