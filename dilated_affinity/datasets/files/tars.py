"""Reading tar archives without unpacking them, refusing what would be unpacked elsewhere."""

import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

from dilated_affinity.datasets.files.images import MAX_FILE_BYTES
from dilated_affinity.errors import DataError


def is_plain_file(member: tarfile.TarInfo, archive: str) -> bool:
    """Tells whether a member of an archive is a file, and refuses paths that lead out of it.

    Links are no files: they are passed over and never followed.

    Args:
        member: The member.
        archive: What to call the archive in errors.

    Raises:
        DataError: The path of the member is absolute or has a part `..`.
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
        member: The member, for which `is_plain_file` holds.
        archive: What to call the archive in errors.

    Raises:
        DataError: It says that it has more than `MAX_FILE_BYTES`, as an archive of a few bytes can.
    """
    if member.size > MAX_FILE_BYTES:
        raise DataError(
            f"{archive}: {member.name}: files may have {MAX_FILE_BYTES} bytes at most. "
            f"Received: {member.size}"
        )
    return tar.extractfile(member).read()


@contextmanager
def reading_archive(path: str) -> Iterator[None]:
    """Turns what `tarfile` raises on a missing or damaged archive into a `DataError`."""
    try:
        yield
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(
            f"{path}: the archive cannot be read, or is damaged or cut off. Received: {text}"
        ) from error
