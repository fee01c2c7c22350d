import os
import stat

import pytest

from dilated_affinity.files import write_atomically


def test_writes_bytes_and_makes_folders(tmp_path):
    write_atomically(tmp_path / "a" / "b.txt", b"content")
    assert (tmp_path / "a" / "b.txt").read_bytes() == b"content"


def test_gives_a_writer_a_path_with_the_same_suffixes(tmp_path):
    seen = []

    def write(path):
        seen.append(path.name)
        path.write_text("x")

    write_atomically(tmp_path / "m.weights.h5", write)
    assert seen[0].endswith("m.weights.h5") and seen[0] != "m.weights.h5"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(aside):
        aside.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(OSError, match=f"no file that could be replaced: .*{name}"):
            write_atomically(tmp_path / name, b"content")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]


def test_follows_the_umask(tmp_path):
    previous = os.umask(0o022)
    try:
        write_atomically(tmp_path / "file", b"")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644
