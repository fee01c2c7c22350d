"""Tests of the notes on ignored, turned and converted files in a user's folder."""

import errno
import os
import unicodedata

import numpy as np
import pytest
from absl import logging
from PIL import Image

from dilated_affinity.cli.app import complain
from dilated_affinity.datasets.checking import check_dataset
from dilated_affinity.datasets.folder import Folder, check_folder
from dilated_affinity.datasets.folder.label_map import read_label_map
from dilated_affinity.datasets.registry import load_source
from dilated_affinity.datasets.skipping import SkippingSource
from dilated_affinity.errors import DataError

SIZE = (40, 56)
COLORS = np.array([(0, 0, 0), (48, 112, 32), (176, 112, 32)], np.uint8)
ORIENTATION = 0x0112


def scene(seed, classes=3):
    """A mask of discs on ground, and an image whose colours show the classes."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices(SIZE)
    mask = np.zeros(SIZE, np.uint8)
    for label in range(1, classes):
        center = rng.integers(9, SIZE[0] - 9), rng.integers(9, SIZE[1] - 9)
        mask[(rows - center[0]) ** 2 + (columns - center[1]) ** 2 < 64] = label
    image = np.array([(60, 90, 60), (200, 60, 60), (60, 60, 210)])[mask]
    return np.clip(image + rng.normal(0, 9, image.shape), 0, 255).astype(np.uint8), mask


def write(root, counts=(("train", 4), ("val", 2)), save_image=None, save_mask=None, classes=3):
    """Writes a folder; `save_*` take an array, a path and the number of the image."""
    number = 0
    for split, count in counts:
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            image, mask = scene(number, classes)
            paths = (
                root / "images" / split / f"{index}.png",
                root / "masks" / split / f"{index}.png",
            )
            for save, array, path in zip(
                (save_image, save_mask), (image, mask), paths, strict=True
            ):
                if save:
                    save(array, path, number)
                else:
                    Image.fromarray(array).save(path)
            number += 1
    return root


def note(report, *words):
    """The single note that contains some words."""
    found = [line for line in report.notes if all(word in line for word in words)]
    assert len(found) == 1, report.notes
    return found[0]


def counted(line, count):
    """Returns whether a line has a number of files and the names of a few of them."""
    return f": {count} (" in line and line.count(".png") + line.count(".jpg") <= 6


@pytest.fixture
def logged(monkeypatch):
    """The warnings logged during the test."""
    lines = []
    monkeypatch.setattr(logging, "warning", lambda text, *arguments: lines.append(text % arguments))
    return lines


def test_valid_folder_has_no_notes(tmp_path, logged):
    report = check_folder(write(tmp_path))
    assert (report.notes, report.problems) == ([], [])
    assert report.text().endswith("\nno problems")
    list(load_source("folder", "train", tmp_path))
    assert logged == []


# Links, hidden files and other files.


def test_linked_folders(tmp_path, logged):
    write(tmp_path / "elsewhere", (("part", 5),))
    write(tmp_path / "data", (("train", 3), ("val", 1)))
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind / "train" / "more").symlink_to(
            tmp_path / "elsewhere" / kind / "part"
        )
    report = check_folder(tmp_path / "data")
    assert report.images == {"train": 8, "val": 1} and report.problems == []
    assert counted(note(report, "links", "followed"), 2)
    source = load_source("folder", "train", tmp_path / "data")
    assert len(source) == 8 and "more/4" in source.ids
    assert any("links, followed: 2" in line for line in logged)


def test_cyclic_links(tmp_path):
    write(tmp_path, (("train", 2),))
    for kind in ("images", "masks"):
        (tmp_path / kind / "train" / "loop").symlink_to(tmp_path / kind)
        (tmp_path / kind / "train" / "self").symlink_to(tmp_path / kind / "train" / "self")
    report = check_folder(tmp_path)
    # The link to the split's parent makes that readable once by this path.
    assert report.images == {"train": 2} and report.problems == []
    assert counted(note(report, "reached again through links"), 2)


def test_many_linked_folders(tmp_path):
    write(tmp_path, (("train", 1),))
    for kind in ("images", "masks"):
        names = [tmp_path / kind / "train" / f"d{index}" for index in range(12)]
        for index, folder in enumerate(names):
            folder.mkdir()
            Image.fromarray(scene(index)[0 if kind == "images" else 1]).save(folder / "a.png")
        for folder in names:
            for other in names:
                (folder / other.name).symlink_to(other)
    report = check_folder(tmp_path)
    assert report.images == {"train": 13}


def test_a_link_to_a_folder_already_read_is_named_where_its_files_are_missing(tmp_path):
    write(tmp_path, (("train", 1),))
    for index, folder in enumerate(("a", "b")):
        (tmp_path / "masks" / "train" / folder).mkdir()
        Image.fromarray(scene(index)[1]).save(tmp_path / "masks" / "train" / folder / "x.png")
    images = tmp_path / "images" / "train"
    (images / "a").mkdir()
    Image.fromarray(scene(0)[0]).save(images / "a" / "x.png")
    (images / "b").symlink_to("a")
    (problem,) = check_folder(tmp_path).problems
    assert "masks/train/b/x.png" in problem and "a label without an image" in problem
    assert f"; {images / 'b'} leads to a folder already read" in problem
    with pytest.raises(DataError, match="b leads to a folder already read"):
        Folder(data_dir=tmp_path)
    (tmp_path / "train.txt").write_text("train/0\ntrain/a/x\ntrain/b/x.png\n")
    (problem,) = check_folder(tmp_path).problems
    assert "train.txt, line 3" in problem and "b leads to a folder already read" in problem
    # The same of masks.
    (images / "b").unlink()
    (images / "b").mkdir()
    Image.fromarray(scene(1)[0]).save(images / "b" / "x.png")
    (tmp_path / "masks" / "train" / "b" / "x.png").unlink()
    (tmp_path / "masks" / "train" / "b").rmdir()
    (tmp_path / "masks" / "train" / "b").symlink_to("a")
    (problem,) = check_folder(tmp_path).problems
    assert "masks/train/b leads to a folder already read" in problem
    (tmp_path / "train.txt").unlink()
    (problem,) = check_folder(tmp_path).problems
    assert "without a label; " in problem and "masks/train/b leads to" in problem


def test_broken_links_beside_splits(tmp_path):
    write(tmp_path)
    for name in ("images/gonesplit", "images/gone.png", "gone"):
        (tmp_path / name).symlink_to(tmp_path / "nowhere")
    report = check_folder(tmp_path)
    assert report.problems == [] and len(report.notes) == 1
    assert ": 3 (" in note(report, "links that lead nowhere, ignored")


def test_broken_link(tmp_path):
    write(tmp_path)
    for kind in ("images", "masks"):
        (tmp_path / kind / "train" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (problem,) = check_folder(tmp_path).problems
    assert "gone.png: cannot be read (No such file" in problem
    with pytest.raises(DataError, match="gone.png: cannot be read"):
        list(load_source("folder", "train", tmp_path))


def test_unreadable_folder(tmp_path, monkeypatch):
    write(tmp_path)
    for kind in ("images", "masks"):
        (tmp_path / kind / "train" / "closed").mkdir()
    scandir = os.scandir

    def refuse(path):
        # As the kernel does for users other than root.
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    problems = check_folder(tmp_path).problems
    assert len(problems) == 2 and "closed: cannot be read (Permission denied)" in problems[0]


def test_ignored_files(tmp_path, logged):
    write(tmp_path)
    for name in ("images/train/._0.png", "images/train/._1.png", "masks/val/._0.png"):
        (tmp_path / name).write_bytes(b"Mac OS X")
    for name in (".DS_Store", "masks/train/.thumb.png"):
        (tmp_path / name).write_bytes(b"x")
    for name in ("images/train/9.heic", "images/train/8.heic", "images/train/Thumbs.db"):
        (tmp_path / name).write_bytes(b"x")
    for name in ("images/.ipynb_checkpoints", "images/train/.cache"):
        (tmp_path / name).mkdir()
        Image.fromarray(scene(0)[0]).save(tmp_path / name / "0-copy.png")
    for name in ("images/stray.png", "masks/stray.png"):
        Image.fromarray(scene(0)[1]).save(tmp_path / name)
    (tmp_path / "validation.txt").write_text("0\n")
    report = check_folder(tmp_path)
    assert report.problems == [] and report.images == {"train": 4, "val": 2}
    assert counted(note(report, "macOS"), 3)
    assert counted(note(report, "hidden files"), 2)
    assert counted(note(report, "hidden folders"), 2)
    assert counted(note(report, "without the ending of an image", "2 .heic, 1 .db"), 3)
    assert counted(note(report, "in no split's folder"), 2)
    assert "validation.txt" in note(report, "other names")
    assert [line.removeprefix("folder: ") for line in logged] == []
    Folder(data_dir=tmp_path)
    assert [line.removeprefix("folder: ") for line in logged] == report.notes
    # The builder of the other split logs nothing new.
    Folder(data_dir=tmp_path)
    assert len(logged) == len(report.notes)


def test_images_in_no_list_or_two_lists(tmp_path):
    for index in range(9):
        for kind, array in zip(("images", "masks"), scene(index), strict=True):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(array).save(tmp_path / kind / f"{index}.png")
    (tmp_path / "train.txt").write_text("0\n1\n2\n3\n")
    (tmp_path / "val.txt").write_text("3.png\n4\n")
    (tmp_path / "trainval.txt").write_text("0\n1\n2\n3\n4\n")
    report = check_folder(tmp_path)
    assert report.problems == []
    assert counted(note(report, "none of the lists"), 4)
    assert counted(note(report, "two lists, train and val"), 1)
    assert len(report.notes) == 2


# Names.


@pytest.mark.parametrize("with_lists", [False, True])
def test_unicode_forms_of_names(tmp_path, with_lists, logged):
    write(tmp_path)
    decomposed, composed = (unicodedata.normalize(form, "fläche é") for form in ("NFD", "NFC"))
    assert decomposed != composed
    for kind, name in (("images", decomposed), ("masks", composed)):
        (tmp_path / kind / "train" / "0.png").rename(tmp_path / kind / "train" / f"{name}.png")
    if with_lists:
        (tmp_path / "train.txt").write_text(f"train/{composed}.png\ntrain/1\n")
        (tmp_path / "val.txt").write_text("val/0\nval/1\ntrain/2\ntrain/3\n")
    else:
        (tmp_path / "images" / "val").rename(tmp_path / "images" / f"{decomposed}")
        (tmp_path / "masks" / "val").rename(tmp_path / "masks" / f"{composed}")
    report = check_folder(tmp_path)
    assert report.problems == [] and sum(report.images.values()) == 6
    assert counted(note(report, "Unicode form"), 1 if with_lists else 2) or not with_lists
    source = load_source("folder", "train", tmp_path)
    index = next(i for i, name in enumerate(source.ids) if name.endswith(decomposed))
    np.testing.assert_array_equal(source[index]["label"], scene(0)[1])
    assert any("Unicode form" in line for line in logged)


def test_ambiguous_unicode_forms_of_names(tmp_path):
    write(tmp_path, (("train", 3),))
    forms = [unicodedata.normalize(form, "ö") for form in ("NFD", "NFC")]
    for index, name in enumerate(forms):
        for kind in ("images", "masks"):
            (tmp_path / kind / "train" / f"{index}.png").rename(
                tmp_path / kind / "train" / f"{name}.png"
            )
    report = check_folder(tmp_path)
    assert (report.problems, report.notes, report.images) == ([], [], {"train": 3})
    (tmp_path / "masks" / "train" / f"{forms[0]}.png").unlink()
    (problem,) = check_folder(tmp_path).problems
    assert "an image without a label" in problem


@pytest.mark.parametrize(
    ("image", "mask", "words"),
    [("A", "a", "upper and lower case"), ("a ", "a", "differs in spaces")],
)
def test_hint_for_similar_names(tmp_path, image, mask, words):
    write(tmp_path)
    for kind, name in (("images", image), ("masks", mask)):
        (tmp_path / kind / "train" / "0.png").rename(tmp_path / kind / "train" / f"{name}.png")
    problems = check_folder(tmp_path).problems
    assert len(problems) == 2 and all(words in problem for problem in problems)


# Images.


def save_turned(orientation, mask_is_upright=False):
    """Saves an upright image with turned pixels, or unchanged pixels, with an EXIF orientation."""

    def save(array, path, number):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        image = Image.fromarray(array)
        if mask_is_upright:
            # The inverse of turning upright: 6 and 8 are each other's inverse, others their own.
            inverse = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
            others = {
                2: Image.Transpose.FLIP_LEFT_RIGHT,
                3: Image.Transpose.ROTATE_180,
                4: Image.Transpose.FLIP_TOP_BOTTOM,
                5: Image.Transpose.TRANSPOSE,
                7: Image.Transpose.TRANSVERSE,
            }
            image = image.transpose((inverse | others)[orientation])
        image.save(path, exif=exif)

    return save


@pytest.mark.parametrize("orientation", range(2, 9))
def test_images_turned_upright(tmp_path, orientation, logged):
    report = check_folder(write(tmp_path, save_image=save_turned(orientation, True)))
    assert report.problems == []
    assert counted(note(report, f"EXIF orientation {orientation}"), 6)
    # The masks are drawn on the upright images, so there is no other note.
    assert len(report.notes) == 1
    source = load_source("folder", "train", tmp_path)
    np.testing.assert_array_equal(source[2]["image"], scene(2)[0])
    list(source)
    (line,) = logged
    assert (
        f"2.png is one of the images turned upright by their EXIF orientation {orientation}; "
        "--check_only counts them" in line
    )


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_masks_drawn_on_stored_pixels(tmp_path, orientation):
    report = check_folder(write(tmp_path, save_image=save_turned(orientation)))
    assert "6 of 6" in note(report, "fit the stored pixels of their images better", "exiftool")
    assert "notes to read above" in report.text()


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("square", [True, False])
def test_masks_drawn_on_stored_pixels_of_other_size(tmp_path, orientation, square):
    def save_image(array, path, number):
        save_turned(orientation)(array[:, :40] if square else array, path, number)

    def save_mask(array, path, number):
        Image.fromarray(array[:, :40] if square else array).save(path)

    report = check_folder(write(tmp_path, save_image=save_image, save_mask=save_mask))
    if square:
        assert "fit the stored pixels of their images better" in report.notes[1]
    else:
        assert len(report.problems) == 6
        assert "seems to be drawn on the pixels as stored; if so, remove" in report.problems[0]


def test_images_with_alpha_or_several_pages(tmp_path):
    def save(array, path, number):
        image = Image.fromarray(array)
        if number == 0:
            image.putalpha(Image.fromarray(np.full(SIZE, 255, np.uint8)))
        if number == 1:
            image.putalpha(Image.fromarray(array[..., 0]))
        if number == 2:
            image.save(
                path.with_suffix(".gif"),
                save_all=True,
                append_images=[Image.new("RGB", image.size)],
            )
        elif number == 3:
            Image.fromarray(array.astype(np.uint16)[..., 0] * 256).save(path)
        else:
            image.save(path)

    report = check_folder(write(tmp_path, save_image=save))
    assert counted(note(report, "transparent", "opaque"), 1)
    assert "1.png" in note(report, "transparent")
    assert counted(note(report, "images with several frames or pages, of which the first"), 1)
    (problem,) = report.problems
    assert "3.png: an image must be grey or RGB with 8 bits" in problem


# Masks.


def test_masks_of_0_and_255_beside_masks_of_0_and_1(tmp_path, logged):
    def save(array, path, number):
        Image.fromarray(array * (255 if number % 2 else 1)).save(path)

    report = check_folder(write(tmp_path, save_mask=save, classes=2))
    line = note(report, "only 0 and 255", "may be a class")
    assert counted(line, 3) and "masks/train/1.png" in line
    # Without classes.csv, masks are read before a run.
    load_source("folder", "train", tmp_path)
    assert f"folder: {line}" in logged
    (tmp_path / "classes.csv").write_text("index,name\n0,ground\n1,disc\n")
    assert note(check_folder(tmp_path), "only 0 and 255") == line
    (tmp_path / "classes.csv").write_text("index,name\n0,ground\n1,disc\n255,other\n")
    assert not any("255" in line for line in check_folder(tmp_path).notes)


def test_masks_of_0_and_255_beside_masks_with_void(tmp_path):
    def save(array, path, number):
        array[0] = 255
        Image.fromarray(array if number else np.where(array == 255, 255, 0).astype(np.uint8)).save(
            path
        )

    report = check_folder(write(tmp_path, save_mask=save))
    line = note(report, "only 0 and 255")
    assert counted(line, 1) and "may be a class" not in line


def test_masks_of_only_void(tmp_path):
    def save(array, path, number):
        Image.fromarray(np.full_like(array, 9) if number < 2 else array).save(path)

    write(tmp_path, save_mask=save)
    (tmp_path / "classes.csv").write_text("index,name\n0,a\n1,b\n2,c\n9,void\n")
    assert counted(note(check_folder(tmp_path), "only void"), 2)


@pytest.mark.parametrize("resample", [Image.BILINEAR, Image.LANCZOS])
def test_masks_resized_with_interpolation(tmp_path, resample):
    def save_image(array, path, number):
        Image.fromarray(array).resize((80, 60)).save(path)

    def save_mask(array, path, number):
        # Class 2 borders on class 0; interpolation puts class 1 in between.
        method = resample if number else Image.NEAREST
        Image.fromarray(array // 2 * 2).resize((80, 60), method).save(path)

    write(tmp_path, save_image=save_image, save_mask=save_mask)
    (tmp_path / "classes.csv").write_text("index,name\n0,a\n1,b\n2,c\n3,d\n")
    assert counted(note(check_folder(tmp_path), "edges", "interpolation"), 5)


def test_grey_masks_with_smooth_edges(tmp_path):
    def save_mask(array, path, number):
        Image.fromarray(array // 2 * 255).resize((100, 70), Image.LANCZOS).resize(
            (56, 40), Image.BICUBIC
        ).save(path)

    write(tmp_path, save_mask=save_mask)
    # So many values that, as classes, few would be missing.
    match = "values occur only between a lower and a higher one.* anti-aliased edges"
    with pytest.raises(DataError, match=match):
        Folder(data_dir=tmp_path)
    (problem,) = check_folder(tmp_path).problems
    assert "smooth" in problem


def test_transparent_palette_entries(tmp_path):
    def save(array, path, number):
        image = Image.fromarray(array)
        image.putpalette(COLORS.ravel().tolist())
        # The last one has no transparent pixel.
        image.save(path, transparency=bytes([255, 0, 255] if number < 5 else [255, 255, 255, 0]))

    write(tmp_path, save_mask=save)
    for text in (None, "name,r,g,b\na,0,0,0\nb,48,112,32\nc,176,112,32\n"):
        if text:
            (tmp_path / "classes.csv").write_text(text)
        report = check_folder(tmp_path)
        assert counted(note(report, "masks transparent in places", "opaque"), 5)
        assert report.problems == []
        np.testing.assert_array_equal(
            load_source("folder", "train", tmp_path)[1]["label"], scene(1)[1]
        )


def test_masks_with_different_palettes(tmp_path):
    def save(array, path, number):
        image = Image.fromarray(array)
        image.putpalette(COLORS[[0, 2, 1] if number == 3 else [0, 1, 2]].ravel().tolist())
        image.save(path)

    line = note(check_folder(write(tmp_path, save_mask=save)), "several colours in the palettes")
    assert ": 2 (1: (48, 112, 32) in" in line and "masks/train/3.png" in line


def test_masks_with_exif_orientation(tmp_path, logged):
    report = check_folder(write(tmp_path, save_mask=save_turned(3, True)))
    assert counted(note(report, "masks turned upright by their EXIF orientation 3"), 6)
    source = load_source("folder", "val", tmp_path)
    np.testing.assert_array_equal(source[0]["label"], scene(4)[1])
    list(source)
    (line,) = logged
    assert "0.png is one of the masks turned upright by their EXIF orientation 3; " in line
    np.testing.assert_array_equal(load_source("folder", "val", tmp_path).label(0), scene(4)[1])
    assert len(logged) == 2


# Masks drawn in colours.


def write_colored(root):
    return write(root, save_mask=lambda mask, path, _: Image.fromarray(COLORS[mask]).save(path))


def test_colored_masks_without_class_file(tmp_path):
    write_colored(tmp_path)
    (problem,) = check_folder(tmp_path).problems
    for words in ("classes.csv", "name,r,g,b", "background,0,0,0", "6 such masks", "(48, 112, 32)"):
        assert words in problem
    with pytest.raises(DataError, match=r"train/0.png: .*classes.csv.*\(176, 112, 32\)$"):
        Folder(data_dir=tmp_path)


def test_indices_saved_as_rgb(tmp_path):
    write(tmp_path, save_mask=lambda m, path, _: Image.fromarray(np.stack([m] * 3, -1)).save(path))
    assert "save one of the channels" in check_folder(tmp_path).problems[0]


def test_colored_masks_with_smooth_edges(tmp_path):
    def save_mask(array, path, number):
        Image.fromarray(COLORS[array]).resize((99, 77)).resize((56, 40)).save(path)

    write(tmp_path, save_mask=save_mask)
    (problem,) = check_folder(tmp_path).problems
    assert "anti-aliased edges" in problem and problem.count("), (") < 30
    (tmp_path / "classes.csv").write_text("name,r,g,b\na,0,0,0\nb,48,112,32\nc,176,112,32\n")
    assert "anti-aliased edges" in check_folder(tmp_path).problems[0]


LABEL_MAP = """# label:color_rgb:parts:actions
background:0,0,0::
"leaf, green":48,112,32::
spot:176,112,32::
"""


@pytest.mark.parametrize("kind", ["rgb", "palette", "grey"])
def test_label_map_of_cvat(tmp_path, kind, logged):
    def save(mask, path, number):
        if kind == "rgb":
            image = Image.fromarray(COLORS[mask])
        elif kind == "grey":
            image = Image.fromarray(mask)
        else:
            # Read by colour, whatever the order of the palette.
            image = Image.fromarray(2 - mask)
            image.putpalette(COLORS[::-1].ravel().tolist())
        image.save(path)

    write(tmp_path, save_mask=save)
    (tmp_path / "labelmap.txt").write_text(LABEL_MAP)
    report = check_folder(tmp_path)
    assert report.problems == [] and "labelmap.txt" in note(report, "CVAT")
    assert report.classes.names == ("background", '"leaf, green"', "spot")
    assert report.classes.palette == tuple(tuple(map(int, color)) for color in COLORS)
    np.testing.assert_array_equal(load_source("folder", "val", tmp_path)[1]["label"], scene(5)[1])
    assert any("labelmap.txt" in line for line in logged)
    # classes.csv takes precedence.
    (tmp_path / "classes.csv").write_text(
        "index,name,r,g,b\n0,x,0,0,0\n1,y,48,112,32\n2,z,176,112,32"
    )
    report = check_folder(tmp_path)
    assert report.classes.names == ("x", "y", "z")
    assert "labelmap.txt" in note(report, "other names, ignored")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_label_map_with_colons_in_names_and_other_encodings(encoding):
    names = ("animal:cat", "1:2,3,4", "größe", "car", "a:b")
    lines = (
        *(LABEL_MAP.splitlines()[0], "animal:cat:1,0,0::", "1:2,3,4:2,0,0:paw,tail:jump,run"),
        *("größe:3, 0, 0::", "car:4,0,0:wheel:x:y:z", "a:b:5,0,0"),
    )
    found = read_label_map("\r\n".join(lines).encode(encoding), "labelmap.txt")
    assert found.classes.names == names
    assert found.classes.palette == tuple((red, 0, 0) for red in range(1, 6))


def test_other_and_damaged_label_maps(tmp_path):
    write(tmp_path)
    (tmp_path / "labelmap.txt").write_text("item { id: 1 name: 'a' }\n")
    report = check_folder(tmp_path)
    assert report.problems == [] and "labelmap.txt" in note(report, "other names")
    assert Folder(data_dir=tmp_path).classes.num_classes == 3
    (tmp_path / "labelmap.txt").write_text(LABEL_MAP + "spot two::\n")
    with pytest.raises(DataError, match="labelmap.txt, line 5: .* Received: 'spot two::'"):
        Folder(data_dir=tmp_path)
    assert "labelmap.txt, line 5" in check_folder(tmp_path).problems[0]
    (tmp_path / "labelmap.txt").write_text(LABEL_MAP.replace("spot:", "void:"))
    assert check_folder(tmp_path).classes.names == ("background", '"leaf, green"')


# Number.


def test_length_of_notes(tmp_path):
    write(tmp_path, (("train", 40),), save_image=save_turned(3))
    for index in range(50):
        (tmp_path / "images" / "train" / f"._{index}.png").write_bytes(b"x")
        Image.fromarray(scene(0)[0]).save(tmp_path / "images" / "train" / f"copy{index}.png")
        Image.fromarray(scene(0)[1]).save(tmp_path / "masks" / "train" / f"copy{index}.png")
    report = check_folder(tmp_path)
    assert len(report.notes) == 4 and counted(note(report, "macOS"), 50)
    assert "and 46 more" in note(report, "duplicate images") and max(map(len, report.notes)) < 1500


def test_notes_of_other_data_sets(camvid_dir, logged):
    (camvid_dir / "train" / "._train_0.png").write_bytes(b"x")
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    with Image.open(camvid_dir / "val" / "val_0.png") as image:
        image.save(camvid_dir / "val" / "val_0.png", exif=exif)
    report = check_dataset("camvid", camvid_dir, ("train", "val"))
    assert report.problems == [] and report.images == {"train": 3, "val": 2}
    assert counted(note(report, "macOS"), 1)
    assert "val_0.png" in note(report, "images turned upright by their EXIF orientation 3")
    assert any(line.startswith("camvid: files that macOS") for line in logged)


def test_notes_of_other_folders_of_camvid(camvid_dir, logged):
    for name in ("extra", "Test", ".git"):
        (camvid_dir / name).mkdir()
    (camvid_dir / "test").symlink_to(camvid_dir / "nowhere")
    (camvid_dir / "train.txt").write_text("the tutorial's list")
    report = check_dataset("camvid", camvid_dir, ("train", "val"))
    assert report.problems == [] and len(report.notes) == 3
    line = note(report, "folders of other names, ignored: 2 (")
    assert "extra" in line and "Test" in line
    assert ".git" in note(report, "hidden folders") and "test" in note(report, "lead nowhere")
    assert f"camvid: {line}" in logged


def test_broken_links_and_unread_columns(tmp_path, logged):
    """A folder of images on a disk that is not mounted, and a table of another tool."""
    write(tmp_path)
    (tmp_path / "images" / "train" / "second").symlink_to(tmp_path / "nowhere")
    (tmp_path / "classes.csv").write_text("index,name,Supercategory\n0,a,x\n1,b,y\n2,c,x\n")
    report = check_folder(tmp_path)
    assert report.problems == []
    assert "images/train/second" in note(report, "links that lead nowhere, ignored: 1 (")
    (line,) = logged
    assert line.endswith("classes.csv: columns that are not read: supercategory")


def test_control_characters_in_names_are_shown_escaped(tmp_path, logged, capsys):
    """A name must not look like another line of the report, nor clear the terminal."""
    write(tmp_path)
    (tmp_path / "x\nno problems\n.txt").write_text("x")
    (tmp_path / "images" / "train" / "\033[2J.heic").write_text("x")
    for kind in ("images", "masks"):
        (tmp_path / kind / "train" / "0.png").rename(
            tmp_path / kind / "train" / "n\n\033[31m\udcff.png"
        )
    (tmp_path / "masks" / "train" / "n\n\033[31m\udcff.png").write_bytes(b"")
    report = check_folder(tmp_path)
    text = report.text()
    assert len(report.problems) == 1 and "no problems" not in text.splitlines()
    assert r"masks/train/n\n\x1b[31m\udcff.png: expected an image" in text
    assert r"x\nno problems\n.txt" in note(report, "other names")
    assert r"\x1b[2J.heic" in note(report, "without the ending")
    (tmp_path / "classes.csv").write_text("index,name\n0,a\n1,b\n2,c\n")
    Folder(data_dir=tmp_path)
    complain(DataError(report.problems[0]))
    complain(OSError("two\nlines"))
    assert any(r"x\nno problems\n.txt" in line for line in logged)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and r"n \x1b[31m\udcff.png" in said[0] and said[1].endswith("two lines")
    assert all(line.isprintable() for line in (*text.splitlines(), *logged, *said))


def test_control_characters_in_names_of_remarks_are_logged_escaped(tmp_path, logged):
    write(tmp_path, save_image=save_turned(3, True))
    for kind in ("images", "masks"):
        (tmp_path / kind / "train" / "0.png").rename(tmp_path / kind / "train" / "0\n.png")
    (tmp_path / "images" / "train" / "1.png").write_bytes(b"")
    source = load_source("folder", "train", tmp_path)
    source[source.ids.index("0\n")]
    for kind in ("images", "masks"):
        (tmp_path / kind / "train" / "0\n.png").write_bytes(b"")
    skipping = SkippingSource(source)
    with pytest.raises(DataError, match="of 4 training examples cannot be used"):
        skipping[source.ids.index("0\n")]
    first, second = logged
    assert r"/0\n.png" in first and first.isprintable()
    assert second.startswith("skipped: ") and r"/0\n.png" in second and second.isprintable()
