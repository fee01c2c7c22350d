"""Writing files so that a reader never sees half of one, and keeping a folder to one process."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None

_FOLDERS_OPEN = os.name != "nt"
"""Whether a folder can be opened, to be flushed; Windows keeps names safe by itself."""

_ASIDE = ".writing-"


def write_atomically(path: str | os.PathLike, content: bytes | Callable[[Path], None]):
    """Writes a file aside, flushes it to disk and renames it into place.

    Whenever the process or the machine stops, `path` holds the earlier file or the new one, whole.
    A link to a file is replaced, not followed.

    Args:
        path: The file to create or replace; its folder is made if missing.
        content: The bytes, or a function that writes a file at the path it is given (which ends
            in the same suffixes as `path`).

    Raises:
        OSError: It cannot be written, or what is at `path` is no file but a folder or a device.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        # Renaming would put a file in the place of a device such as /dev/null.
        raise OSError(errno.EINVAL, "is no file that could be replaced", str(path))
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
        # mkstemp makes files that only their owner may read.
        umask = os.umask(0)
        os.umask(umask)
        aside.chmod(0o666 & ~umask)
        os.replace(aside, path)
        # The new name is on disk only when its folder is.
        if _FOLDERS_OPEN:
            _flush(path.parent, os.O_RDONLY)
    finally:
        aside.unlink(missing_ok=True)


def remove_unfinished(folder: str | os.PathLike):
    """Removes what `write_atomically` left in a folder when its process was killed.

    Only for a folder in which no other process writes.
    """
    for path in Path(folder).glob(f"{_ASIDE}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextlib.contextmanager
def exclusive_lock(path: str | os.PathLike):
    """Holds the lock of a file, made if missing, that one process at a time can have.

    The kernel gives it back however the process ends, `kill -9` included, so that none is ever
    left behind.

    Raises:
        BlockingIOError: Another process holds it.
        OSError: The system has no such locks.
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
