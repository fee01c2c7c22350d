"""Predictions written beside each other into a folder."""

import collections
import errno

import numpy as np
import pytest
import tensorflow as tf
from helpers.tiny import ListSource
from PIL import Image

from dilated_affinity.datasets.classes import VOC2012
from dilated_affinity.errors import ConfigError, DataError
from dilated_affinity.inference import files
from dilated_affinity.inference.files import (
    PredictionStoppedError,
    predict_examples,
    predict_files,
)
from dilated_affinity.inference.model import inference_model
from dilated_affinity.inference.output_pictures import palette_image
from dilated_affinity.inference.predictor import Prediction, Predictor
from dilated_affinity.runtime.files import write_atomically

RATES = ((2, 2), (2, 4), (4, 2))


def test_palette_images_read_back_as_indices(tmp_path):
    labels = np.arange(255, dtype=np.uint8).reshape(15, 17)
    palette_image(labels, VOC2012).save(tmp_path / "labels.png")
    with Image.open(tmp_path / "labels.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), labels)
        assert tuple(image.getpalette()[45:48]) == (192, 128, 128)


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_a_folder_is_predicted_with_its_sub_folders(model, images, tmp_path):
    write(tmp_path / "in" / "a.png", images[0, :40, :50])
    write(tmp_path / "in" / "deep" / "er" / "b.jpg", images[1, :33, :41])
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    result = predict_files(
        Predictor(model, iterations=1), VOC2012, tmp_path / "in", tmp_path / "out"
    )
    assert result.failed == [] and "notes.txt" in result.notes.lines()[0]
    assert result.written == [
        tmp_path / "out" / "a_labels.png",
        tmp_path / "out" / "deep" / "er" / "b_labels.png",
    ]
    for stem, size in (("a", (50, 40)), ("deep/er/b", (41, 33))):
        with Image.open(tmp_path / "out" / f"{stem}_labels.png") as image:
            assert image.size == size
        with Image.open(tmp_path / "out" / f"{stem}_overlay.png") as image:
            assert image.width >= size[0] and image.height > size[1]  # the legend is below
        assert (tmp_path / "out" / f"{stem}_affinity.png").is_file()
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) == 6


class Unused:
    """A predictor that must not be reached."""

    rates = RATES

    def __call__(self, image):
        raise AssertionError("predicted before checking")

    def map(self, images):
        return map(self, images)


def test_existing_output_is_not_overwritten_by_default(model, images, tmp_path):
    write(tmp_path / "in" / "a.png", images[0, :33, :33])
    write(tmp_path / "in" / "b.png", images[0, :33, :33])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b_overlay.png").write_text("mine")
    with pytest.raises(DataError, match="b_overlay.png: exists already"):
        predict_files(Unused(), VOC2012, tmp_path / "in", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b_overlay.png"]
    predict_files(Predictor(model, 1), VOC2012, tmp_path / "in", tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "b_overlay.png").read_bytes().startswith(b"\x89PNG")


class Dark:
    """Predicts whether pixels are dark, without a network, and refuses what is wide."""

    rates = None

    def __init__(self, widest=1000):
        self._widest = widest

    def __call__(self, image):
        if image.shape[1] > self._widest:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
        labels = (image.mean(axis=-1) < 128).astype(np.uint8)
        return Prediction(labels, labels, None)

    def map(self, images):
        return map(self, images)


class ReadingAhead(Dark):
    """The same, some images ahead of what it yields, as with a CRF in other processes."""

    def map(self, images):
        under_way = collections.deque()
        for image in images:
            under_way.append(self(image))
            if len(under_way) > 2:
                yield under_way.popleft()
        yield from under_way


def stored_labels(out, name):
    with Image.open(out / f"{name}_labels.png") as image:
        return np.asarray(image)


def photographs(images, folder, names):
    for index, name in enumerate(names):
        write(folder / name, np.roll(images[0], index, axis=1)[: 30 + index, :40])


def test_an_unreadable_image_is_reported_and_others_are_predicted(images, tmp_path):
    photographs(images, tmp_path / "in", ("0.png", "1.jpg", "2.png", "deep/3.png"))
    data = (tmp_path / "in" / "1.jpg").read_bytes()
    (tmp_path / "in" / "1.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "in" / "4.png").symlink_to(tmp_path / "nowhere")
    result = predict_files(Dark(), VOC2012, tmp_path / "in", tmp_path / "out")
    assert [path.name for path in result.written] == [f"{i}_labels.png" for i in (0, 2, 3)]
    for path in ("0.png", "2.png", "deep/3.png"):
        with Image.open(tmp_path / "in" / path) as image:
            dark = np.asarray(image).astype(float).mean(axis=-1) < 128
        np.testing.assert_array_equal(stored_labels(tmp_path / "out", path[:-4]), dark)
    assert len(result.failed) == 2
    assert "1.jpg: the image file is damaged or cut off" in result.failed[0]
    assert "4.png: cannot be read (No such file" in result.failed[1]


@pytest.mark.parametrize("predictor", [Dark(45), ReadingAhead(45)], ids=["one", "ahead"])
def test_an_image_too_large_for_memory_is_reported_and_others_are_predicted(
    images, tmp_path, predictor
):
    for index, width in enumerate((40, 50, 41, 42, 60, 43)):
        write(tmp_path / "in" / f"{index}.png", images[index % 3][:30, :width])
    result = predict_files(predictor, VOC2012, tmp_path / "in", tmp_path / "out")
    assert [path.name for path in result.written] == [f"{i}_labels.png" for i in (0, 2, 3, 5)]
    for index in (0, 2, 3, 5):
        with Image.open(tmp_path / "in" / f"{index}.png") as image:
            dark = np.asarray(image).mean(axis=-1) < 128
        np.testing.assert_array_equal(stored_labels(tmp_path / "out", index), dark)
    assert ["50x30" in result.failed[0], "60x30" in result.failed[1]] == [True, True]


def test_other_errors_are_raised(images, tmp_path):
    write(tmp_path / "in" / "a.png", images[0])
    with pytest.raises(AssertionError, match="predicted before"):
        predict_files(Unused(), VOC2012, tmp_path / "in", tmp_path / "out")


def test_a_second_image_with_the_same_stem_is_reported(images, tmp_path):
    photographs(images, tmp_path / "in", ("a.png", "a.bmp"))
    result = predict_files(Dark(), VOC2012, tmp_path / "in", tmp_path / "out")
    (failed,) = result.failed
    assert "a.png: would be written to the same files as" in failed and failed.endswith("a.bmp")
    assert result.written == [tmp_path / "out" / "a_labels.png"]


def test_resume_predicts_images_with_incomplete_outputs(images, tmp_path):
    photographs(images, tmp_path / "in", [f"{index}.png" for index in range(5)])
    broken = (tmp_path / "in" / "4.png").read_bytes()
    (tmp_path / "in" / "4.png").write_bytes(b"")
    out = tmp_path / "out"
    predict_files(Dark(), VOC2012, tmp_path / "in", out)
    expected = {path.name: path.read_bytes() for path in out.iterdir()}
    (tmp_path / "in" / "4.png").write_bytes(broken)
    (out / "0_labels.png").unlink()
    (out / "1_overlay.png").write_bytes(expected["1_overlay.png"][:-1])
    (out / "2_labels.png").write_bytes(b"")
    (out / "2_affinity.png").write_bytes(b"of another model")
    with pytest.raises(DataError, match="0_overlay.png: exists already; .*--resume"):
        predict_files(Dark(), VOC2012, tmp_path / "in", out)
    with pytest.raises(ConfigError, match="overwrite .* and resume"):
        predict_files(Dark(), VOC2012, tmp_path / "in", out, overwrite=True, resume=True)
    result = predict_files(Dark(), VOC2012, tmp_path / "in", out, resume=True)
    assert result.kept == [out / "3_labels.png"] and result.failed == []
    assert result.written == [out / f"{index}_labels.png" for index in (0, 1, 2, 4)]
    assert {name: (out / name).read_bytes() for name in expected} == expected
    assert predict_files(Dark(), VOC2012, tmp_path / "in", out, resume=True).written == []


def test_resume_requires_every_output_of_model_and_data_set(model, images, tmp_path):
    example = {"image": images[0, :33, :33], "label": images[0, :33, :33, 0], "id": "a"}
    source = ListSource([example], VOC2012)
    write(tmp_path / "in" / "a.png", example["image"])
    predict_files(Dark(), VOC2012, tmp_path / "in", tmp_path / "out")
    # These have no picture of affinity, and of no data set.
    result = predict_files(
        Predictor(model, 1), VOC2012, tmp_path / "in", tmp_path / "out", resume=True
    )
    assert len(result.written) == 1 and (tmp_path / "out" / "a_affinity.png").is_file()
    result = predict_examples(Predictor(model, 1), source, tmp_path / "out", resume=True)
    assert len(result.written) == 1 and (tmp_path / "out" / "a_errors.png").is_file()
    assert predict_examples(Unused(), source, tmp_path / "out", resume=True).written == []


def test_skipped_and_rotated_files_are_counted(images, tmp_path):
    photographs(images, tmp_path / "elsewhere", ("x.png", "y.png"))
    photographs(images, tmp_path / "in", ("a.png",))
    for name in ("._a.png", "._b.png", ".DS_Store", "clip.mov"):
        (tmp_path / "in" / name).write_bytes(b"no image")
    (tmp_path / "in" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "again").symlink_to(tmp_path / "in")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(images[0, :30, :40]).save(tmp_path / "in" / "turned.png", exif=exif)
    result = predict_files(Dark(), VOC2012, tmp_path / "in", tmp_path / "out")
    assert len(result.written) == 4 and result.failed == []
    assert stored_labels(tmp_path / "out", "turned").shape == (40, 30)
    counts = dict(line.split(" (/")[0].rsplit(": ", 1) for line in result.notes.lines())
    assert counts == {
        "files that macOS writes beside others (._*), ignored": "2",
        "hidden files, ignored": "1",
        "files without the ending of an image, ignored (1 .mov)": "1",
        "folders that are links, followed": "1",
        "folders reached again through links, ignored": "1",
        "images turned upright by their EXIF orientation 6": "1",
    }


@pytest.mark.parametrize("make", [True, False])
def test_an_empty_or_missing_input_is_refused(tmp_path, make):
    if make:
        (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match="in: no"):
        predict_files(Unused(), VOC2012, tmp_path / "in", tmp_path / "out")


def test_an_output_folder_inside_the_input_is_refused(images, tmp_path):
    write(tmp_path / "a.png", images[0, :33, :33])
    with pytest.raises(ConfigError, match="output_dir must not be inside"):
        predict_files(Unused(), VOC2012, tmp_path, tmp_path / "out")


def test_examples_are_compared_with_their_ground_truth(model, images, tmp_path):
    label = np.zeros((40, 50), np.uint8)
    examples = [
        {"image": images[0, :40, :50], "label": label, "id": name} for name in ("a/b", "c", "d")
    ]
    source = ListSource(examples, VOC2012)
    result = predict_examples(Predictor(model, 1), source, tmp_path, limit=2)
    assert result.written == [tmp_path / "a" / "b_labels.png", tmp_path / "c_labels.png"]
    with Image.open(tmp_path / "a" / "b_comparison.png") as picture:
        assert picture.width == 5 * 50 + 4 * 4 and picture.height > 40 + 22
    assert (tmp_path / "a" / "b_errors.png").is_file()
    assert not (tmp_path / "d_labels.png").exists()


def test_an_example_id_outside_the_output_folder_is_refused(images, tmp_path):
    example = {"image": images[0], "label": images[0, ..., 0], "id": "../outside"}
    with pytest.raises(DataError, match="outside"):
        predict_examples(Unused(), ListSource([example], VOC2012), tmp_path / "out")


def test_a_link_outside_the_output_folder_is_refused(images, tmp_path):
    write(tmp_path / "in" / "a" / "b.png", images[0, :33, :33])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="outside .*elsewhere"):
        predict_files(Unused(), VOC2012, tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "remedy"), [({}, "and --resume continues"), ({"overwrite": True}, "starts again")]
)
def test_a_full_disk_ends_the_prediction_with_what_was_done(
    images, tmp_path, monkeypatch, options, remedy
):
    photographs(images, tmp_path / "in", [f"{index}.png" for index in range(5)])
    (tmp_path / "in" / "1.png").write_bytes(b"")
    out = tmp_path / "out"

    def full(path, content):
        if path.name == "3_labels.png":
            raise OSError(errno.ENOSPC, "No space left on device", "/elsewhere/.writing-x")
        write_atomically(path, content)

    monkeypatch.setattr(files, "write_atomically", full)
    with pytest.raises(PredictionStoppedError) as stopped:
        predict_files(Dark(), VOC2012, tmp_path / "in", out, **options)
    assert str(stopped.value) == (
        f"{out / '3_labels.png'}: cannot be written (No space left on device). Predicted 2 images "
        f"before it; the same command {remedy}."
    )
    result = stopped.value.result
    assert result.written == [out / "0_labels.png", out / "2_labels.png"]
    assert len(result.failed) == 1 and "1.png: expected an image" in result.failed[0]
    monkeypatch.undo()
    result = predict_files(Dark(), VOC2012, tmp_path / "in", out, resume=True)
    assert len(result.kept) == 2 and len(result.written) == 2


def test_a_file_in_place_of_a_folder_of_outputs_is_named(images, tmp_path):
    photographs(images, tmp_path / "in", ("a/b.png",))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("mine")
    with pytest.raises(PredictionStoppedError, match=r"a/b_overlay.png: .*out/a is not a folder\)"):
        predict_files(Dark(), VOC2012, tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize("below", [False, True])
@pytest.mark.parametrize("kind", ["file", "link that leads nowhere"])
def test_output_into_a_file_is_refused(images, tmp_path, below, kind):
    photographs(images, tmp_path / "in", ("a.png",))
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    else:
        out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=f"must be a folder, .*out'?.* is a {kind}$"):
        predict_files(Unused(), VOC2012, tmp_path / "in", out / "deep" if below else out)


def test_probabilities_and_confidence(model, images, tmp_path):
    write(tmp_path / "in" / "a.png", images[0, :40, :50])
    predictor = Predictor(model, iterations=2, mu=20.0)
    folders = tmp_path / "in", tmp_path / "out"
    predict_files(predictor, VOC2012, *folders, probabilities=True)
    with np.load(tmp_path / "out" / "a_probabilities.npz") as arrays:
        probabilities = arrays["probabilities"]
    assert probabilities.dtype == np.float16 and probabilities.shape == (40, 50, 21)
    whole = inference_model(model, iterations=2, mu=20.0)
    expected = np.asarray(whole(images[:1, :40, :50])["probabilities"])[0]
    np.testing.assert_allclose(probabilities, expected, atol=1e-3)
    with Image.open(tmp_path / "out" / "a_confidence.png") as picture:
        assert picture.mode == "L"
        np.testing.assert_allclose(np.asarray(picture) / 255, expected.max(axis=-1), atol=3e-3)
    with Image.open(tmp_path / "out" / "a_labels.png") as labels:
        chosen = np.take_along_axis(probabilities, np.asarray(labels)[..., None], axis=-1)
        np.testing.assert_allclose(chosen[..., 0], probabilities.max(axis=-1), atol=1e-3)
    # What is there is never replaced unasked, and what is cut off is written again.
    path = tmp_path / "out" / "a_probabilities.npz"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="exists already"):
        predict_files(predictor, VOC2012, *folders)
    result = predict_files(predictor, VOC2012, *folders, probabilities=True, resume=True)
    assert len(result.written) == 1 and path.stat().st_size == size
    result = predict_files(predictor, VOC2012, *folders, probabilities=True, resume=True)
    assert len(result.kept) == 1
