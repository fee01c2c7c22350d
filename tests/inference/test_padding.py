"""Few padded shapes for many sizes, and so few compilations of propagation."""

import struct
import tarfile

import numpy as np
import pytest
from helpers.tiny import ListSource
from keras import ops

from dilated_affinity.affinity import early_stopping, propagation
from dilated_affinity.datasets.classes import ClassTable
from dilated_affinity.evaluation.evaluate import evaluate
from dilated_affinity.inference.network import Network
from dilated_affinity.inference.padding import PaddedShapes, pad_on_device, pad_to
from dilated_affinity.inference.predictor import Predictor
from dilated_affinity.inference.refiners import METHODS
from dilated_affinity.inference.refiners.propagation import Propagation
from dilated_affinity.models.deeplab import DeepLabV3Plus

VOC_MASKS = "data/voc2012_masks/SegmentationClassAug_trainaug.tar"


def fitted(sizes):
    """The number of shapes used, and their pixels as a multiple of the images'."""
    padded_shapes = PaddedShapes()
    used = [padded_shapes.round_up(size) for size in sizes]
    for shape, size in zip(used, sizes, strict=True):
        assert shape[0] >= size[0] and shape[1] >= size[1]
    waste = sum(h * w for h, w in used) / sum(h * w for h, w in sizes)
    return len(set(used)), waste


def random_sizes(rng, count=40, low=200, high=500):
    return [tuple(map(int, rng.integers(low, high + 1, 2))) for _ in range(count)]


def test_a_tensor_is_padded_on_its_device():
    values = np.random.default_rng(0).normal(size=(1, 5, 7, 3)).astype(np.float32)
    padded = pad_on_device(ops.convert_to_tensor(values), (6, 9))
    assert ops.is_tensor(padded)
    np.testing.assert_array_equal(padded, pad_to(values[0], (6, 9)))


def test_outputs_that_need_no_padding_are_not_copied():
    logits = {"semantic": ops.ones((1, 5, 7, 3)), "affinity": ops.ones((1, 5, 7, 8))}
    outputs = Network(lambda _: logits)(np.zeros((5, 7, 3), np.uint8))
    assert outputs.padded_probabilities is outputs.probabilities
    assert outputs.padded_affinity is outputs.affinity is logits["affinity"]


def test_a_smaller_image_is_padded_to_the_shape_in_use():
    network = Network(lambda images: {"semantic": ops.ones((1, *images.shape[1:3], 3))})
    network(np.zeros((8, 9, 3), np.uint8))
    outputs = network(np.zeros((7, 9, 3), np.uint8))
    assert outputs.size == (7, 9) and outputs.probabilities.shape == (1, 7, 9, 3)
    assert outputs.padded_probabilities.shape == (1, 8, 9, 3)
    assert outputs.pad(np.ones((7, 9)), 5)[0, 7].tolist() == [5] * 9


def test_refined_outputs_stay_on_the_device(monkeypatch):
    model = DeepLabV3Plus(3, ((1, 1),), "mobilenet_v2_0.35", weights=None, filters=8)
    predictor, refine, seen = Predictor(model, 2), Propagation.__call__, []

    def record(self, outputs, *more):
        seen.extend([outputs.padded_probabilities, outputs.padded_affinity])
        return refine(self, outputs, *more)

    monkeypatch.setattr(Propagation, "__call__", record)
    for size in ((33, 41), (30, 40)):
        predictor(np.zeros((*size, 3), np.uint8))
    assert len(seen) == 4 and all(map(ops.is_tensor, seen))


@pytest.mark.parametrize("seed", range(20))
def test_forty_photograph_sizes_share_four_shapes(seed):
    padded_shapes, waste = fitted(random_sizes(np.random.default_rng(seed)))
    assert padded_shapes <= 4
    assert waste < 2.5


@pytest.mark.parametrize("seed", range(20))
def test_forty_larger_sizes_share_four_shapes(seed):
    assert fitted(random_sizes(np.random.default_rng(seed), low=200, high=1024))[0] <= 4


def test_all_voc_sizes_share_four_shapes(shared_file):
    sizes = []
    with tarfile.open(shared_file(VOC_MASKS)) as archive:
        for member in archive:
            if member.name.endswith(".png"):
                width, height = struct.unpack(">II", archive.extractfile(member).read(24)[16:])
                sizes.append((height, width))
    assert len(sizes) == 10_582 and len(set(sizes)) > 700
    for seed in range(10):
        np.random.default_rng(seed).shuffle(sizes)
        padded_shapes, waste = fitted([tuple(map(int, size)) for size in sizes])
        assert padded_shapes <= 4
        assert waste < 1.5


def test_growing_sizes_need_few_more_shapes():
    assert fitted([(side, side) for side in range(100, 2000, 50)])[0] <= 6


def test_one_size_is_never_padded():
    padded_shapes = PaddedShapes()
    assert {padded_shapes.round_up((360, 480)) for _ in range(5)} == {(360, 480)}


def test_padding_is_below_and_to_the_right():
    padded = pad_to(np.ones((2, 3)), (4, 5), 7)
    expected = np.full((1, 4, 5), 7.0)
    expected[0, :2, :3] = 1
    np.testing.assert_array_equal(padded, expected)


@pytest.fixture(scope="module")
def model():
    return DeepLabV3Plus(2, ((4, 4),), "tiny", weights=None, filters=8, separable=False)


@pytest.fixture(scope="module")
def sizes():
    """Forty sizes in both orientations, some of them again."""
    forty = random_sizes(np.random.default_rng(0), 40)
    return forty + forty[::5]


def compilations():
    # Every trace is of another shape, and XLA compiles each shape once.
    return sum(
        function.experimental_get_tracing_count()
        for function in (propagation._propagate, early_stopping._propagate_until_stable)
    )


def test_evaluating_compiles_propagation_at_most_four_times(model, sizes):
    rng = np.random.default_rng(0)
    examples = [
        {
            "image": rng.integers(0, 256, (*size, 3), np.uint8),
            "label": rng.integers(0, 2, size, np.uint8),
            "id": str(number),
        }
        for number, size in enumerate(sizes)
    ]
    before = compilations()
    evaluate(model, ListSource(examples, ClassTable(("a", "b"), ((0, 0, 0),) * 2)), (0, 1))
    assert 0 < compilations() - before <= 4


@pytest.mark.parametrize(
    "refinement", [name for name, method in METHODS.items() if method.propagates]
)
def test_predicting_compiles_propagation_at_most_four_times(model, sizes, refinement):
    predict = Predictor(model, iterations=2, refinement=refinement)
    before = compilations()
    for size in sizes:
        assert predict(np.zeros((*size, 3), np.uint8)).labels.shape == size
    # Shapes of the tests before this one are compiled already.
    assert compilations() - before <= 4
