"""A CamVid folder and settings small enough to train for a few steps in a test."""

import keras
import numpy as np
from PIL import Image

from dilated_affinity.config import Config
from dilated_affinity.models import deeplab
from dilated_affinity.models.backbone import Backbone

NUM_CLASSES = 11


def write_camvid(folder, train=5, val=3, size=(40, 48)):
    """Writes images whose colours show the class: two areas separated by a void line."""
    rng = np.random.default_rng(7)
    for split, count in (("train", train), ("val", val)):
        for index in range(count):
            label = np.full(size, rng.integers(0, NUM_CLASSES), np.uint8)
            column = int(rng.integers(8, size[1] - 8))
            label[:, column:] = rng.integers(0, NUM_CLASSES)
            label[:, column] = 11
            image = np.stack([label * 20, 255 - label * 20, label * 7], axis=-1)
            noisy = np.clip(image + rng.normal(0, 5, image.shape), 0, 255).astype(np.uint8)
            for kind, pixels in ((split, noisy), (f"{split}annot", label)):
                path = folder / kind / f"{split}_{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return folder


def _application(weights, input_shape):
    """Five strided convolutions, which are traced ten times faster than a MobileNetV2."""
    assert weights is None
    features = images = keras.Input(input_shape)
    for level in range(5):
        features = keras.layers.Conv2D(
            8, 3, 2, padding="same", use_bias=False, name=f"conv{level}"
        )(features)
        features = keras.layers.BatchNormalization(name=f"bn{level}")(features)
        features = keras.layers.ReLU(name=f"relu{level}")(features)
    return keras.Model(images, features, name="tiny")


deeplab.BACKBONES["tiny"] = Backbone(
    application=_application,
    preprocess=lambda: keras.layers.Rescaling(1 / 127.5, offset=-1.0),
    low_level="relu1",
    high_level="relu4",
    padding="same",
)


def tiny_config(data_dir, **overrides):
    settings = {
        "data_dir": str(data_dir),
        "backbone": "tiny",
        "separable": False,
        "backbone_weights": "none",
        "rates": "2,(2,4)",
        "filters": 16,
        "crop_size": 33,
        "batch_size": 2,
        "train_steps": 4,
        "validate_every": 2,
        "batch_norm": "sync",
        "learning_rate": 0.01,
        "dropout": 0.5,
        "calibrate": "none",
    }
    return Config.for_dataset("camvid", **{**settings, **overrides})


class ListSource:
    """A `Source` of examples in memory."""

    def __init__(self, examples, classes):
        self._examples = examples
        self.classes = classes
        self.ids = [example["id"] for example in examples]

    def __len__(self):
        return len(self._examples)

    def __getitem__(self, index):
        return self._examples[index]
