import numpy as np
import pytest
import tensorflow as tf
from helpers.tiny import ListSource, tiny_config, write_camvid

from dilated_affinity import (
    AffinityAccuracy,
    AffinityLoss,
    AffinityStatistics,
    MeanIoU,
    SemanticLoss,
)
from dilated_affinity.affinity.targets import affinity_targets
from dilated_affinity.datasets.classes import CAMVID
from dilated_affinity.datasets.registry import load_source
from dilated_affinity.errors import ConfigError
from dilated_affinity.evaluation.evaluate import evaluate
from dilated_affinity.models.deeplab import BACKBONES
from dilated_affinity.run_dir.model import build_model
from dilated_affinity.training.input_pipeline import (
    _random_scale,
    augment,
    evaluation_dataset,
    training_dataset,
)


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    return write_camvid(tmp_path_factory.mktemp("camvid"))


def batches(config, **kwargs):
    return [
        (images.numpy(), {head: target.numpy() for head, target in targets.items()})
        for images, targets in training_dataset(config, **kwargs)
    ]


def assert_same(first, second):
    assert len(first) == len(second)
    for (images, targets), (other_images, other_targets) in zip(first, second, strict=True):
        np.testing.assert_array_equal(images, other_images)
        for head in targets:
            np.testing.assert_array_equal(targets[head], other_targets[head])


def test_batch_shapes(camvid):
    config = tiny_config(camvid)
    (images, targets), *rest = batches(config)
    assert len(rest) == config.train_steps - 1
    assert images.shape == (2, 33, 33, 3) and images.dtype == np.float32
    assert targets["semantic"].shape == (2, 33, 33) and targets["semantic"].dtype == np.uint8
    assert targets["affinity"].shape == (2, 33, 33, 24) and targets["affinity"].dtype == np.uint8


def test_targets_of_augmented_labels(camvid):
    config = tiny_config(camvid)
    for _, targets in batches(config):
        expected = affinity_targets(targets["semantic"], config.affinity_rates)
        np.testing.assert_array_equal(targets["affinity"], expected)


@pytest.mark.parametrize("make", [training_dataset, evaluation_dataset])
def test_no_thread_tunes_the_parallelism(camvid, make):
    """The end of an epoch would wait for it."""
    assert make(tiny_config(camvid)).options().autotune.enabled is False


def test_no_affinity_targets_without_rates(camvid):
    assert set(batches(tiny_config(camvid, rates="none"))[0][1]) == {"semantic"}


def test_seed(camvid):
    config = tiny_config(camvid)
    assert_same(batches(config), batches(config))
    other = batches(config.replace(seed=1))
    assert not np.array_equal(batches(config)[0][0], other[0][0])


def test_start_at_any_step(camvid):
    config = tiny_config(camvid, train_steps=7)
    whole = batches(config)
    assert_same(whole[3:5], batches(config, first_step=3, steps=2))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_epochs_are_permutations(size):
    rng = np.random.default_rng(0)
    label = np.zeros((33, 33), np.uint8)
    examples = [
        {"image": np.full((33, 33, 3), 10 * index, np.uint8), "label": label, "id": str(index)}
        for index in rng.permutation(size)
    ]
    config = tiny_config("unused", min_scale=1, max_scale=1, train_steps=4 * size, batch_size=2)
    seen = np.concatenate(
        [x[:, 5, 5, 0] for x, _ in batches(config, source=ListSource(examples, CAMVID))]
    )
    epochs = (seen / 10).round().astype(int).reshape(8, size)
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    if size == 5:
        assert len({tuple(epoch) for epoch in epochs}) > 4


@pytest.fixture
def two_sizes(tmp_path):
    """A data set whose validation images are of two sizes."""
    write_camvid(tmp_path / "data", val=3)
    write_camvid(tmp_path / "other", train=0, val=2, size=(37, 52))
    for kind in ("val", "valannot"):
        (tmp_path / "other" / kind / "val_1.png").rename(tmp_path / "data" / kind / "val_1.png")
    return tmp_path / "data"


def test_evaluation_dataset(two_sizes):
    config = tiny_config(two_sizes)
    dataset = evaluation_dataset(config)
    source = load_source("camvid", "val", two_sizes)
    assert len(dataset) == len(source) == 3
    for (images, targets), example in zip(dataset, source, strict=True):
        assert images.dtype == tf.float32 and images.shape[0] == 1
        np.testing.assert_array_equal(images[0], example["image"])
        np.testing.assert_array_equal(targets["semantic"][0], example["label"])
        expected = affinity_targets(example["label"], config.affinity_rates)
        np.testing.assert_array_equal(targets["affinity"][0], expected)
    (image, _), *others = evaluation_dataset(config, "train[1:2]")
    assert not others
    np.testing.assert_array_equal(image[0], load_source("camvid", "train", two_sizes)[1]["image"])


@pytest.mark.parametrize(
    "settings",
    [
        {"objective": "none", "rates": "none"},
        {"objective": "aaf", "rates": "none"},
        {"objective": "boundary", "rates": "none"},
        {"train_propagation": 1, "rates": "4,8"},
    ],
)
def test_evaluation_dataset_has_the_targets_of_training(two_sizes, settings):
    config = tiny_config(two_sizes, **settings)
    training, evaluation = (
        next(iter(make(config))) for make in (training_dataset, evaluation_dataset)
    )
    assert len(evaluation) == len(training)
    for part, other in zip(evaluation[1:], training[1:], strict=True):
        assert part.keys() == other.keys()
        for name, values in part.items():
            assert values.dtype == other[name].dtype
            assert values.shape[:3] == evaluation[0].shape[:3]


@pytest.mark.slow
def test_evaluation_dataset_as_validation_data(two_sizes):
    config = tiny_config(two_sizes, train_steps=2)
    source = load_source("camvid", "val", two_sizes)
    statistics = AffinityStatistics.from_labels(
        [example["label"] for example in source], config.affinity_rates
    )
    model = build_model(config, source.classes.num_classes, statistics)
    model.compile(
        "sgd",
        loss={"semantic": SemanticLoss(), "affinity": AffinityLoss(statistics)},
        metrics={
            "semantic": [MeanIoU(source.classes.num_classes, name="mean_iou")],
            "affinity": [AffinityAccuracy(config.affinity_rates, name="accuracy")],
        },
        jit_compile=False,
    )
    history = model.fit(
        training_dataset(config), validation_data=evaluation_dataset(config), verbose=0
    ).history
    measured = model.evaluate(evaluation_dataset(config), return_dict=True, verbose=0)
    for name, value in measured.items():
        np.testing.assert_allclose(history[f"val_{name}"], [value], rtol=1e-5)
    expected = evaluate(model, source, (0,))
    np.testing.assert_allclose(measured["semantic_mean_iou"], expected.mean_iou[0], rtol=1e-5)
    np.testing.assert_allclose(
        measured["semantic_loss"],
        np.mean(
            [
                SemanticLoss()(y["semantic"], model(x)["semantic"])
                for x, y in evaluation_dataset(config)
            ]
        ),
        rtol=1e-4,
    )


def draw(image, label, number=3, **settings):
    config = tiny_config("unused", random_flip=False, **settings)
    number = tf.constant(number, tf.int64)
    image, label = augment(tf.constant(image), tf.constant(label), config, number)
    return image.numpy(), label.numpy()


def test_identity_at_crop_size():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (33, 33, 3), np.uint8)
    label = rng.integers(0, 11, (33, 33)).astype(np.uint8)
    cropped, labels = draw(image, label, min_scale=1, max_scale=1)
    np.testing.assert_allclose(cropped, image, atol=1e-3)
    np.testing.assert_array_equal(labels, label)


@pytest.mark.parametrize("size", [(97, 131), (20, 131), (5, 7), (1, 1)])
@pytest.mark.parametrize("scale", [0.5, 1.0, 1.75])
def test_scaling_equals_tensorflow_resize(size, scale):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    label = rng.integers(0, 11, size).astype(np.uint8)
    cropped, labels = draw(image, label, min_scale=scale, max_scale=scale)
    scaled = [max(round(side * scale), 1) for side in size]
    rows, columns = shown = [min(side, 33) for side in scaled]
    window = [
        round(33 / scale) if side > 33 else whole for side, whole in zip(scaled, size, strict=True)
    ]
    inside = labels != 255
    assert inside[:rows, :columns].all() and inside.sum() == rows * columns
    matches = []
    for top, left in np.ndindex(size[0] - window[0] + 1, size[1] - window[1] + 1):
        part = np.s_[top : top + window[0], left : left + window[1]]
        nearest = tf.image.resize(label[part][..., None], shown, "nearest").numpy()[..., 0]
        if np.array_equal(nearest, labels[:rows, :columns]):
            matches.append(tf.image.resize(image[part], shown).numpy())
    (expected,) = matches
    np.testing.assert_allclose(cropped[:rows, :columns], expected, atol=0.01)
    np.testing.assert_array_equal(cropped[~inside], 127.5)


@pytest.mark.parametrize("name", BACKBONES)
def test_padding_is_0_after_preprocessing(name):
    image, label = np.zeros((9, 40, 3), np.uint8), np.zeros((9, 40), np.uint8)
    cropped, labels = draw(image, label, backbone=name, min_scale=1, max_scale=1)
    seen = np.asarray(BACKBONES[name].preprocess()(cropped))
    assert (labels == 255).sum() == 24 * 33
    np.testing.assert_array_equal(seen[labels == 255], 0)
    assert (seen[labels != 255] < -0.9).all()


def test_padding_of_resnets_is_imagenet_mean():
    cropped, _ = draw(
        np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.uint8), backbone="resnet101"
    )
    np.testing.assert_allclose(cropped[-1, -1], [123.68, 116.779, 103.939], rtol=1e-6)


def test_unknown_backbone():
    with pytest.raises(ConfigError, match="Received: backbone='resnet1001'"):
        draw(np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.uint8), backbone="resnet1001")


def test_crops_reach_every_corner():
    label = np.arange(40 * 40).reshape(40, 40) % 251
    corners = set()
    for number in range(300):
        _, labels = draw(
            np.zeros((40, 40, 3), np.uint8),
            label.astype(np.uint8),
            min_scale=1,
            max_scale=1,
            number=number,
        )
        corners.add(int(labels[0, 0]))
    assert len(corners) > 50


def test_half_of_images_are_flipped():
    image = np.zeros((33, 33, 3), np.uint8)
    image[:, :10] = 200
    label = np.zeros((33, 33), np.uint8)
    label[:, :10] = 1
    config = tiny_config("unused", min_scale=1, max_scale=1)
    mirrored = 0
    for number in range(60):
        pixels, labels = augment(image, label, config, tf.constant(number, tf.int64))
        np.testing.assert_array_equal(pixels.numpy()[..., 0] > 100, labels.numpy() == 1)
        mirrored += int(labels[0, -1] == 1)
    assert 15 < mirrored < 45


def test_scales_of_the_recipe():
    image = np.zeros((100, 100, 3), np.uint8)
    label = np.zeros((100, 100), np.uint8)
    config = tiny_config("unused", min_scale=0.05, max_scale=0.2, scale_step=0.05)
    sides = set()
    for number in range(60):
        _, labels = augment(image, label, config, tf.constant(number, tf.int64))
        sides.add(int((labels.numpy() == 0).any(axis=0).sum()))
    assert sides == {5, 10, 15, 20}


@pytest.mark.parametrize(
    "low, high, step, scales",
    [
        (0.5, 2.0, 0.25, (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)),
        (1.0, 1.2, 0.25, (1.0,)),
        (0.5, 2.0, 0.4, (0.5, 0.9, 1.3, 1.7)),
        (0.7, 1.0, 0.1, (0.7, 0.8, 0.9, 1.0)),
    ],
)
def test_scales_end_at_the_largest(low, high, step, scales):
    config = tiny_config("unused", min_scale=low, max_scale=high, scale_step=step)
    draws = np.linspace(0, 1, 50, endpoint=False, dtype=np.float32)
    drawn = {round(float(_random_scale(draw, config)), 6) for draw in draws}
    assert drawn == set(scales)


def test_skip_bad_examples(tmp_path):
    data = write_camvid(tmp_path, train=120)
    config = tiny_config(data, rates="none", on_bad_example="skip", train_steps=60)
    (data / "train" / "train_0.png").write_bytes(b"no image")
    assert sum(len(images) for images, _ in batches(config)) == 60 * config.batch_size
