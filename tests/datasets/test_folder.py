import pickle

import numpy as np
import pytest
from PIL import Image

from dilated_affinity.datasets.classes import spread_bits_color
from dilated_affinity.datasets.folder import Folder, check_folder
from dilated_affinity.datasets.folder import folder_dataset_builder as builder_module
from dilated_affinity.datasets.folder.class_file import classes_from_values, read_class_file
from dilated_affinity.datasets.registry import load_dataset, load_source
from dilated_affinity.errors import ConfigError, DataError

RNG = np.random.default_rng(0)
COLORS = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0), (255, 255, 255)], np.uint8)
COLOR_FILE = "name,r,g,b\nfloor,0,0,0\nwall,255,0,0\ndoor,0,255,0\nVoid,255,255,255\n"


def random_mask(shape=(6, 8), classes=3):
    mask = RNG.integers(0, classes, shape).astype(np.uint8)
    mask.flat[:classes] = range(classes)
    mask[-1] = 255
    return mask


def random_image(shape=(6, 8)):
    return RNG.integers(0, 256, (*shape, 3), np.uint8)


@pytest.fixture
def folder_dir(tmp_path, write_image):
    """images/<split>/ and masks/<split>/ with sub-folders and several formats."""
    for split, names in (("train", ("a.png", "b.jpg", "sub/a.bmp")), ("val", ("c.tif",))):
        for name in names:
            path = tmp_path / "images" / split / name
            write_image(path, random_image())
            write_image((tmp_path / "masks" / split / name).with_suffix(".png"), random_mask())
    return tmp_path


def masks(folder):
    return {
        path.relative_to(folder / "masks").with_suffix("").as_posix(): path
        for path in folder.rglob("masks/**/*.png")
    }


def test_split_folders_without_class_file(folder_dir):
    builder = Folder(data_dir=folder_dir)
    sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
    assert sizes == {"train": 3, "val": 1}
    assert builder.classes.names == ("class_0", "class_1", "class_2")
    assert builder.classes.palette[2] == spread_bits_color(2)
    source = builder.source("train")
    assert source.ids == ["a", "b", "sub/a"]
    stored = np.asarray(Image.open(folder_dir / "masks" / "train" / "sub" / "a.png"))
    np.testing.assert_array_equal(source[2]["label"], stored)
    assert pickle.loads(pickle.dumps(builder)).source("val")[0]["id"] == "c"
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(source))[2]["label"], source[2]["label"]
    )
    assert len(list(load_dataset("folder", "train", folder_dir))) == 3
    with pytest.raises(ConfigError, match="has the splits train, val. Received: split='test'"):
        builder.source("test")


def test_masks_are_read_once(folder_dir, write_image, monkeypatch):
    read = []
    values_in = builder_module._values_in
    monkeypatch.setattr(
        builder_module, "_values_in", lambda path: (read.append(path), values_in(path))[1]
    )
    load_source("folder", "train", folder_dir)
    load_source("folder", "val", folder_dir)
    assert len(read) == 4
    write_image(folder_dir / "masks" / "train" / "b.png", random_mask((7, 9), 5))
    assert load_source("folder", "val", folder_dir).classes.num_classes == 5


def test_lists(tmp_path, write_image):
    for name in ("x/1", "x/2", "y/1", "3"):
        write_image(tmp_path / "images" / f"{name}.jpg", random_image())
        write_image(tmp_path / "masks" / f"{name}.png", random_mask())
    (tmp_path / "train.txt").write_text("y/1\nx/2.jpg\n\n")
    (tmp_path / "val.txt").write_bytes(b"\xef\xbb\xbf3\r\n")
    builder = Folder(data_dir=tmp_path)
    assert builder.source("train").ids == ["y/1", "x/2"]
    assert builder.source("val").ids == ["3"]
    (tmp_path / "val.txt").write_text("3\nz/9\n../../images/3\n3\n")
    with pytest.raises(DataError, match="val.txt, line 2: expected an image .* .and 2 more prob"):
        Folder(data_dir=tmp_path)
    problems = check_folder(tmp_path).problems
    assert [problem.split(": ")[0].rsplit("/")[-1] for problem in problems] == [
        "val.txt, line 2",
        "val.txt, line 3",
        "val.txt, line 4",
    ]


def test_masks_in_colors(folder_dir, write_image):
    (folder_dir / "classes.csv").write_text(COLOR_FILE)
    expected = {}
    for key, path in masks(folder_dir).items():
        expected[key] = np.asarray(Image.open(path))
        write_image(path, COLORS[np.minimum(expected[key], 3)])
    # A palette image of the same colours, in another order, and an opaque RGBA.
    swapped = Image.fromarray(3 - np.minimum(expected["train/b"], 3))
    swapped.putpalette(COLORS[::-1].ravel().tolist())
    swapped.save(masks(folder_dir)["train/b"])
    Image.open(masks(folder_dir)["train/a"]).convert("RGBA").save(masks(folder_dir)["train/a"])
    builder = Folder(data_dir=folder_dir)
    assert builder.classes.names == ("floor", "wall", "door")
    assert builder.classes.palette == tuple(tuple(map(int, color)) for color in COLORS[:3])
    assert builder.classes.void_color == (255, 255, 255)
    for example in builder.source("train"):
        np.testing.assert_array_equal(example["label"], expected[f"train/{example['id']}"])
    assert check_folder(folder_dir).problems == []


def test_black_and_white_masks(tmp_path, write_image):
    for name in ("1", "2"):
        write_image(tmp_path / "images" / "train" / f"{name}.png", random_image())
        mask = np.full((6, 8), 255, np.uint8)
        mask[:3] = 0
        write_image(tmp_path / "masks" / "train" / f"{name}.png", mask)
    # 255 is void unless classes.csv defines it as a class; there would be one class only.
    with pytest.raises(DataError, match="at least 2 classes .*classes.csv.* values 0, 255$"):
        Folder(data_dir=tmp_path)
    for text in ("index,name\n0,back\n255,object\n", "name,r,g,b\nback,0,0,0\nobject,255,255,255"):
        (tmp_path / "classes.csv").write_text(text)
        label = Folder(data_dir=tmp_path).source("train")[0]["label"]
        np.testing.assert_array_equal(label, np.repeat([0, 1], 3)[:, None] * np.ones((6, 8)))


def test_masks_with_indices(folder_dir, write_image):
    (folder_dir / "classes.csv").write_text("index, name\n9,unlabelled\n2,tree\n0,sky\n\n1,road\n")
    builder = Folder(data_dir=folder_dir)
    assert builder.classes.names == ("sky", "road", "tree")
    write_image(masks(folder_dir)["val/c"], np.full((6, 8), 9, np.uint8))
    assert (builder.source("val")[0]["label"] == 255).all()
    write_image(masks(folder_dir)["val/c"], np.full((6, 8), 3, np.uint8))
    with pytest.raises(DataError, match="must be 0 to 2 or 9 or 255. Received: the values 3$"):
        builder.source("val")[0]
    write_image(masks(folder_dir)["val/c"], COLORS[random_mask() % 3])
    with pytest.raises(DataError, match="c.png: a label must hold one channel .* 8-bit RGB$"):
        builder.source("val")[0]


def test_indices_and_colors_of_the_same_classes(folder_dir, write_image):
    (folder_dir / "classes.csv").write_text(
        "index,name,r,g,b\n7,a,0,0,0\n8,b,255,0,0\n11,c,0,255,0\n0,void,255,255,255\n"
    )
    mask = random_mask()
    write_image(masks(folder_dir)["train/a"], np.array([7, 8, 11, 0], np.uint8)[mask % 252])
    write_image(masks(folder_dir)["train/b"], COLORS[np.minimum(mask, 3)])
    source = load_source("folder", "train", folder_dir)
    np.testing.assert_array_equal(source[0]["label"], mask)
    np.testing.assert_array_equal(source[1]["label"], mask)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "first line must name the columns.* Received: 'an empty file'"),
        ("floor,0,0,0\n", "first line must name the columns.* Received: 'floor,0,0,0'"),
        ("name,r,g\na,1,2", "first line must name the columns"),
        ("index,name,name\n", "first line must name the columns"),
        ("name,r,g,b\na,1,2", "line 2: expected 4 columns. Received: 'a,1,2'"),
        ("name,r,g,b\na,1,2,256", "line 2: .* 0 to 255. Received: '256'"),
        ("index,name\n-1,a", "line 2: .* 0 to 255. Received: '-1'"),
        ("index,name\n1,a\n1,b", "line 3: expected each index once. Received: 1 again"),
        ("index,name\n1,a\n2,a", "line 3: expected each name once. Received: 'a' again"),
        ("name,r,g,b\na,1,2,3\nb,1,2,3", "line 3: expected each colour once"),
        ("index,name\n1,", "line 2: a class must have a name"),
        ("index,name\n1,void", "1 to 255 classes, void not counted. Received: 0"),
        ("index,name\n1,\xe9", None),
    ],
)
def test_class_files(text, message):
    if message is None:
        with pytest.raises(DataError, match="^x.csv: expected text in UTF-8"):
            read_class_file(text.encode("latin-1"), "x.csv")
    else:
        with pytest.raises(DataError, match=f"^x.csv.*{message}"):
            read_class_file(text.encode(), "x.csv")


def test_class_file_with_byte_order_mark():
    data = b'\xef\xbb\xbfName,Red,Green,Blue\r\n"sky, clouds",1,2,3\r\nroad,4,5,6\r\n'
    assert read_class_file(data, "x").classes.names == ("sky, clouds", "road")


def test_values_that_are_not_classes_are_refused():
    assert classes_from_values([0, 2, 255], "x").classes.num_classes == 3
    with pytest.raises(DataError, match="converted to grey.* Received: the values 0, 33, 57, 220$"):
        classes_from_values([0, 33, 57, 220], "x")
    with pytest.raises(DataError, match="at least 2 classes"):
        classes_from_values([0], "x")


def break_zero_bytes(folder, write_image):
    (folder / "masks/train/a.png").write_bytes(b"")
    return "a.png: .* empty file"


def break_size(folder, write_image):
    write_image(folder / "masks/train/a.png", COLORS[random_mask((8, 6)) % 3])
    return "a.png: a label must have the size of its image"


def break_rotation(folder, write_image):
    exif = Image.Exif()
    exif[0x0112] = 6
    write_image(folder / "images/train/a.png", random_image(), exif=exif)
    return "a.png: .* 6x8 after its EXIF orientation 6"


def break_depth(folder, write_image):
    write_image(folder / "images/train/a.png", np.zeros((6, 8), np.uint16))
    return "a.png: .* Received: 16-bit"


def break_cmyk(folder, write_image):
    Image.new("CMYK", (8, 6)).save(folder / "images/train/b.jpg")
    return "b.jpg: .* Received: 8-bit CMYK"


def break_lossy(folder, write_image):
    path = folder / "masks/train/b.png"
    write_image(path.with_suffix(".jpg"), np.asarray(Image.open(path)))
    path.unlink()
    return "b.jpg: a label must be in a lossless format"


def break_color(folder, write_image):
    pixels = COLORS[np.minimum(random_mask(), 3)]
    pixels[0, 0] = (1, 2, 3)
    write_image(folder / "masks/train/a.png", pixels)
    return r"a.png: the colours of a mask .* Received: \(1, 2, 3\) in 1 pixels$"


def break_alpha(folder, write_image):
    write_image(folder / "masks/train/a.png", np.full((6, 8, 4), 254, np.uint8))
    return "a.png: a label must be opaque"


def break_bits(folder, write_image):
    (folder / "classes.csv").write_text("index,name\n0,background\n255,object\n")
    for path in masks(folder).values():
        write_image(path, np.where(random_mask() > 1, np.uint8(255), np.uint8(0)))
    write_image(folder / "masks/train/a.png", random_mask() > 1)
    return "a.png: label values must be 0 or 255. The file has one bit .* 8 bits, .* values 1$"


def break_grey(folder, write_image):
    image = Image.fromarray(COLORS[np.minimum(random_mask(), 3)]).convert("L")
    image.save(folder / "masks/train/a.png")
    return r"a.png: the colours of a mask .*If it contains indices, .* \(76, 76, 76\)"


@pytest.mark.parametrize(
    "harm",
    [
        break_zero_bytes,
        break_size,
        break_rotation,
        break_depth,
        break_cmyk,
        break_lossy,
        break_color,
        break_alpha,
        break_bits,
        break_grey,
    ],
)
def test_invalid_files_are_refused_and_reported(folder_dir, write_image, harm):
    (folder_dir / "classes.csv").write_text(COLOR_FILE)
    for path in masks(folder_dir).values():
        write_image(path, COLORS[np.minimum(np.asarray(Image.open(path)), 3)])
    message = harm(folder_dir, write_image)
    with pytest.raises(DataError, match=message):
        list(load_source("folder", "train", folder_dir))
    report = check_folder(folder_dir)
    assert len(report.problems) == 1
    with pytest.raises(DataError, match=message):
        raise DataError(report.problems[0])
    assert report.images == {"train": 2, "val": 1}


@pytest.mark.parametrize(
    ("remove", "add", "message"),
    [
        ("masks/train/a.png", None, "images/train/a.png: .* Received: an image without a label"),
        ("images/train/a.png", None, "masks/train/a.png: .* Received: a label without an image"),
        (None, "images/train/a.jpg", "train/a.png: expected one file per name.* also a.jpg"),
        (None, "masks/train/a.bmp", "train/a.png: expected one file per name.* also a.bmp"),
        (None, "masks/test/a.png", "masks/test: expected the images of these masks"),
    ],
)
def test_files_must_pair_up(folder_dir, write_image, remove, add, message):
    if remove:
        (folder_dir / remove).unlink()
    if add:
        write_image(folder_dir / add, random_mask())
    with pytest.raises(DataError, match=message):
        Folder(data_dir=folder_dir)
    (problem,) = check_folder(folder_dir).problems
    with pytest.raises(DataError, match=message):
        raise DataError(problem)


def test_incomplete_folders_are_refused_by_the_builder(tmp_path, write_image):
    with pytest.raises(DataError, match="none: no such folder.$"):
        Folder(data_dir=tmp_path / "none")
    with pytest.raises(DataError, match="Received: no folder images$"):
        Folder(data_dir=tmp_path)
    assert check_folder(tmp_path).problems == [
        f"{tmp_path}: expected the folders images/ and masks/. Received: no folder images"
    ]
    write_image(tmp_path / "images" / "1.png", random_image())
    write_image(tmp_path / "masks" / "1.png", random_mask())
    with pytest.raises(DataError, match="a folder per split, .* or lists such as train.txt"):
        Folder(data_dir=tmp_path)
    assert "1 problem\n" in check_folder(tmp_path).text()


def test_report(folder_dir, write_image):
    (folder_dir / "classes.csv").write_text("index,name\n0,sky\n1,road\n2,tree\n3,car\n")
    write_image(folder_dir / "images" / "val" / "d.png", random_image((5, 5)))
    write_image(folder_dir / "masks" / "val" / "d.png", np.zeros((5, 5), np.uint8))
    report = check_folder(folder_dir)
    assert report.images == {"train": 3, "val": 2}
    assert report.sizes == {(8, 6): 4, (5, 5): 1}
    assert report.problems == []
    for split in ("train", "val"):
        values = np.concatenate(
            [
                np.asarray(Image.open(path)).ravel()
                for key, path in masks(folder_dir).items()
                if key.startswith(split)
            ]
        )
        counts = np.bincount(values, minlength=256)
        np.testing.assert_array_equal(report.class_pixels[split], counts[:4])
        assert report.void_pixels[split] == counts[255]
        np.testing.assert_allclose(report.class_shares(split), counts[:4] / counts[:255].sum())
        assert report.void_share(split) == counts[255] / counts.sum()
    assert report.notes == [f"class 'car' does not occur in {split}" for split in ("train", "val")]
    text = report.text()
    for expected in ("3 of train, 2 of val", "2 different, 5 to 8 wide", "no problems", "tree"):
        assert expected in text
    # The same image in two splits, with another name and in another format.
    image = np.asarray(Image.open(folder_dir / "images" / "train" / "a.png"))
    write_image(folder_dir / "images" / "val" / "d.png", image)
    write_image(folder_dir / "masks" / "val" / "d.png", random_mask())
    assert any("val/d.png: the same image as" in note for note in check_folder(folder_dir).notes)


def test_report_of_all_problems(folder_dir, write_image):
    (folder_dir / "classes.csv").write_text("index,name\n0,sky\n1,road\n2,tree\n")
    break_zero_bytes(folder_dir, write_image)
    break_cmyk(folder_dir, write_image)
    write_image(folder_dir / "masks" / "val" / "c.png", np.full((6, 8), 3, np.uint8))
    (folder_dir / "masks" / "train" / "sub" / "a.png").unlink()
    report = check_folder(folder_dir)
    files = sorted(problem.split(": ")[0].rsplit("/", 2)[-1] for problem in report.problems)
    assert files == ["a.bmp", "a.png", "b.jpg", "c.png"]
    assert "4 problems" in report.text()
    (folder_dir / "classes.csv").write_text("nonsense")
    (problem,) = check_folder(folder_dir).problems
    assert "classes.csv: the first line" in problem
