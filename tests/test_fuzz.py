"""Tests that every reader of damaged files returns or raises a `DataError`, quickly."""

import dataclasses
import io
import json
import resource
import tarfile
import time

import keras
import numpy as np
import pytest
import scipy.io
from helpers.encoding import encoded
from helpers.mutation import damaged, damaged_json
from PIL import Image

from dilated_affinity.affinity.statistics import AffinityStatistics
from dilated_affinity.config import Config
from dilated_affinity.datasets.files.images import (
    decode_image,
    decode_label,
    decode_label_colors,
    has_colors,
    label_remarks,
    palette_colors,
    read_image,
)
from dilated_affinity.datasets.files.masks import MaskFiles
from dilated_affinity.datasets.files.pairs import raise_first
from dilated_affinity.datasets.folder.class_file import read_class_file
from dilated_affinity.datasets.folder.label_map import read_label_map
from dilated_affinity.datasets.folder.layout import find_splits
from dilated_affinity.datasets.voc2012_aug.id_lists import parse_ids
from dilated_affinity.datasets.voc2012_aug.sbd import decode_sbd
from dilated_affinity.errors import DilatedAffinityError
from dilated_affinity.run_dir.checkpoints import TrainingState, read_state, write_checkpoint

SECONDS = 10
KILOBYTES = 2 * 2**20
SLOWLY = 10
"""Factor on the number of inputs in the slow test."""


def picture(mode, image_format, **options):
    pixels = np.random.default_rng(0).integers(0, 12, (24, 31, 3)).astype(np.uint8)
    image = Image.fromarray(pixels if mode == "RGB" else pixels[..., 0])
    if mode == "P":
        image.putpalette(np.arange(768, dtype=np.uint8).tobytes())
    return encoded(image, image_format, **options)


def photographs():
    exif = Image.Exif()
    exif[0x0112] = 6
    yield picture("RGB", "PNG")
    yield picture("RGB", "JPEG", exif=exif)
    yield picture("RGB", "TIFF", compression="tiff_lzw")
    yield picture("RGB", "WEBP", exif=exif)
    for image_format in ("GIF", "BMP", "PPM"):
        yield picture("RGB", image_format)


def masks():
    for image_format in ("PNG", "GIF", "BMP"):
        yield picture("P", image_format)
    yield picture("L", "TIFF", compression="tiff_adobe_deflate")


def drawn_masks():
    yield picture("RGB", "PNG")
    yield picture("P", "PNG")


def several_frames():
    for image_format in ("GIF", "TIFF", "PNG"):
        more = [Image.new("RGB", (31, 24))]
        yield picture("RGB", image_format, save_all=True, append_images=more)


def transparent():
    yield picture("P", "PNG", transparency=bytes(range(12)))
    yield picture("L", "PNG", transparency=1)
    yield picture("RGB", "PNG", transparency=(1, 2, 3))


def matlab():
    mask = np.random.default_rng(0).integers(0, 21, (20, 30)).astype(np.uint8)
    content = {"GTcls": {"Segmentation": mask, "Boundaries": np.array([mask, 1.0], object)}}
    for compressed in (False, True):
        file = io.BytesIO()
        scipy.io.savemat(file, content, do_compression=compressed)
        yield file.getvalue()


def archives():
    for mode in ("w", "w:gz"):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode=mode) as tar:
            for index, data in enumerate(masks()):
                member = tarfile.TarInfo(f"masks/{index}.png")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        yield file.getvalue()


def read_archive(path):
    for read in MaskFiles(path):
        read()


def read_lists(path):
    root = path.parent / "folder"
    if not root.exists():
        for name in ("a", "b/c"):
            for kind in ("images", "masks"):
                file = root / kind / f"{name}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
    path.replace(root / "train.txt")
    raise_first(find_splits(root).problems)


@pytest.fixture(scope="module")
def model():
    inputs = keras.Input((3,))
    return keras.Model(inputs, keras.layers.Dense(2)(inputs))


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "a.keras"
    write_checkpoint(path, model, TrainingState(3, 4, [1.0], [{"loss": 1.5}], 1, {"7": "why"}))
    return path.read_bytes()


STATE = dataclasses.asdict(
    TrainingState(3, 4, [1.0, [2, 3.0]], [{"loss": 1.5, "val_mean_iou": 0.5}], 1, {"7": "why"})
)
STATISTICS = AffinityStatistics.from_labels([np.eye(9, dtype=int)], ((1, 1), (2, 3))).get_config()
CONFIG = {"package_version": "0", "config": dataclasses.asdict(Config.for_dataset("camvid"))}
CLASSES = b"index,name,r,g,b\n0,sky,1,2,3\n1,road,4,5,6\n255,void,0,0,0\n"
LABEL_MAP = b"# label:color_rgb:parts:actions\nsky:1,2,3::\nroad:4,5,6::\n"
LISTS = b"2007_000032\n2007_000039\n\n2007_000063\n"
PATHS = b"a.png\nb/c\n"


def of_bytes(read):
    return lambda path: read(path.read_bytes(), str(path))


# Inputs, number of damaged versions, function that damages them, and reader.
READERS = {
    "image": (photographs, 700, damaged, of_bytes(decode_image)),
    "label": (masks, 400, damaged, of_bytes(decode_label)),
    "label in colours": (drawn_masks, 150, damaged, of_bytes(decode_label_colors)),
    "kind of label": (drawn_masks, 50, damaged, of_bytes(has_colors)),
    "remarks": (several_frames, 200, damaged, of_bytes(label_remarks)),
    "transparency": (transparent, 200, damaged, of_bytes(read_image)),
    "palette": (masks, 100, damaged, of_bytes(palette_colors)),
    "label map": (lambda: [LABEL_MAP], 200, damaged, of_bytes(read_label_map)),
    "SBD": (matlab, 250, damaged, of_bytes(decode_sbd)),
    "archive": (archives, 150, damaged, read_archive),
    "ids": (lambda: [LISTS], 100, damaged, of_bytes(parse_ids)),
    "paths": (lambda: [PATHS], 50, damaged, read_lists),
    "classes": (lambda: [CLASSES], 200, damaged, of_bytes(read_class_file)),
    "config": (lambda: [CONFIG], 300, damaged_json, Config.load),
    "statistics": (lambda: [STATISTICS], 300, damaged_json, AffinityStatistics.load),
}


def attack(inputs, count, damage, read, path, seed):
    """Reads a number of damaged inputs; returns how many were refused."""
    rng = np.random.default_rng(seed)
    inputs, refused = list(inputs), 0
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        data = damage(inputs[number % len(inputs)], rng)
        path.write_bytes(data)
        begin = time.monotonic()
        try:
            read(path)
        except DilatedAffinityError as error:
            refused += 1
            assert "\n" not in str(error)
        except Exception as error:
            raise AssertionError(f"input {number} of seed {seed}: {data[:2000]!r}") from error
        assert time.monotonic() - begin < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < KILOBYTES
    return refused


@pytest.mark.parametrize("name", READERS)
def test_damaged_files(name, tmp_path):
    inputs, count, damage, read = READERS[name]
    assert attack(inputs(), count, damage, read, tmp_path / "file.tar.gz", seed=0) > count / 10


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_damaged_files(name, tmp_path):
    inputs, count, damage, read = READERS[name]
    attack(inputs(), SLOWLY * count, damage, read, tmp_path / "file.tar.gz", seed=1)


def test_damaged_checkpoints(checkpoint, tmp_path):
    """Except for damage that cancels itself."""
    assert attack([checkpoint], 200, damaged, read_state, tmp_path / "a.keras", seed=0) > 190


def test_invalid_checkpoint_states_are_refused():
    """Files with a correct checksum that this package has not written."""
    rng, refused = np.random.default_rng(0), 0
    for _ in range(300):
        try:
            state = TrainingState.from_json(json.loads(damaged_json(STATE, rng)))
            assert state.best is None or state.best <= 1e308
        except (ValueError, RecursionError):
            refused += 1
    assert refused > 100
