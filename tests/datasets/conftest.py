"""Small data sets on disk, written with Pillow."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def write_image():
    """Returns a function that writes an array as an image file and creates its folders."""

    def write(path, pixels, **options):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, **options)

    return write


@pytest.fixture
def camvid_dir(tmp_path, write_image):
    """A folder in CamVid's layout with 3 training and 2 validation pairs of 8x6 pixels."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 2)):
        for index in range(count):
            name = f"{split}_{index}.png"
            image = rng.integers(0, 256, (6, 8, 3), np.uint8)
            write_image(tmp_path / split / name, image)
            label = rng.integers(0, 12, (6, 8)).astype(np.uint8)
            write_image(tmp_path / f"{split}annot" / name, label)
    return tmp_path
