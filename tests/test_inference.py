import keras
import numpy as np
import pytest
from PIL import Image
from tiny import ListSource

from dilated_affinity.affinity.affinities import steep_sigmoid
from dilated_affinity.affinity.propagation import propagate
from dilated_affinity.canvases import Canvases, pad_to
from dilated_affinity.datasets.classes import VOC2012
from dilated_affinity.errors import ConfigError, DataError
from dilated_affinity.inference import (
    Predictor,
    inference_model,
    network,
    palette_image,
    predict_examples,
    predict_files,
)
from dilated_affinity.models.deeplab import DeepLabV3Plus

RATES = ((2, 2), (2, 4), (4, 2))


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    model = DeepLabV3Plus(21, RATES, "mobilenet_v2_0.35", weights=None, filters=16)
    for name in ("semantic_logits", "affinity_logits"):  # logits of some size, not all near 0
        model.get_layer(name).kernel.assign(model.get_layer(name).kernel * 100)
    return model


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 97, 131, 3)).astype("uint8")


def test_the_inference_model_is_network_then_softmax_then_propagation(model, images):
    outputs = inference_model(model, iterations=4, self_weight=3.0, mu=5.0)(images)
    logits = model(images.astype("float32"))
    expected = propagate(
        keras.ops.softmax(logits["semantic"]),
        steep_sigmoid(logits["affinity"], 5.0),
        RATES,
        4,
        3.0,
    )
    np.testing.assert_allclose(outputs["probabilities"], expected, atol=1e-5)
    labels = np.asarray(outputs["labels"])
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, np.argmax(outputs["probabilities"], axis=-1))
    np.testing.assert_allclose(
        outputs["affinity"], keras.ops.sigmoid(logits["affinity"]), atol=1e-6
    )


def test_a_model_without_affinity_gives_labels_and_probabilities(images):
    plain = DeepLabV3Plus(5, None, "mobilenet_v2_0.35", weights=None, filters=8)
    assert set(inference_model(plain)(images)) == {"labels", "probabilities"}


def test_the_predictor_agrees_with_the_inference_model_at_every_size(model, images):
    whole = inference_model(model, iterations=3)
    predict = Predictor(model, iterations=3)
    for height, width in ((97, 131), (60, 131), (97, 100), (33, 40), (1, 1)):
        image = images[0, :height, :width]
        expected = np.asarray(whole(image[np.newaxis])["labels"])[0]
        prediction = predict(image)
        assert prediction.labels.shape == (height, width)
        assert (prediction.labels == expected).mean() > 0.999  # ties of float32
        assert prediction.affinity.shape == (height, width, 24)


def test_the_predictor_averages_over_views(images):
    model = DeepLabV3Plus(5, RATES, "tiny", weights=None, filters=8)
    views = {"scales": (0.75, 1.0), "flip": True, "window": 64}
    image = images[0, :60, :80]
    logits = network(model, **views)(image[np.newaxis])
    refined = propagate(
        keras.ops.softmax(logits["semantic"]), steep_sigmoid(logits["affinity"]), RATES, 2
    )
    prediction = Predictor(model, iterations=2, **views)(image)
    assert (prediction.labels == np.argmax(refined, axis=-1)[0]).mean() > 0.999  # ties of float32
    np.testing.assert_array_equal(prediction.unrefined, np.argmax(logits["semantic"], axis=-1)[0])
    assert (prediction.unrefined != Predictor(model, 2)(image).unrefined).any()


def test_many_sizes_share_a_few_canvases():
    rng = np.random.default_rng(0)
    canvases = Canvases()
    sizes = [(375, 500), (500, 375)] + [tuple(rng.integers(200, 501, 2)) for _ in range(100)]
    used = set()
    for size in sizes:
        canvas = canvases.fit(size)
        assert canvas[0] >= size[0] and canvas[1] >= size[1]
        used.add(canvas)
    assert len(used) <= 5


def test_one_size_is_never_padded():
    canvases = Canvases()
    assert {canvases.fit((360, 480)) for _ in range(5)} == {(360, 480)}


def test_padding_is_below_and_to_the_right():
    padded = pad_to(np.ones((2, 3)), (4, 5), 7)
    assert padded.shape == (1, 4, 5)
    np.testing.assert_array_equal(
        padded[0] == 1,
        np.indices((4, 5)).sum(0) * 0 + np.pad(np.ones((2, 3)), ((0, 2), (0, 2))).astype(bool),
    )


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


def test_predicts_a_folder_and_mirrors_it(model, images, tmp_path):
    write(tmp_path / "in" / "a.png", images[0, :40, :50])
    write(tmp_path / "in" / "deep" / "er" / "b.jpg", images[1, :33, :41])
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    written = predict_files(
        Predictor(model, iterations=1), VOC2012, tmp_path / "in", tmp_path / "out"
    )
    assert written == [
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


def test_never_overwrites_unasked(model, images, tmp_path):
    write(tmp_path / "in" / "a.png", images[0, :33, :33])
    write(tmp_path / "in" / "b.png", images[0, :33, :33])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b_overlay.png").write_text("mine")
    with pytest.raises(DataError, match="b_overlay.png: exists already"):
        predict_files(Unused(), VOC2012, tmp_path / "in", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b_overlay.png"]
    predict_files(Predictor(model, 1), VOC2012, tmp_path / "in", tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "b_overlay.png").read_bytes().startswith(b"\x89PNG")


def test_two_images_of_one_stem_are_refused(images, tmp_path):
    write(tmp_path / "in" / "a.png", images[0, :33, :33])
    write(tmp_path / "in" / "a.jpg", images[0, :33, :33])
    with pytest.raises(DataError, match="a.jpg.*same files"):
        predict_files(Unused(), VOC2012, tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize("make", [True, False])
def test_an_empty_or_missing_input_is_refused(tmp_path, make):
    if make:
        (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match="in: no"):
        predict_files(Unused(), VOC2012, tmp_path / "in", tmp_path / "out")


def test_an_output_folder_inside_the_input_is_refused(images, tmp_path):
    write(tmp_path / "a.png", images[0, :33, :33])
    with pytest.raises(ConfigError, match="output_dir must not lie inside"):
        predict_files(Unused(), VOC2012, tmp_path, tmp_path / "out")


def test_a_damaged_image_is_refused_by_name(model, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    with pytest.raises(DataError, match="broken.png"):
        predict_files(Predictor(model, 1), VOC2012, tmp_path / "in", tmp_path / "out")


def test_examples_are_compared_with_their_ground_truth(model, images, tmp_path):
    label = np.zeros((40, 50), np.uint8)
    examples = [
        {"image": images[0, :40, :50], "label": label, "id": name} for name in ("a/b", "c", "d")
    ]
    source = ListSource(examples, VOC2012)
    written = predict_examples(Predictor(model, 1), source, tmp_path, limit=2)
    assert written == [tmp_path / "a" / "b_labels.png", tmp_path / "c_labels.png"]
    with Image.open(tmp_path / "a" / "b_comparison.png") as picture:
        assert picture.width == 5 * 50 + 4 * 4 and picture.height > 40 + 22
    assert (tmp_path / "a" / "b_errors.png").is_file()
    assert not (tmp_path / "d_labels.png").exists()


def test_an_example_whose_id_leads_outside_is_refused(images, tmp_path):
    example = {"image": images[0], "label": images[0, ..., 0], "id": "../outside"}
    with pytest.raises(DataError, match="outside"):
        predict_examples(Unused(), ListSource([example], VOC2012), tmp_path / "out")


def test_a_link_that_leads_outside_is_refused(images, tmp_path):
    write(tmp_path / "in" / "a" / "b.png", images[0, :33, :33])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="outside .*elsewhere"):
        predict_files(Unused(), VOC2012, tmp_path / "in", tmp_path / "out")
