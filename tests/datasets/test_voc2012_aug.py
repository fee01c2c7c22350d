import io
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import scipy.sparse
import tensorflow_datasets as tfds
from helpers.encoding import add_file, encoded
from PIL import Image

from dilated_affinity.datasets import registry
from dilated_affinity.datasets.classes import VOC2012
from dilated_affinity.datasets.registry import load_dataset, load_source
from dilated_affinity.datasets.voc2012_aug import Builder, Voc2012Aug, make_builder
from dilated_affinity.datasets.voc2012_aug.id_lists import derive_splits, parse_ids
from dilated_affinity.datasets.voc2012_aug.sbd import decode_sbd
from dilated_affinity.errors import ConfigError, DataError

# SBD has other splits than VOC: its lists contain some ids of VOC's train and val.
TRAIN = ("2007_000032", "2008_000008")
VAL = ("2007_000033", "2008_000009", "2011_000004")
SBD_TRAIN = ("2008_000008", "2008_000002", "2008_000009")
SBD_VAL = ("2007_000033", "2009_000001")
TRAINAUG = ("2007_000032", "2008_000002", "2008_000008", "2009_000001")


def palette_png(mask):
    image = Image.fromarray(mask)
    image.putpalette(VOC2012.color_map().ravel().tolist())
    return encoded(image, "PNG")


def sbd_mat(mask):
    """SBD's struct: GTcls.Boundaries is 20 sparse matrices, GTcls.Segmentation a uint8 matrix."""
    boundaries = np.empty((20, 1), object)
    for index in range(20):
        boundaries[index, 0] = scipy.sparse.csc_matrix(mask.shape, dtype=bool)
    present = np.setdiff1d(np.unique(mask), [0]).astype(np.uint8)[:, np.newaxis]
    file = io.BytesIO()
    scipy.io.savemat(
        file,
        {
            "GTcls": {
                "Boundaries": boundaries,
                "Segmentation": mask,
                "CategoriesPresent": present,
            }
        },
        do_compression=True,
    )
    return file.getvalue()


@pytest.fixture(scope="session")
def official_files():
    """The files of the two archives, by their paths in these, with 8 small images."""
    rng = np.random.default_rng(0)
    voc, sbd = {}, {}
    for index, example in enumerate(sorted({*TRAIN, *VAL, *SBD_TRAIN, *SBD_VAL})):
        height, width = 20 + index, 30 - index
        pixels = np.asarray(
            Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)).resize((width, height))
        )
        jpeg = encoded(Image.fromarray(pixels), "JPEG", quality=90)
        voc[f"VOCdevkit/VOC2012/JPEGImages/{example}.jpg"] = jpeg
        voc[f"VOCdevkit/VOC2012/Annotations/{example}.xml"] = b"<annotation></annotation>"
        mask = rng.integers(0, 21, (height, width)).astype(np.uint8)
        if example in TRAIN + VAL:
            official = mask.copy()
            official[0] = 255
            folder = "VOCdevkit/VOC2012/SegmentationClass"
            voc[f"{folder}/{example}.png"] = palette_png(official)
        if example in SBD_TRAIN + SBD_VAL:
            sbd[f"benchmark_RELEASE/dataset/cls/{example}.mat"] = sbd_mat(mask)
            sbd[f"benchmark_RELEASE/dataset/inst/{example}.mat"] = b"not read"
            sbd[f"benchmark_RELEASE/dataset/img/{example}.jpg"] = jpeg
    lists = {"train": TRAIN, "val": VAL, "trainval": sorted(TRAIN + VAL)}
    for name, ids in lists.items():
        path = f"VOCdevkit/VOC2012/ImageSets/Segmentation/{name}.txt"
        voc[path] = "".join(f"{example}\n" for example in ids).encode()
    for name, ids in (("train", SBD_TRAIN), ("val", SBD_VAL)):
        sbd[f"benchmark_RELEASE/dataset/{name}.txt"] = "\n".join(ids).encode()
    sbd["benchmark_RELEASE/README"] = b"SBD"
    return voc, sbd


def write_tar(path, files, mode):
    with tarfile.open(path, mode) as tar:
        folders = {str(folder) for name in files for folder in Path(name).parents}
        for name in sorted(f for f in folders if f[0] not in "./" and ".." not in f):
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE
            tar.addfile(member)
        for name, data in files.items():
            add_file(tar, name, data)


def write_archives(folder, voc, sbd):
    write_tar(folder / "VOCtrainval_11-May-2012.tar", voc, "w")
    write_tar(folder / "benchmark.tgz", sbd, "w:gz")


def write_files(folder, *contents):
    for files in contents:
        for name, data in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


@pytest.fixture
def devkit_dir(tmp_path, official_files):
    write_files(tmp_path, *official_files)
    return tmp_path


@pytest.fixture(scope="module")
def archives_dir(tmp_path_factory, official_files):
    folder = tmp_path_factory.mktemp("archives")
    write_archives(folder, *official_files)
    return folder


def stored(official_files, example):
    """The mask of an example, read with Pillow and SciPy alone."""
    voc, sbd = official_files
    official = voc.get(f"VOCdevkit/VOC2012/SegmentationClass/{example}.png")
    if official:
        return np.asarray(Image.open(io.BytesIO(official)))
    data = sbd[f"benchmark_RELEASE/dataset/cls/{example}.mat"]
    options = {"squeeze_me": True, "struct_as_record": False}
    return scipy.io.loadmat(io.BytesIO(data), **options)["GTcls"].Segmentation


def test_devkit(devkit_dir, official_files):
    builder = make_builder(data_dir=devkit_dir)
    assert isinstance(builder, Voc2012Aug)
    assert {split: tuple(builder.source(split).ids) for split in builder.info.splits} == {
        "train": TRAIN,
        "trainaug": TRAINAUG,
        "val": VAL,
        "trainval": tuple(sorted(TRAIN + VAL)),
    }
    source = builder.source("trainaug")
    for example in source:
        expected = stored(official_files, example["id"])
        np.testing.assert_array_equal(example["label"], expected)
        # The official mask takes precedence.
        assert (example["label"][0] == 255).all() == (example["id"] in TRAIN)
    assert source.classes is VOC2012
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(source))[1]["label"], source[1]["label"]
    )


@pytest.mark.parametrize("place", [".", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_data_dir_of_devkit(tmp_path, official_files, place):
    voc, sbd = official_files
    write_files(tmp_path, voc)
    write_files(tmp_path / place, sbd)
    assert load_source("voc2012_aug", "trainaug", tmp_path / place).ids == list(TRAINAUG)


def test_archives_and_devkit_give_the_same_examples(archives_dir, devkit_dir):
    read_in_place = make_builder(data_dir=devkit_dir)
    builder = make_builder(data_dir=archives_dir)
    assert isinstance(builder, Builder)
    for split in ("train", "trainaug", "val", "trainval", "trainaug[1:3]+val[:1]"):
        source, expected = builder.source(split), read_in_place.source(split)
        assert len(source) == len(expected)
        assert source.ids == expected.ids
        for index in range(len(expected)):
            for key, value in expected[index].items():
                np.testing.assert_array_equal(source[index][key], value)
    assert not any(archives_dir.glob("VOCdevkit")), "something was unpacked"
    again = make_builder(data_dir=archives_dir)
    assert pickle.loads(pickle.dumps(again.source("val"))).ids == list(VAL)
    with pytest.raises(ConfigError, match="splits train, trainaug, val, trainval. Received"):
        again.source("test")
    # TFDS reads what was prepared by itself.
    example = next(iter(tfds.data_source("voc2012_aug", split="val", data_dir=archives_dir)))
    np.testing.assert_array_equal(example["label"][..., 0], again.source("val")[0]["label"])
    shown = next(iter(load_dataset("voc2012_aug", "val", archives_dir)))
    assert shown["id"].numpy().decode() == VAL[0]


def test_order_over_several_files(archives_dir, tmp_path):
    builder = Builder(data_dir=tmp_path)
    config = tfds.download.DownloadConfig(manual_dir=archives_dir, num_shards=2)
    builder.download_and_prepare(download_config=config)
    source = make_builder(data_dir=tmp_path).source("trainaug")
    assert len(list(tmp_path.rglob("*-trainaug.*"))) == 2
    assert [example["id"] for example in source] == source.ids == list(TRAINAUG)


def test_devkit_beside_prepared_data_set(tmp_path, official_files):
    write_archives(tmp_path, *official_files)
    make_builder(data_dir=tmp_path).source("train")
    write_files(tmp_path, *official_files)
    builder = make_builder(data_dir=tmp_path)
    assert isinstance(builder, Voc2012Aug)
    assert builder.source("trainaug").ids == list(TRAINAUG)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["voc2012_aug", "--imports=dilated_affinity.datasets.voc2012_aug"],
        [str(Path(registry.__file__).parent / "voc2012_aug")],
    ],
)
def test_tfds_build(archives_dir, tmp_path, arguments):
    # `tfds build` without TFDS' main program, which imports Apache Beam for another command.
    code = (
        "import sys; from tensorflow_datasets.scripts.cli import build, cli_utils; "
        "cli_utils.make_flags_parser(build.Args, description='')(sys.argv).execute()"
    )
    options = [f"--data_dir={tmp_path}", f"--manual_dir={archives_dir}"]
    options.append("--file_format=array_record")
    subprocess.run([sys.executable, "-c", code, *arguments, *options], check=True)
    assert load_source("voc2012_aug", "trainaug", tmp_path).ids == list(TRAINAUG)


def test_load_source_does_not_download(tmp_path, official_files):
    with pytest.raises(DataError, match="or what `tfds build` .* Received: none of them$"):
        make_builder(data_dir=tmp_path)
    write_tar(tmp_path / "benchmark.tgz", official_files[1], "w:gz")
    with pytest.raises(DataError, match="Received: benchmark.tgz alone$"):
        make_builder(data_dir=tmp_path)


def test_download_of_missing_archives(tmp_path, archives_dir, monkeypatch):
    asked = []

    def download(self, url):
        asked.append(url)
        return tfds.core.Path(archives_dir / url.rsplit("/", 1)[-1])

    monkeypatch.setattr(tfds.download.DownloadManager, "download", download)
    assert Builder(data_dir=tmp_path).source("trainaug").ids == list(TRAINAUG)
    assert asked == list(Builder.url_infos)
    assert asked[0].startswith("http://host.robots.ox.ac.uk/pascal/VOC/voc2012/")
    assert asked[1].startswith("https://www2.eecs.berkeley.edu/")


@pytest.mark.parametrize("name", ["../evil.txt", "/tmp/evil.txt", "a/../../evil.txt"])
@pytest.mark.parametrize("archive", [0, 1])
def test_members_outside_the_archive_are_refused(tmp_path, official_files, name, archive):
    contents = [dict(files) for files in official_files]
    contents[archive][name] = b"evil"
    write_archives(tmp_path, *contents)
    with pytest.raises(DataError, match="must stay within the archive. Received: '.*evil.txt'"):
        make_builder(data_dir=tmp_path).source("train")
    assert not list(tmp_path.parent.rglob("evil.txt"))


def test_links_are_not_followed(tmp_path, official_files):
    name = f"VOCdevkit/VOC2012/JPEGImages/{TRAIN[0]}.jpg"
    voc = {key: data for key, data in official_files[0].items() if key != name}
    write_archives(tmp_path, voc, official_files[1])
    with tarfile.open(tmp_path / "VOCtrainval_11-May-2012.tar", "a") as tar:
        link = tarfile.TarInfo(name)
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(DataError, match=f"member {name}. Received: no such member"):
        make_builder(data_dir=tmp_path).source("train")


@pytest.mark.parametrize("archive", ["VOCtrainval_11-May-2012.tar", "benchmark.tgz"])
@pytest.mark.parametrize("keep", [0, 0.5])
def test_truncated_archives_are_refused(tmp_path, official_files, archive, keep):
    write_archives(tmp_path, *official_files)
    data = (tmp_path / archive).read_bytes()
    (tmp_path / archive).write_bytes(data[: int(keep * len(data))])
    with pytest.raises(DataError, match=f"{archive}: .* Received: "):
        make_builder(data_dir=tmp_path).source("train")
    assert not (tmp_path / "voc2012_aug" / "1.0.0").exists()


def test_invalid_masks_in_archives_are_refused(tmp_path, official_files):
    voc, sbd = map(dict, official_files)
    name = f"VOCdevkit/VOC2012/SegmentationClass/{TRAIN[0]}.png"
    size = Image.open(io.BytesIO(voc[name])).size
    voc[name] = palette_png(np.full(size[::-1], 77, np.uint8))
    write_archives(tmp_path, voc, sbd)
    with pytest.raises(DataError, match=f"{TRAIN[0]}.png: label values must be 0 to 20 or 255"):
        make_builder(data_dir=tmp_path).source("train")
    voc[name] = palette_png(np.zeros((3, 3), np.uint8))
    write_archives(tmp_path, voc, sbd)
    with pytest.raises(DataError, match=f"{TRAIN[0]}.png: a label must have the size of its image"):
        make_builder(data_dir=tmp_path).source("train")


def test_segmentation_class_aug(tmp_path, official_files):
    voc, sbd = official_files
    write_files(tmp_path, voc)
    folder = tmp_path / "VOCdevkit" / "VOC2012" / "SegmentationClassAug"
    folder.mkdir()
    for example in {*TRAIN, *VAL, *SBD_TRAIN, *SBD_VAL}:
        # Grey or palette; void in the official masks shows which was read.
        mask = np.where(stored(official_files, example) == 255, 0, stored(official_files, example))
        Image.fromarray(mask.astype(np.uint8)).save(folder / f"{example}.png")
    source = load_source("voc2012_aug", "trainaug", tmp_path)
    assert source.ids == list(TRAINAUG)
    for example in source:
        np.testing.assert_array_equal(example["label"], stored(official_files, example["id"]))
    # A list beside VOC's lists selects the ids.
    lists = tmp_path / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"
    (lists / "trainaug.txt").write_text("2008_000002\n")
    source = load_source("voc2012_aug", "trainaug", tmp_path)
    assert source.ids == sorted(("2008_000002", *TRAIN))
    # SBD's lists take precedence over that list, but PNG over SBD's MATLAB files.
    write_files(tmp_path, {name: b"" if "/cls/" in name else sbd[name] for name in sbd})
    source = load_source("voc2012_aug", "trainaug", tmp_path)
    assert source.ids == list(TRAINAUG)
    for example in source:
        np.testing.assert_array_equal(example["label"], stored(official_files, example["id"]))


def test_missing_files_of_listed_ids(devkit_dir):
    voc = devkit_dir / "VOCdevkit" / "VOC2012"
    (voc / "SegmentationClass" / f"{TRAIN[0]}.png").unlink()
    with pytest.raises(DataError, match=f"{TRAIN[0]}.png: expected a mask .* no such file$"):
        make_builder(data_dir=devkit_dir)
    (voc / "JPEGImages" / "2009_000001.jpg").unlink()
    with pytest.raises(DataError, match="no such file .and 1 more problems.$"):
        make_builder(data_dir=devkit_dir)


def test_without_sbd(tmp_path, official_files):
    write_files(tmp_path, official_files[0])
    builder = make_builder(data_dir=tmp_path)
    assert builder.source("trainaug").ids == list(TRAIN)


def ids_of(first, count):
    return tuple(f"2008_{index:06d}" for index in range(first, first + count))


def test_full_lists_give_10582():
    official = {"train": ids_of(0, 1_464), "val": ids_of(2_000, 1_449)}
    sbd = {*ids_of(100, 1_000), *ids_of(2_100, 500), *ids_of(10_000, 9_118)}
    splits = derive_splits(official, sbd, "voc")
    assert list(splits) == ["train", "trainaug", "val", "trainval"]
    assert len(splits["trainaug"]) == 10_582 and len(splits["trainval"]) == 2_913
    assert not set(splits["trainaug"]) & set(splits["val"])
    with pytest.raises(DataError, match="make 10582 images of trainaug. Received: 10581, from"):
        derive_splits(official, sbd - {"2008_010000"}, "voc")
    assert list(derive_splits(official, None, "voc")) == ["train", "val", "trainval"]


def test_full_lists_without_sbd(tmp_path, official_files, monkeypatch):
    for name, value in (("FULL_TRAIN", len(TRAIN)), ("FULL_VAL", len(VAL))):
        monkeypatch.setattr(f"dilated_affinity.datasets.voc2012_aug.id_lists.{name}", value)
    write_files(tmp_path, official_files[0])
    builder = make_builder(data_dir=tmp_path)
    assert builder.source("train").ids == list(TRAIN)
    with pytest.raises(DataError, match="trainaug needs SBD's masks, .* Received: neither"):
        builder.source("trainaug[:5]")


def test_lists():
    assert parse_ids(b"2007_000032\r\n\n2007_000039 \n", "x") == ("2007_000032", "2007_000039")
    for line in (b"../2007", b"a/b", b"2007_000032 1", b".hidden"):
        with pytest.raises(DataError, match="x.txt, line 2: expected an id .* Received: "):
            parse_ids(b"2007_000032\n" + line, "x.txt")
    with pytest.raises(DataError, match="line 3: .* Received: 'a', which is in line 1 too"):
        parse_ids(b"a\nb\na", "x.txt")
    with pytest.raises(DataError, match="must not overlap. Received: 1 ids in both, b among"):
        derive_splits({"train": ("a", "b"), "val": ("b",)}, None, "x")
    with pytest.raises(DataError, match="Received: neither of them"):
        derive_splits({}, None, "x")


def test_damaged_mat_files_are_refused():
    mask = np.random.default_rng(0).integers(0, 21, (20, 30)).astype(np.uint8)
    data = sbd_mat(mask)
    np.testing.assert_array_equal(decode_sbd(data, "x.mat"), mask)
    for size in range(0, len(data), 7):
        with pytest.raises(DataError, match="^x.mat: .* Received: ") as caught:
            decode_sbd(data[:size], "x.mat")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("variables", "received"),
    [
        ({"GTinst": {"Segmentation": np.zeros((2, 2), np.uint8)}}, "no GTcls"),
        ({"GTcls": {"Boundaries": np.zeros(2)}}, "the fields .'Boundaries',."),
        ({"GTcls": np.zeros((2, 2))}, "the fields .."),
        ({"GTcls": {"Segmentation": np.zeros((2, 2))}}, "float64 of shape .2, 2."),
    ],
)
def test_other_mat_files_are_refused(variables, received):
    file = io.BytesIO()
    scipy.io.savemat(file, variables)
    with pytest.raises(DataError, match=f"^x.mat: .* Received: {received}$"):
        decode_sbd(file.getvalue(), "x.mat")


def test_real_labels_equal_the_files(shared_file):
    data_dir = shared_file("data/voc2012_mini")
    builder = make_builder(data_dir=data_dir)
    sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
    assert sizes == {"train": 110, "trainaug": 110, "val": 50, "trainval": 160}
    assert builder.source("trainaug").ids == builder.source("train").ids
    folder = data_dir / "VOCdevkit" / "VOC2012"
    for example in builder.source("trainval"):
        with Image.open(folder / "SegmentationClass" / f"{example['id']}.png") as mask:
            assert mask.mode == "P"
            np.testing.assert_array_equal(example["label"], np.asarray(mask))
        with Image.open(folder / "JPEGImages" / f"{example['id']}.jpg") as image:
            np.testing.assert_array_equal(example["image"], np.asarray(image))


def test_real_lists_give_10582(shared_file):
    folder = shared_file("data/voc2012_masks")
    lists = {
        name: parse_ids((folder / f"{name}.txt").read_bytes(), name)
        for name in ("trainaug", "official_train", "official_val")
    }
    official = {"train": lists["official_train"], "val": lists["official_val"]}
    # SBD's ids: all but some of VOC's train, and some of VOC's val, which are removed.
    sbd = {*lists["trainaug"][:], *lists["official_val"][::2]} - {*lists["official_train"][::3]}
    assert set(derive_splits(official, sbd, "voc")["trainaug"]) == set(lists["trainaug"])
