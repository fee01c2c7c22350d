import shutil
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from dilated_affinity.datasets.cityscapes import Cityscapes, TfdsCityscapes, make_builder
from dilated_affinity.datasets.classes import CITYSCAPES
from dilated_affinity.datasets.registry import load_dataset, load_source
from dilated_affinity.errors import ConfigError, DataError

# trainId to labelId, copied from the table on the data set's site.
BY_HAND = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)

IDS = {
    "train": ("aachen_000000_000019", "aachen_000001_000019", "bochum_000000_000313"),
    "val": ("frankfurt_000000_000294", "munster_000000_000019"),
    "test": ("berlin_000000_000019",),
}


def by_hand(label_ids):
    expected = np.full(label_ids.shape, 255)
    for train_id, label_id in enumerate(BY_HAND):
        expected[label_ids == label_id] = train_id
    return expected


@pytest.fixture(scope="module")
def official_dir(tmp_path_factory, write_image):
    """The official layout, with images of full size as TFDS' builder requires."""
    folder = tmp_path_factory.mktemp("cityscapes")
    rng = np.random.default_rng(0)
    for split, ids in IDS.items():
        for example in ids:
            city = example.split("_")[0]
            small = rng.integers(0, 256, (16, 32, 3), np.uint8)
            image = np.kron(small, np.ones((64, 64, 1), np.uint8))
            path = folder / "leftImg8bit" / split / city / f"{example}_leftImg8bit.png"
            write_image(path, image, compress_level=1)
            labels = np.kron(rng.integers(0, 34, (16, 32)), np.ones((64, 64))).astype(np.uint8)
            stem = folder / "gtFine" / split / city / f"{example}_gtFine"
            write_image(stem.with_name(f"{stem.name}_labelIds.png"), labels, compress_level=1)
            # Other files in the official archive.
            stem.with_name(f"{stem.name}_polygons.json").write_text("{}")
            stem.with_name(f"{stem.name}_color.png").write_bytes(b"not read")
    return folder


@pytest.fixture
def copied_dir(official_dir, tmp_path):
    shutil.copytree(official_dir, tmp_path, dirs_exist_ok=True)
    return tmp_path


def write_archives(source, target):
    for name, folder in (
        ("leftImg8bit_trainvaltest.zip", "leftImg8bit"),
        ("gtFine_trainvaltest.zip", "gtFine"),
    ):
        with zipfile.ZipFile(target / name, "w") as archive:
            archive.writestr("README", "Cityscapes")
            archive.writestr("license.txt", "")
            for path in sorted((source / folder).rglob("*")):
                archive.write(path, path.relative_to(source))


@pytest.fixture(scope="module")
def archives_dir(official_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("archives")
    write_archives(official_dir, folder)
    return folder


def test_folders(official_dir):
    builder = make_builder(data_dir=official_dir)
    assert isinstance(builder, Cityscapes)
    for split, ids in IDS.items():
        source = builder.source(split)
        assert source.ids == list(ids)
        assert source.classes is CITYSCAPES
        for example in source:
            city = example["id"].split("_")[0]
            path = f"gtFine/{split}/{city}/{example['id']}_gtFine_labelIds.png"
            label_ids = np.asarray(Image.open(official_dir / path))
            np.testing.assert_array_equal(example["label"], by_hand(label_ids))
    example = next(iter(load_dataset("cityscapes", "val", official_dir)))
    assert example["image"].shape == (1024, 2048, 3)
    # TFDS' own data set of the same name is still registered.
    assert tfds.builder_cls("cityscapes") is not Cityscapes


def test_archives_and_folders_give_the_same_examples(archives_dir, official_dir):
    builder = make_builder(data_dir=archives_dir)
    assert isinstance(builder, TfdsCityscapes)
    read_in_place = make_builder(data_dir=official_dir)
    for split in IDS:
        source, expected = builder.source(split), read_in_place.source(split)
        assert sorted(source.ids) == expected.ids
        by_id = {example["id"]: example for example in source}
        for example in expected:
            for key, value in example.items():
                np.testing.assert_array_equal(by_id[example["id"]][key], value)
    # The prepared data set suffices.
    prepared = archives_dir / "moved"
    prepared.mkdir()
    shutil.copytree(archives_dir / "cityscapes", prepared / "cityscapes")
    builder = make_builder(data_dir=prepared)
    assert builder.classes is CITYSCAPES
    first, second = builder.source("train"), builder.source("val[1:]+train[:1]")
    assert len(second) == 2 and second[1]["id"] == second.ids[1] == first[0]["id"]
    with pytest.raises(ConfigError, match="splits train, val, test. .*Received: split='vall'"):
        builder.source("vall")


def test_missing_splits(copied_dir):
    shutil.rmtree(copied_dir / "leftImg8bit" / "test")
    shutil.rmtree(copied_dir / "leftImg8bit" / "train")
    shutil.rmtree(copied_dir / "gtFine" / "train")
    assert list(make_builder(data_dir=copied_dir).info.splits) == ["val"]
    shutil.rmtree(copied_dir / "gtFine" / "val")
    with pytest.raises(DataError, match="Received: none of these pairs$"):
        make_builder(data_dir=copied_dir)


def test_images_and_labels_must_pair_up(copied_dir):
    image = copied_dir / "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png"
    label = copied_dir / "gtFine/train/bochum/bochum_000000_000313_gtFine_labelIds.png"
    label.unlink()
    with pytest.raises(DataError, match=f"bochum_.*: expected its labels in {label}. Received: no"):
        make_builder(data_dir=copied_dir)
    image.unlink()
    with pytest.raises(DataError, match="no such file .and 1 more problems.$"):
        make_builder(data_dir=copied_dir)


def test_train_ids_are_refused(copied_dir, write_image):
    path = copied_dir / "gtFine/val/munster/munster_000000_000019_gtFine_labelIds.png"
    write_image(path, by_hand(np.asarray(Image.open(path))).astype(np.uint8))
    source = load_source("cityscapes", "val", copied_dir)
    with pytest.raises(DataError, match="values must be 0 to 33. Received: the values 255$"):
        source[1]


def test_folder_without_the_data_set_is_refused(tmp_path):
    with pytest.raises(DataError, match="no leftImg8bit_trainvaltest.zip and no gtFine_train"):
        make_builder(data_dir=tmp_path)


@pytest.mark.parametrize("name", ["../evil.png", "/tmp/evil.png", "gtFine/../../evil.png"])
def test_members_outside_the_archive_are_refused(archives_dir, tmp_path, name):
    for path in archives_dir.glob("*.zip"):
        shutil.copy(path, tmp_path)
    with zipfile.ZipFile(tmp_path / "gtFine_trainvaltest.zip", "a") as archive:
        archive.writestr(name, "evil")
    with pytest.raises(DataError, match="must stay within the archive. Received: '.*evil.png'"):
        make_builder(data_dir=tmp_path).source("train")


def test_damaged_and_incomplete_archives_are_refused(copied_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    (copied_dir / "gtFine/val/munster/munster_000000_000019_gtFine_labelIds.png").unlink()
    write_archives(copied_dir, folder)
    with pytest.raises(DataError, match="member gtFine/val/munster/munster_000000_000019_gtFine_l"):
        make_builder(data_dir=folder).source("train")
    shutil.rmtree(copied_dir / "leftImg8bit" / "test")
    write_archives(copied_dir, folder)
    with pytest.raises(DataError, match="expected images in leftImg8bit/test"):
        make_builder(data_dir=folder).source("train")
    path = folder / "leftImg8bit_trainvaltest.zip"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match="leftImg8bit_trainvaltest.zip: the archive cannot be read"):
        make_builder(data_dir=folder).source("train")


def test_real_labels_equal_the_files(shared_file):
    folder = shared_file("data/cityscapes_mini")
    source = load_source("cityscapes", "train", folder)
    assert len(source) == 5
    for example in source:
        stem = f"train/aachen/{example['id']}"
        label_ids = np.asarray(Image.open(folder / "gtFine" / f"{stem}_gtFine_labelIds.png"))
        np.testing.assert_array_equal(example["label"], by_hand(label_ids))
        image = np.asarray(Image.open(folder / "leftImg8bit" / f"{stem}_leftImg8bit.png"))
        np.testing.assert_array_equal(example["image"], image)


def test_files_of_macos_are_ignored(copied_dir):
    frame = "bochum/._bochum_000000_000313"
    for name in (f"leftImg8bit/train/{frame}_leftImg8bit", f"gtFine/train/{frame}_gtFine_labelIds"):
        (copied_dir / f"{name}.png").write_bytes(b"Mac OS X")
    builder = Cityscapes(data_dir=copied_dir)
    assert builder.source("train").ids == list(IDS["train"])
    (line,) = builder.notes
    assert "macOS" in line and ": 2 (" in line
