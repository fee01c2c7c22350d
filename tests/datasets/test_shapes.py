import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from dilated_affinity.datasets import records, registry
from dilated_affinity.datasets.classes import SHAPES
from dilated_affinity.datasets.shapes import Shapes
from dilated_affinity.datasets.shapes.drawing import draw_example
from dilated_affinity.errors import ConfigError, DataError


class FewShapes(Shapes, skip_registration=True):
    """`Shapes` with few images, since each takes 15 ms."""

    name = "few_shapes"
    SPLIT_SIZES = {"train": 6, "val": 3}


@pytest.fixture(scope="module")
def prepared_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    FewShapes(data_dir=folder).source("train")
    return folder


def test_examples_depend_on_split_and_index():
    image, label = draw_example("train", 7)
    draw_example("val", 3)
    again, label_again = draw_example("train", 7)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(label, label_again)
    assert (draw_example("val", 7)[1] != label).any()
    assert (draw_example("train", 8)[1] != label).any()


def test_content():
    labels = []
    for index in range(30):
        image, label = draw_example("train", index)
        assert image.shape == (160, 160, 3) and image.dtype == np.uint8
        assert label.shape == (160, 160) and label.dtype == np.uint8
        assert image.std() > 10
        labels.append(label)
    counts = np.bincount(np.stack(labels).ravel(), minlength=256)
    assert set(np.flatnonzero(counts)) == {*range(7), 255}
    share = counts / counts.sum()
    assert 0.5 < share[0] < 0.8
    assert (share[1:7] > 0.005).all()
    assert 0.02 < share[255] < 0.08


def test_objects_have_void_outlines():
    """There is void between an object and the background."""
    for index in range(10):
        label = draw_example("val", index)[1].astype(int)
        for a, b in ((label[1:], label[:-1]), (label[:, 1:], label[:, :-1])):
            assert not ((a != b) & (a != 255) & (b != 255)).any()


def test_prepared_examples_equal_drawn_examples(prepared_dir):
    for split, count in (("train", 6), ("val", 3)):
        source = FewShapes(data_dir=prepared_dir).source(split)
        assert len(source) == count
        assert source.classes is SHAPES
        for index in range(count):
            image, label = draw_example(split, index)
            np.testing.assert_array_equal(source[index]["image"], image)
            np.testing.assert_array_equal(source[index]["label"], label)
            assert source[index]["id"] == source.ids[index] == f"{split}_{index:05d}"
    assert source[-1]["id"] == "val_00002"
    with pytest.raises(IndexError):
        source[3]


def test_source_is_picklable_and_thread_safe(prepared_dir):
    source = FewShapes(data_dir=prepared_dir).source("train")
    expected = [source[index]["image"] for index in range(6)]
    copy = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(8) as pool:
        for index, example in enumerate(pool.map(lambda i: copy[i % 6], range(60))):
            np.testing.assert_array_equal(example["image"], expected[index % 6])


def test_splits(prepared_dir):
    builder = FewShapes(data_dir=prepared_dir)
    source = builder.source("train[4:]+val")
    assert source.ids == ["train_00004", "train_00005", "val_00000", "val_00001", "val_00002"]
    for index, name in enumerate(source.ids):
        split, number = name.split("_")
        np.testing.assert_array_equal(source[index]["image"], draw_example(split, int(number))[0])
    with pytest.raises(ConfigError, match="has the splits train, val. Received: split='test'"):
        builder.source("test")


def test_preparing_prints_nothing_without_terminal(tmp_path, capsys):
    FewShapes(data_dir=tmp_path).source("val")
    out, err = capsys.readouterr()
    assert out == "" and "Generating" not in err


def test_preparing_shows_progress(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(records, "watched", lambda: True)
    tfds.enable_progress_bar()
    FewShapes(data_dir=tmp_path).source("val")
    tfds.disable_progress_bar()
    out, err = capsys.readouterr()
    assert out == "" and "Generating train examples...:   0%" in err and "| 0/6 [" in err


def test_prepared_once(prepared_dir, monkeypatch):
    def fail(*args):
        raise AssertionError("drawn again")

    monkeypatch.setattr(
        "dilated_affinity.datasets.shapes.shapes_dataset_builder.draw_example", fail
    )
    assert len(FewShapes(data_dir=prepared_dir).source("train")) == 6


def test_interrupted_preparation(tmp_path, monkeypatch):
    def interrupt(split, index):
        if index == 3:
            raise KeyboardInterrupt
        return draw_example(split, index)

    target = "dilated_affinity.datasets.shapes.shapes_dataset_builder.draw_example"
    with monkeypatch.context() as patch:
        patch.setattr(target, interrupt)
        with pytest.raises(KeyboardInterrupt):
            FewShapes(data_dir=tmp_path).source("train")
    assert not list((tmp_path / "few_shapes").iterdir())
    # Files left by a killed process are not taken for the data set.
    (tmp_path / "few_shapes" / "incomplete.ABCDEF_1.0.0").mkdir()
    assert len(FewShapes(data_dir=tmp_path).source("train")) == 6


def test_incomplete_folders_are_refused(tmp_path):
    folder = tmp_path / "few_shapes" / "1.0.0"
    folder.mkdir(parents=True)
    with pytest.raises(DataError, match="1.0.0: remove this folder .* without dataset_info.json"):
        FewShapes(data_dir=tmp_path).source("train")
    folder.rmdir()
    source = FewShapes(data_dir=tmp_path).source("val")
    records = next(folder.glob("*val*"))
    data = records.read_bytes()
    records.unlink()
    with pytest.raises(DataError, match="Expected .*val.* Received: no such file"):
        FewShapes(data_dir=tmp_path).source("val")
    records.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="remove this folder"):
        source = FewShapes(data_dir=tmp_path).source("val")
        for index in range(3):
            source[index]


def test_data_dir_that_cannot_be_written(tmp_path):
    (tmp_path / "data").touch()
    with pytest.raises(DataError, match="expected to be able to write"):
        FewShapes(data_dir=tmp_path / "data").source("train")


def test_load_dataset(prepared_dir, monkeypatch):
    module = "test_shapes"
    monkeypatch.setitem(registry._BUILDERS, "few_shapes", (module, "FewShapes"))
    monkeypatch.setattr(registry.importlib, "import_module", lambda name: _Module)
    dataset = registry.load_dataset("few_shapes", "train", prepared_dir)
    assert dataset.element_spec["label"] == tf.TensorSpec((None, None), tf.uint8)
    assert [example["id"].numpy() for example in dataset] == [
        f"train_{index:05d}".encode() for index in range(6)
    ]


class _Module:
    FewShapes = FewShapes
