import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf

from dilated_affinity.datasets import records
from dilated_affinity.datasets.files import pairs
from dilated_affinity.datasets.registry import (
    data_error_from,
    dataset_names,
    label_readers,
    load_dataset,
    load_source,
    make_builder,
)
from dilated_affinity.errors import ConfigError, DataError


def test_names():
    assert {"shapes", "camvid"} <= set(dataset_names())


def test_unknown_name(tmp_path):
    with pytest.raises(
        ConfigError, match="shapes, camvid.* Did you mean 'camvid'. Received: 'CamVd'"
    ):
        make_builder("CamVd", tmp_path)
    with pytest.raises(ConfigError, match="the names are .* Received: 'zzz'") as caught:
        load_source("zzz", "train", tmp_path)
    assert "Did you mean" not in str(caught.value)


def test_dataset_equals_source(camvid_dir):
    dataset = load_dataset("camvid", "train", camvid_dir)
    assert dataset.element_spec == {
        "image": tf.TensorSpec((None, None, 3), tf.uint8),
        "label": tf.TensorSpec((None, None), tf.uint8),
        "id": tf.TensorSpec((), tf.string),
    }
    assert dataset.cardinality() == 3
    source = load_source("camvid", "train", camvid_dir)
    for _ in range(2):
        for example, expected in zip(dataset, source, strict=True):
            np.testing.assert_array_equal(example["image"], expected["image"])
            np.testing.assert_array_equal(example["label"], expected["label"])
            assert example["id"].numpy().decode() == expected["id"]


def test_label_readers_do_not_decode_images(camvid_dir, tmp_path, monkeypatch):
    sources = [load_source("camvid", "train", camvid_dir), load_source("shapes", "val", tmp_path)]
    expected = [[source[index]["label"] for index in range(3)] for source in sources]

    def refuse(*_):
        raise AssertionError("an image was decoded")

    for module in (pairs, records):
        monkeypatch.setattr(module, "read_image", refuse, raising=False)
        monkeypatch.setattr(module, "decode_image", refuse, raising=False)
    for source, labels in zip(sources, expected, strict=True):
        with pytest.raises(AssertionError, match="decoded"):
            source[0]
        for read, label in zip(label_readers(source), labels, strict=False):
            received = read()
            assert received.dtype == np.uint8
            np.testing.assert_array_equal(received, label)


def test_label_reader_of_damaged_label(camvid_dir):
    path = camvid_dir / "trainannot" / "train_1.png"
    path.write_bytes(path.read_bytes()[:50])
    readers = label_readers(load_source("camvid", "train", camvid_dir))
    with pytest.raises(DataError, match="train_1.png"):
        readers[1]()


def test_data_error_from_tensorflow(camvid_dir):
    path = camvid_dir / "trainannot" / "train_1.png"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError) as direct:
        load_source("camvid", "train", camvid_dir)[1]
    with pytest.raises(tf.errors.OpError) as wrapped:
        list(load_dataset("camvid", "train", camvid_dir).batch(3))
    recovered = data_error_from(wrapped.value)
    assert isinstance(recovered, DataError)
    assert str(recovered) == str(direct.value)
    assert str(path) in str(recovered)


def test_data_error_from_other_errors():
    def fail(index):
        raise ValueError("something else")

    dataset = tf.data.Dataset.range(1).map(lambda i: tf.numpy_function(fail, [i], tf.int64))
    with pytest.raises(tf.errors.OpError) as caught:
        list(dataset)
    assert data_error_from(caught.value) is None
    assert data_error_from(tf.errors.UnknownError(None, None, None)) is None


def test_source_is_thread_safe(camvid_dir):
    source = load_source("camvid", "train", camvid_dir)
    expected = [source[index]["label"] for index in range(3)]
    with ThreadPoolExecutor(8) as pool:
        for index, example in enumerate(pool.map(lambda i: source[i % 3], range(60))):
            np.testing.assert_array_equal(example["label"], expected[index % 3])


def test_importing_the_registry_does_not_import_tfds():
    code = (
        "import sys, dilated_affinity.datasets.registry as loading; loading.dataset_names(); "
        "assert 'tensorflow_datasets' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
