"""Class names, palettes and label ids of the data sets, one table each.

Labels are uint8: classes are 0 to C-1 and 255 (`IGNORE_LABEL`) is void.
"""

from dataclasses import dataclass

import numpy as np

IGNORE_LABEL = 255

Color = tuple[int, int, int]


@dataclass(frozen=True)
class ClassTable:
    """The classes of one data set, in label order.

    Args:
        names: The name of each class; class `i` is `names[i]`. At most 255.
        palette: One `(red, green, blue)` triple of ints in 0..255 per class.
        void_color: The colour of void.

    Raises:
        ValueError: If names and palette differ in number, or a colour is not a triple of bytes.
    """

    names: tuple[str, ...]
    palette: tuple[Color, ...]
    void_color: Color = (0, 0, 0)

    ignore_label = IGNORE_LABEL

    def __post_init__(self):
        if not 0 < len(self.names) <= IGNORE_LABEL:
            raise ValueError(
                f"A class table has 1 to {IGNORE_LABEL} classes. Received: {len(self.names)} names"
            )
        if len(self.names) != len(self.palette):
            raise ValueError(
                "A class table has one colour per name. "
                f"Received: {len(self.names)} names and {len(self.palette)} colours"
            )
        for color in (*self.palette, self.void_color):
            if len(color) != 3 or not all(0 <= channel <= 255 for channel in color):
                raise ValueError(
                    f"A colour is (red, green, blue), each 0 to 255. Received: {color!r}"
                )

    @property
    def num_classes(self) -> int:
        """The number of classes without void."""
        return len(self.names)

    def color_map(self) -> np.ndarray:
        """Returns the colour of every label value; `color_map()[label]` is a picture.

        Returns:
            A uint8 array of shape `(256, 3)`, RGB. Row 255 is the void colour; rows of unused
            values are 0.
        """
        colors = np.zeros((256, 3), np.uint8)
        colors[: self.num_classes] = self.palette
        colors[IGNORE_LABEL] = self.void_color
        return colors


def spread_bits_color(index: int) -> Color:
    """Returns PASCAL VOC's colour of a label value.

    Bits 0, 1, 2 of the index become the highest bit of red, green, blue; bits 3, 4, 5 the next
    lower one, and so on: 1 is (128, 0, 0), 2 is (0, 128, 0), 15 is (192, 128, 128).

    Args:
        index: The label value, 0 to 255.
    """
    channels = [0, 0, 0]
    for bit in range(8):
        channels[bit % 3] |= ((index >> bit) & 1) << (7 - bit // 3)
    return tuple(channels)


# SegNet's 11 classes and their colours; 11 is void in its label files.
CAMVID = ClassTable(
    names=(
        "sky",
        "building",
        "pole",
        "road",
        "pavement",
        "tree",
        "sign symbol",
        "fence",
        "car",
        "pedestrian",
        "bicyclist",
    ),
    palette=(
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (60, 40, 222),
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
    ),
)

SHAPES = ClassTable(
    names=("background", "disc", "triangle", "square", "star", "ring", "bar"),
    palette=(
        (60, 60, 60),
        (220, 50, 47),
        (38, 139, 210),
        (133, 173, 0),
        (240, 190, 0),
        (211, 54, 190),
        (42, 201, 182),
    ),
    void_color=(255, 255, 255),
)

_VOC2012_NAMES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "dining table",
    "dog",
    "horse",
    "motorbike",
    "person",
    "potted plant",
    "sheep",
    "sofa",
    "train",
    "tv/monitor",
)

VOC2012 = ClassTable(
    names=_VOC2012_NAMES,
    palette=tuple(spread_bits_color(index) for index in range(len(_VOC2012_NAMES))),
    # The colour of the void contours in the official masks follows from the same rule.
    void_color=spread_bits_color(IGNORE_LABEL),
)

# labelId, class name and colour, in the order of the 19 training classes.
_CITYSCAPES_ROWS = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)

CITYSCAPES = ClassTable(
    names=tuple(name for _, name, _ in _CITYSCAPES_ROWS),
    palette=tuple(color for _, _, color in _CITYSCAPES_ROWS),
)

# The labelId of each training class; the test server expects predictions in labelIds.
CITYSCAPES_LABEL_IDS = tuple(label_id for label_id, _, _ in _CITYSCAPES_ROWS)


def cityscapes_train_ids() -> np.ndarray:
    """Returns the training class of every Cityscapes labelId.

    Returns:
        A uint8 array of shape `(256,)`: `cityscapes_train_ids()[label_ids]` are classes 0 to 18,
        and 255 for every other id.
    """
    table = np.full(256, IGNORE_LABEL, np.uint8)
    table[list(CITYSCAPES_LABEL_IDS)] = np.arange(len(CITYSCAPES_LABEL_IDS))
    return table
