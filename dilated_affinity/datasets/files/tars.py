"""Reads tar archives without unpacking them, and refuses paths that lead out of them."""

import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

from dilated_affinity.datasets.files.images import MAX_FILE_BYTES
from dilated_affinity.errors import DataError


def is_plain_file(member: tarfile.TarInfo, archive: str) -> bool:
    """Returns whether a member of an archive is a regular file, and checks its path.

    Links are not regular files; they are never followed.

    Args:
        member: The member.
        archive: Name of the archive in errors.

    Raises:
        DataError: If the path of the member is absolute or contains `..`.
    """
    path = PurePosixPath(member.name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise DataError(
            f"{archive}: the paths of members must stay within the archive. "
            f"Received: {member.name!r}"
        )
    return member.isfile()


def read_member(tar: tarfile.TarFile, member: tarfile.TarInfo, archive: str) -> bytes:
    """Returns the contents of a file in an archive.

    Args:
        tar: The opened archive.
        member: A member for which `is_plain_file` returned True.
        archive: Name of the archive in errors.

    Raises:
        DataError: If its stated size exceeds `MAX_FILE_BYTES`.
    """
    if member.size > MAX_FILE_BYTES:
        raise DataError(
            f"{archive}: {member.name}: files may have {MAX_FILE_BYTES} bytes at most. "
            f"Received: {member.size}"
        )
    return tar.extractfile(member).read()


@contextmanager
def reading_archive(path: str) -> Iterator[None]:
    """Context that converts errors of `tarfile` for a missing or damaged archive to `DataError`."""
    try:
        yield
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(
            f"{path}: the archive cannot be read, or is damaged or cut off. Received: {text}"
        ) from error
