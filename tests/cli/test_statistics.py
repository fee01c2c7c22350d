"""Counting masks from the command line: one process that works and one that is refused."""

import io
import json
import tarfile

import numpy as np
from helpers import reference
from helpers.tiny_run import command
from PIL import Image


def test_masks_in_a_compressed_archive_are_counted(tmp_path):
    maps = [reference.random_labels(seed, (11 + seed, 14)) for seed in range(4)]
    archive = tmp_path / "masks.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for index, labels in enumerate(maps):
            data = io.BytesIO()
            Image.fromarray(labels).save(data, "PNG")
            member = tarfile.TarInfo(f"masks/{index}.png")
            member.size = data.tell()
            data.seek(0)
            tar.addfile(member, data)
    result = command(
        "statistics_main",
        f"--masks={archive}",
        "--num_classes=4",
        "--rates=2,(1,3)",
        f"--output={tmp_path / 'out' / 'statistics.json'}",
        f"--plot={tmp_path / 'out' / 'statistics.png'}",
    )
    assert result.returncode == 0, result.stderr
    assert "4 label maps" in result.stdout and "(3,1)" in result.stdout
    written = json.loads((tmp_path / "out" / "statistics.json").read_text())
    pixels, pairs = reference.count_statistics(maps, written["rates"])
    np.testing.assert_array_equal(written["pixels"], pixels)
    np.testing.assert_array_equal(written["pairs"], pairs)
    with Image.open(tmp_path / "out" / "statistics.png") as plot:
        assert min(plot.size) > 300
    assert sorted(path.name for path in tmp_path.iterdir()) == ["masks.tgz", "out"]


def test_masks_and_a_data_set_at_once_are_a_usage_error(tmp_path):
    result = command("statistics_main", f"--masks={tmp_path}", "--dataset=camvid")
    assert result.returncode == 2, result.stderr
    assert "statistics_main: --masks counts masks" in result.stderr and result.stdout == ""
