import numpy as np
import pytest
from helpers.tiny import ListSource

from dilated_affinity.affinity.statistics import AffinityStatistics
from dilated_affinity.datasets.classes import CAMVID
from dilated_affinity.datasets.registry import label_readers
from dilated_affinity.datasets.skipping import SkippingSource
from dilated_affinity.errors import DataError


class Damaged(ListSource):
    """Examples with the class index modulo 3 in all pixels; some cannot be read."""

    def __init__(self, size, bad):
        label = np.ones((4, 5), np.uint8)
        super().__init__(
            [
                {"image": None, "label": index % 3 * label, "id": str(index)}
                for index in range(size)
            ],
            CAMVID,
        )
        self.bad = bad
        self.reads = []

    def __getitem__(self, index):
        self.reads.append(index)
        if index in self.bad:
            raise DataError(f"{index}.png: damaged")
        return super().__getitem__(index)


def test_bad_example_is_replaced_by_the_next():
    source = SkippingSource(Damaged(300, {7, 8, 299}))
    assert [source[index]["id"] for index in (6, 7, 8, 9, 299)] == ["6", "9", "9", "9", "0"]
    assert source.skipped == {str(i): f"{i}.png: damaged" for i in (7, 8, 299)}
    assert len(source) == 300 and source.classes is CAMVID and len(source.ids) == 300


def test_bad_example_is_logged_once(caplog):
    damaged = Damaged(300, {7})
    source = SkippingSource(damaged)
    for _ in range(3):
        source[7]
    assert damaged.reads.count(7) == 1
    assert caplog.text.count("7.png: damaged") == 1


def test_too_many_bad_examples():
    source = SkippingSource(Damaged(200, {1, 2, 50}))
    assert source[1]["id"] == "3"
    with pytest.raises(DataError, match="3 of 200 .* more than 1%. Received last: 50.png"):
        source[50]


def test_statistics_without_bad_examples():
    source = Damaged(200, {4, 5})
    counted = AffinityStatistics.from_labels(label_readers(SkippingSource(source)), ((1, 1),))
    good = [source[index]["label"] for index in range(200) if index not in source.bad]
    assert counted.get_config() == AffinityStatistics.from_labels(good, ((1, 1),)).get_config()
