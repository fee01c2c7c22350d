"""Atomic writing of files, and a lock file for one process at a time."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

_FOLDERS_OPEN = os.name != "nt"
"""True if a folder can be opened to flush it, which is not needed on Windows."""

_ASIDE = ".writing-"


def write_atomically(path: str | os.PathLike, content: bytes | Callable[[Path], None]):
    """Writes a temporary file, flushes it to disk and renames it to `path`.

    Whenever the process or the machine stops, `path` is either the old file or the complete new
    one. A link to a file is replaced, not followed.

    Args:
        path: The file to create or replace; its folder is created if missing.
        content: The bytes, or a function that writes a file at a given path with the same suffixes
            as `path`.

    Raises:
        OSError: If it cannot be written, or `path` is a folder or a device.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        # Renaming would replace a device such as /dev/null.
        raise OSError(errno.EINVAL, "is not a regular file and is not replaced", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(prefix=_ASIDE, suffix=path.name, dir=path.parent)
    os.close(handle)
    aside = Path(aside)
    try:
        if isinstance(content, bytes):
            aside.write_bytes(content)
        else:
            content(aside)
        _flush(aside)
        # mkstemp creates files that only their owner may read.
        umask = os.umask(0)
        os.umask(umask)
        aside.chmod(0o666 & ~umask)
        os.replace(aside, path)
        # The new name is on disk only after its folder has been flushed.
        if _FOLDERS_OPEN:
            _flush(path.parent, os.O_RDONLY)
    finally:
        aside.unlink(missing_ok=True)


def remove_unfinished(folder: str | os.PathLike):
    """Removes temporary files of `write_atomically` that a killed process left in a folder.

    No other process may be writing in the folder.
    """
    for path in Path(folder).glob(f"{_ASIDE}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextlib.contextmanager
def exclusive_lock(path: str | os.PathLike):
    """Context that holds an exclusive lock on a file, which is created if missing.

    The kernel releases the lock however the process ends, including `kill -9`.

    Raises:
        BlockingIOError: If another process holds it.
        OSError: If the system does not support such locks.
    """
    if fcntl is None:
        raise OSError(
            errno.ENOTSUP, "this system has no locks that end with their process (fcntl)", str(path)
        )
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _flush(path, flags=os.O_RDWR):
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
