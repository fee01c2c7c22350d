"""Tests of predictions in Cityscapes' labelIds."""

import numpy as np
import pytest
from PIL import Image

from dilated_affinity.datasets.classes import (
    CITYSCAPES,
    CITYSCAPES_LABEL_IDS,
    cityscapes_train_ids,
)
from dilated_affinity.inference.files import predict_files
from dilated_affinity.inference.output_pictures import label_id_image
from dilated_affinity.inference.predictor import Prediction


def test_label_ids_map_to_their_classes():
    classes = np.arange(19, dtype=np.uint8).reshape(1, 19)
    image = label_id_image(classes, CITYSCAPES_LABEL_IDS)
    assert image.mode == "L"
    ids = np.asarray(image)
    assert ids[0, [0, 1, 2, 18]].tolist() == [7, 8, 11, 33]
    np.testing.assert_array_equal(cityscapes_train_ids()[ids], classes)


class Fixed:
    """A predictor that returns the same labels for every image."""

    rates = None

    def __init__(self, labels):
        self.labels = labels

    def __call__(self, image):
        return Prediction(self.labels, self.labels, None)

    def map(self, images):
        return map(self, images)


@pytest.mark.parametrize("label_ids", [None, CITYSCAPES_LABEL_IDS])
def test_format_of_label_files(tmp_path, label_ids):
    labels = np.array([[0, 18], [13, 2]], np.uint8)
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "street.png")
    (path,) = predict_files(
        Fixed(labels), CITYSCAPES, tmp_path / "street.png", tmp_path / "out", label_ids=label_ids
    ).written
    with Image.open(path) as image:
        assert image.mode == ("P" if label_ids is None else "L")
        expected = labels if label_ids is None else [[7, 33], [26, 11]]
        np.testing.assert_array_equal(np.asarray(image), expected)
