"""Writing files so that a reader never sees half of one."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: str | os.PathLike, content: bytes | Callable[[Path], None]):
    """Writes a file aside, flushes it to disk and renames it into place.

    Args:
        path: The file to create or replace; its folder is made if missing.
        content: The bytes, or a function that writes a file at the path it is given (which ends
            in the same suffixes as `path`).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(prefix=".writing-", suffix=path.name, dir=path.parent)
    os.close(handle)
    aside = Path(aside)
    try:
        if isinstance(content, bytes):
            aside.write_bytes(content)
        else:
            content(aside)
        with open(aside, "rb") as written:
            os.fsync(written.fileno())
        # mkstemp makes files that only their owner may read.
        umask = os.umask(0)
        os.umask(umask)
        aside.chmod(0o666 & ~umask)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
