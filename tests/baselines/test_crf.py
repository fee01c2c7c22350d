import subprocess
import sys

import numpy as np
import pytest

from dilated_affinity.baselines.crf import DenseCRF
from dilated_affinity.errors import ConfigError


@pytest.fixture
def by_hand():
    """pydensecrf called as its README says, apart from our code."""
    densecrf = pytest.importorskip("pydensecrf.densecrf", reason="needs the extra crf")

    def refine(image, probabilities, iterations, gaussian, bilateral):
        height, width, classes = probabilities.shape
        crf = densecrf.DenseCRF2D(width, height, classes)
        energy = np.empty((classes, height * width), np.float32)
        for k in range(classes):
            energy[k] = -np.log(np.clip(probabilities[..., k], 1e-5, 1.0)).reshape(-1)
        crf.setUnaryEnergy(energy)
        crf.addPairwiseGaussian(sxy=gaussian[1], compat=gaussian[0])
        weight, xy, rgb = bilateral
        crf.addPairwiseBilateral(sxy=xy, srgb=rgb, rgbim=image.copy(), compat=weight)
        rows = np.array(crf.inference(iterations))
        refined = np.empty(probabilities.shape, np.float32)
        for k in range(classes):
            refined[..., k] = rows[k].reshape(height, width)
        return refined

    return refine


def example(seed, size=(13, 18)):
    rng = np.random.default_rng(seed)
    image = np.repeat(rng.integers(0, 256, (size[0], 3, 3)), size[1] // 3, axis=1).astype(np.uint8)
    probabilities = rng.dirichlet(np.ones(4), size).astype(np.float32)
    probabilities[0, 0] = (1, 0, 0, 0)
    return image, probabilities


def test_equals_pydensecrf_by_hand(by_hand):
    image, probabilities = example(0)
    refined = DenseCRF()(image, probabilities)
    expected = by_hand(image, probabilities, 10, (3, 1), (4, 67, 3))
    np.testing.assert_array_equal(refined, expected)
    assert refined.dtype == np.float32
    for array in (image, probabilities):
        array.flags.writeable = False
    np.testing.assert_array_equal(DenseCRF()(image, probabilities), expected)
    np.testing.assert_allclose(refined.sum(-1), 1, rtol=1e-4)
    assert (refined.argmax(-1) != probabilities.argmax(-1)).mean() > 0.1


def test_every_setting_reaches_pydensecrf(by_hand):
    image, probabilities = example(1)
    crf = DenseCRF(
        iterations=3,
        gaussian_weight=2.0,
        gaussian_xy=1.5,
        bilateral_weight=5.0,
        bilateral_xy=11.0,
        bilateral_rgb=40.0,
    )
    expected = by_hand(image, probabilities, 3, (2, 1.5), (5, 11, 40))
    np.testing.assert_array_equal(crf(image, probabilities), expected)
    np.testing.assert_array_equal(
        crf(image[:, ::-1][:, ::-1], np.asfortranarray(probabilities)), expected
    )


@pytest.mark.slow
def test_processes_give_the_same_in_order(by_hand):
    pairs = [example(seed, (9, 12 + 3 * seed)) for seed in range(6)]
    crf = DenseCRF(iterations=2)
    assert [refined.shape for refined in crf.map(pairs)] == [each.shape for _, each in pairs]
    here = list(crf.map(iter(pairs), workers=1))
    there = list(crf.map(iter(pairs), workers=2))
    assert len(here) == len(there) == len(pairs)
    for first, second, pair in zip(here, there, pairs, strict=True):
        np.testing.assert_array_equal(first, second)
        np.testing.assert_array_equal(first, crf(*pair))


UNGUARDED = """
import numpy as np
from dilated_affinity.baselines.crf import DenseCRF

pair = np.zeros((4, 5, 3), np.uint8), np.full((4, 5, 2), 0.5, np.float32)
list(DenseCRF().map([pair] * 3, workers=2))
"""


@pytest.mark.slow
def test_a_script_without_guard_is_told_so(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert 'it must start its work below `if __name__ == "__main__":`' in last, done.stderr


def test_without_the_extra_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    with pytest.raises(ConfigError) as error:
        DenseCRF().check_installed()
    message = str(error.value)
    assert "pip install 'dilated_affinity[crf]'" in message and "\n" not in message


def test_refuses_what_makes_no_sense(by_hand):
    for settings in ({"iterations": -1}, {"bilateral_rgb": 0}, {"gaussian_weight": -1}):
        with pytest.raises(ConfigError, match="Received: DenseCRF"):
            DenseCRF(**settings)
    image, probabilities = example(0)
    for wrong in (image[1:], image.astype(np.float32)):
        with pytest.raises(ConfigError, match="Received: "):
            DenseCRF()(wrong, probabilities)
    with pytest.raises(ConfigError, match="Received: workers=0"):
        list(DenseCRF().map([], workers=0))
