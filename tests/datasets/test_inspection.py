"""Tests of the detection of possible mistakes in images and masks, against loops."""

import numpy as np
import pytest
from PIL import Image

from dilated_affinity.datasets.inspection import (
    MaskSurvey,
    count_values,
    find_mixed,
    fits_as_stored,
)


def mixed_by_loops(values, void=None):
    found = np.zeros(values.shape, bool)
    height, width = values.shape
    for row in range(height):
        for column in range(width):
            here = int(values[row, column])
            for line, place in ((values[row], column), (values[:, column], row)):
                if not 2 <= place < len(line) - 2:
                    continue
                sides = []
                for step in (-1, 1):
                    near = int(line[place + step])
                    sides.append(near if near != here else int(line[place + 2 * step]))
                if void is None or void not in (*sides, here):
                    found[row, column] |= min(sides) < here < max(sides)
    return found


@pytest.mark.parametrize("void", [None, 255])
@pytest.mark.parametrize("shape", [(9, 12), (1, 7), (4, 3), (5, 5)])
def test_find_mixed_equals_loops(shape, void):
    rng = np.random.default_rng(sum(shape))
    for _ in range(5):
        values = rng.choice(np.array([0, 1, 2, 3, 255], np.uint8), shape)
        np.testing.assert_array_equal(find_mixed(values, void), mixed_by_loops(values, void))


def test_smooth_edges():
    rows, columns = np.indices((90, 120))
    disc = ((rows - 45) ** 2 + (columns - 60) ** 2 < 900).astype(np.uint8)
    # A class one pixel wide between two others, surrounded by void, is not a smooth edge.
    ring = disc * 2
    ring[np.abs(np.hypot(rows - 45, columns - 60) - 20) < 0.6] = 1
    contour = np.where(np.abs(np.hypot(rows - 45, columns - 60) - 30) < 2, 255, disc * 9)
    for sharp in (disc * 4, ring, contour.astype(np.uint8)):
        assert not count_values(sharp).smooth
    for scale in (2, 9, 255):
        smooth = Image.fromarray(disc * scale).resize((100, 75), Image.BILINEAR)
        assert count_values(np.asarray(smooth)).smooth


def test_mixed_values():
    survey = MaskSurvey()
    ramp = np.repeat(np.array([[0] * 5 + [7, 9] + [20] * 5], np.uint8), 8, axis=0)
    survey.add("a", count_values(ramp))
    assert (survey.values(), survey.mixed_values()) == ([0, 7, 9, 20], [7, 9])
    survey.add("b", count_values(np.full((6, 6), 9, np.uint8)))
    assert survey.mixed_values() == [7]
    assert "a" in survey and "c" not in survey


TURNED = {
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored),
}


@pytest.mark.parametrize("orientation", TURNED)
def test_fits_as_stored(orientation):
    rng = np.random.default_rng(orientation)
    stored = np.zeros((50, 50), np.uint8)
    stored[5:20, 8:30] = 1
    photograph = (stored[..., None] * 90 + rng.normal(90, 30, (50, 50, 3))).clip(0, 255)
    upright = TURNED[orientation](photograph.astype(np.uint8))
    assert fits_as_stored(upright, stored, orientation)
    drawn_upright = np.ascontiguousarray(TURNED[orientation](stored))
    assert not fits_as_stored(upright, drawn_upright, orientation)
    assert fits_as_stored(upright, np.zeros_like(stored), orientation) is None
    if orientation > 4:
        assert fits_as_stored(upright[:40], drawn_upright[:40], orientation) is None
