import pickle
import shutil
import tempfile

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from dilated_affinity.datasets.camvid import Camvid
from dilated_affinity.datasets.classes import CAMVID
from dilated_affinity.datasets.registry import load_dataset, load_source
from dilated_affinity.errors import ConfigError, DataError


def test_source(camvid_dir):
    source = load_source("camvid", "train", camvid_dir)
    assert len(source) == 3
    assert source.ids == ["train_0", "train_1", "train_2"]
    assert source.classes is CAMVID
    stored = np.asarray(Image.open(camvid_dir / "trainannot" / "train_1.png"))
    assert (stored == 11).any()
    np.testing.assert_array_equal(source[1]["label"], np.where(stored == 11, 255, stored))
    np.testing.assert_array_equal(
        source[1]["image"], np.asarray(Image.open(camvid_dir / "train" / "train_1.png"))
    )
    assert source[-1]["id"] == "train_2"
    with pytest.raises(IndexError):
        source[3]
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(source))[1]["label"], source[1]["label"]
    )


def test_builder(camvid_dir):
    builder = Camvid(data_dir=camvid_dir)
    builder.download_and_prepare()
    assert {name: info.num_examples for name, info in builder.info.splits.items()} == {
        "train": 3,
        "val": 2,
    }
    assert builder.info.features["label"].names == list(CAMVID.names)
    dataset = builder.as_dataset(split="train", shuffle_files=False)
    assert dataset.element_spec["image"] == tf.TensorSpec((None, None, 3), tf.uint8)
    assert dataset.element_spec["label"] == tf.TensorSpec((None, None, 1), tf.uint8)
    source = builder.as_data_source("train")
    for example, expected in zip(dataset, source, strict=True):
        np.testing.assert_array_equal(example["image"], expected["image"])
        np.testing.assert_array_equal(example["label"][..., 0], expected["label"])
        assert example["id"].numpy().decode() == expected["id"]
    image, label = next(iter(builder.as_dataset(split="val", as_supervised=True)))
    assert image.shape == (6, 8, 3) and label.shape == (6, 8, 1)
    assert set(builder.as_data_source()) == {"train", "val"}
    assert pickle.loads(pickle.dumps(builder)).source("val").ids == ["val_0", "val_1"]
    # Nothing is written beside the data.
    assert sorted(path.name for path in camvid_dir.iterdir()) == [
        "train",
        "trainannot",
        "val",
        "valannot",
    ]


def test_leaves_no_temporary_files(camvid_dir, tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    load_source("camvid", "train", camvid_dir)
    assert not list(folder.iterdir())


def test_parts_of_splits(camvid_dir):
    builder = Camvid(data_dir=camvid_dir)
    assert builder.source("train[1:]").ids == ["train_1", "train_2"]
    assert builder.source("train[-1:]+val").ids == ["train_2", "val_0", "val_1"]
    assert len(builder.source("train[:100%]")) == 3
    with pytest.raises(ConfigError, match="Did you mean 'train'. Received: split='trian'"):
        builder.source("trian")
    with pytest.raises(ConfigError, match="has the splits train, val. Received: split='test'"):
        builder.source("test")
    with pytest.raises(ConfigError, match="written like"):
        builder.source("train[:x]")


def test_folder_without_the_data_set_is_refused(camvid_dir, tmp_path_factory):
    with pytest.raises(DataError, match="none', which is not a folder$"):
        Camvid(data_dir=camvid_dir / "none")
    with pytest.raises(DataError, match="expected CamVid's folders.* Received: none of them$"):
        Camvid(data_dir=tmp_path_factory.mktemp("empty"))


def test_images_and_labels_must_pair_up(camvid_dir):
    (camvid_dir / "trainannot" / "train_1.png").unlink()
    with pytest.raises(DataError, match="train_1.png: .* Received: an image without a label$"):
        Camvid(data_dir=camvid_dir)
    (camvid_dir / "train" / "train_1.png").unlink()
    (camvid_dir / "train" / "train_2.png").unlink()
    with pytest.raises(DataError, match="train_2.png: .* Received: a label without an image$"):
        Camvid(data_dir=camvid_dir)
    shutil.rmtree(camvid_dir / "trainannot")
    with pytest.raises(DataError, match="trainannot: expected a folder .* no such folder$"):
        Camvid(data_dir=camvid_dir)
    (camvid_dir / "trainannot").mkdir()
    with pytest.raises(DataError, match="trainannot: expected image files .* Received: none$"):
        Camvid(data_dir=camvid_dir)


def test_invalid_label_value_is_refused(camvid_dir, write_image):
    write_image(camvid_dir / "valannot" / "val_0.png", np.full((6, 8), 12, np.uint8))
    with pytest.raises(DataError, match="must be 0 to 11 or 255. Received: the values 12$"):
        load_source("camvid", "val", camvid_dir)[0]


@pytest.mark.parametrize("step", [25, pytest.param(1, marks=pytest.mark.slow, id="every image")])
def test_real_labels_equal_the_files(step, shared_file):
    folder = shared_file("data/camvid")
    for split, count in (("train", 367), ("val", 101)):
        source = load_source("camvid", split, folder)
        assert len(source) == count
        for index in range(0, count, step):
            example = source[index]
            stored = np.asarray(Image.open(folder / f"{split}annot" / f"{example['id']}.png"))
            expected = np.where(stored == 11, 255, stored)
            np.testing.assert_array_equal(example["label"], expected)
            image = np.asarray(Image.open(folder / split / f"{example['id']}.png"))
            np.testing.assert_array_equal(example["image"], image)
    example = next(iter(load_dataset("camvid", "val", folder)))
    assert example["image"].shape == (360, 480, 3) and example["label"].shape == (360, 480)
