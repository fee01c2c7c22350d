"""Numbers of the pages are those of recorded benchmarks."""

import json
import re

from helpers.commands import ROOT


def recorded(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def text_of(page):
    """The page with single spaces, so that lines may break anywhere."""
    return re.sub(r"\s+", " ", (ROOT / "docs" / page).read_text(encoding="utf-8"))


def gigabytes(plan):
    return f"{(plan['arguments'] + plan['temporary']) / 1e9:.1f}"


def test_memory_of_steps():
    lines = (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8").splitlines()
    start = lines.index("| backbone | crop | batch | mixed precision | GB |") + 2
    rows = [tuple(map(str.strip, line.strip("|").split("|"))) for line in lines[start:] if line]
    files = "step_memory", "step_memory_resnet101"
    steps = [each for name in files for each in recorded(name)["steps"]]
    expected = []
    for each in steps:
        backbone, crop, batch, precision = f"{each['step']}:none".split(":")[:4]
        expected.append((backbone, crop, batch, precision, gigabytes(each["with"])))
    assert len(expected) > 4
    assert sorted(rows[: len(expected)]) == sorted(expected)
    (compared,) = (each for each in steps if "without" in each)
    assert (
        f"the same step of {compared['step'].split(':')[0]} at crop 321 without affinity "
        f"{gigabytes(compared['without'])} GB"
    ) in text_of("distributed.md")


def test_compilations_of_many_sizes():
    ways = recorded("image_sizes")["ways"]
    numbers = [
        f"{ways[way]['compilations']} compilations and {ways[way]['seconds']:.0f} s"
        for way in ("padded", "each_size", "each_operation")
    ]
    assert (
        f"12 images of 12 sizes take {numbers[0]}; compiled for each size {numbers[1]}; "
        f"operation by operation {numbers[2]}"
    ) in text_of("performance.md")
