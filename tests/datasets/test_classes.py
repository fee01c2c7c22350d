import dataclasses

import numpy as np
import pytest

from dilated_affinity.datasets import classes
from dilated_affinity.datasets.classes import CAMVID, CITYSCAPES, SHAPES, VOC2012, ClassTable


@pytest.mark.parametrize(
    ("table", "count"), [(CAMVID, 11), (SHAPES, 7), (VOC2012, 21), (CITYSCAPES, 19)]
)
def test_tables_have_distinct_names_and_colors(table, count):
    assert table.num_classes == count == len(set(table.names)) == len(set(table.palette))
    assert table.ignore_label == 255
    assert table.void_color not in table.palette or table is VOC2012


def test_color_map():
    colors = CAMVID.color_map()
    assert colors.shape == (256, 3) and colors.dtype == np.uint8
    assert tuple(colors[3]) == (128, 64, 128)
    assert not colors[11:].any()
    assert tuple(SHAPES.color_map()[255]) == (255, 255, 255)
    colors[:] = 1
    assert tuple(CAMVID.color_map()[0]) == (128, 128, 128), "the table was changed from outside"


def test_voc_palette():
    assert VOC2012.palette[0] == (0, 0, 0)
    assert VOC2012.palette[1] == (128, 0, 0)
    assert VOC2012.palette[2] == (0, 128, 0)
    assert VOC2012.palette[8] == (64, 0, 0)
    assert VOC2012.palette[15] == (192, 128, 128)
    assert VOC2012.palette[20] == (0, 64, 128)
    assert VOC2012.names[15] == "person"
    assert VOC2012.void_color == (224, 224, 192)


def test_cityscapes_ids():
    table = classes.cityscapes_train_ids()
    assert table.shape == (256,) and table.dtype == np.uint8
    assert table[7] == 0 and table[33] == 18 and table[26] == CITYSCAPES.names.index("car")
    assert (table != 255).sum() == 19
    np.testing.assert_array_equal(table[list(classes.CITYSCAPES_LABEL_IDS)], np.arange(19))
    for void in (0, 3, 9, 14, 18, 29, 30, 34, 255):
        assert table[void] == 255


def test_invalid_class_tables_are_refused():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CAMVID.names = ()
    with pytest.raises(ValueError, match="one colour per name.*Received: 2 names and 1 colours"):
        ClassTable(names=("a", "b"), palette=((0, 0, 0),))
    with pytest.raises(ValueError, match="Received: \\(0, 0, 256\\)"):
        ClassTable(names=("a",), palette=((0, 0, 256),))
    with pytest.raises(ValueError, match="Received: 0 names"):
        ClassTable(names=(), palette=())
