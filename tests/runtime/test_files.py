import os
import stat
import subprocess
import sys

import pytest
from helpers.processes import environment

from dilated_affinity.runtime import files
from dilated_affinity.runtime.files import write_atomically


def test_write_atomically_creates_folders(tmp_path):
    write_atomically(tmp_path / "a" / "b.txt", b"content")
    assert (tmp_path / "a" / "b.txt").read_bytes() == b"content"


def test_write_atomically_with_function(tmp_path):
    seen = []

    def write(path):
        seen.append(path.name)
        path.write_text("x")

    write_atomically(tmp_path / "m.weights.h5", write)
    assert seen[0].endswith("m.weights.h5") and seen[0] != "m.weights.h5"


def test_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(aside):
        aside.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_folders_and_devices_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(OSError, match=f"not a regular file and is not replaced: .*{name}"):
            write_atomically(tmp_path / name, b"content")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]


def test_written_file_follows_umask(tmp_path):
    previous = os.umask(0o022)
    try:
        write_atomically(tmp_path / "file", b"")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


def test_write_atomically_on_windows(tmp_path, monkeypatch):
    real = os.open

    def as_on_windows(path, flags, *more, **options):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, flags, *more, **options)

    monkeypatch.setattr(os, "open", as_on_windows)
    monkeypatch.setattr(files, "_FOLDERS_OPEN", False)
    write_atomically(tmp_path / "a.txt", b"content")
    assert (tmp_path / "a.txt").read_bytes() == b"content"


WITHOUT_FCNTL = """
import sys
sys.modules["fcntl"] = None  # importing it raises ImportError, as on Windows
import os
del os.O_NONBLOCK
import numpy as np
from PIL import Image
import dilated_affinity as da
from dilated_affinity.datasets.classes import CAMVID
from dilated_affinity.inference.files import predict_files
from helpers.tiny import tiny_config

folder = sys.argv[1]
model = da.DeepLabV3Plus(11, None, "tiny", weights=None, separable=False, filters=8)
image = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
Image.fromarray(image).save(f"{folder}/a.png")
done = predict_files(da.Predictor(model, 0), CAMVID, f"{folder}/a.png", f"{folder}/predictions")
labels = da.inference_model(model, 0)(image[np.newaxis])["labels"]
assert np.array_equal(np.asarray(Image.open(done.written[0])), labels[0])
try:
    da.train(tiny_config(folder), f"{folder}/run")
except da.RunError as error:
    print(error)
"""


def test_package_without_fcntl(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_FCNTL, str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    expected = f"{tmp_path / 'run'}: cannot train here: this system has no locks that end with "
    assert done.stdout.startswith(expected)
