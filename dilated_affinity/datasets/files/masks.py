"""Label masks without images, in a folder or a tar archive, for statistics."""

import functools
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from dilated_affinity.datasets.classes import IGNORE_LABEL
from dilated_affinity.datasets.files.images import (
    IMAGE_SUFFIXES,
    decode_label,
    read_bytes,
)
from dilated_affinity.datasets.files.listing import HIDDEN_FILES, MACOS_FILES, list_images
from dilated_affinity.datasets.files.pairs import raise_first
from dilated_affinity.datasets.files.tars import (
    is_plain_file,
    read_member,
    reading_archive,
)
from dilated_affinity.datasets.notes import Notes, log_once
from dilated_affinity.errors import DataError


class MaskFiles:
    """Iterable of masks for `AffinityStatistics.from_labels`.

    It yields functions without arguments, each of which decodes one mask to its stored values,
    uint8 (H, W) (see `decode_label`). A tar archive is read once, as a stream, without unpacking
    it; only the masks in use are in memory.

    Args:
        path: A folder, searched with its sub-folders, or a `.tar`, `.tar.gz` or `.tgz` file. Files
            without the ending of an image, hidden files and links in an archive are ignored, with a
            log message; see `list_images`.
        num_classes: Refuse masks with values other than 0 to `num_classes - 1` and the void
            label. Not checked if None.
        ignore_label: The void label. Defaults to 255.

    Attributes:
        count: The number of masks; None for a compressed archive that has not been read yet.

    Raises:
        DataError: If there is no such folder or file, or no mask in it. Iterating raises it if an
            archive is damaged or has a member whose path leads out of it; a function, if a mask is
            damaged, is not a label or has other values.

    Example:

    ```python
    masks = MaskFiles("SegmentationClassAug.tar", num_classes=21)
    statistics = AffinityStatistics.from_labels(masks, parse_rates("8,16"))
    ```
    """

    def __init__(self, path: str | os.PathLike, num_classes=None, ignore_label=IGNORE_LABEL):
        self._path = Path(path).expanduser()
        self._num_classes = num_classes
        self._ignore_label = ignore_label
        self._files = None
        if self._path.is_dir():
            listing = list_images(self._path)
            raise_first(listing.problems)
            log_once(listing.notes.lines())
            self._files = listing.images
            self.count = len(self._files)
        elif self._path.is_file():
            self.count = _members_if_uncompressed(str(self._path))
        else:
            raise DataError(
                f"{self._path}: expected a folder or a tar archive of masks. "
                "Received: no such file or folder"
            )
        if self.count == 0:
            raise self._none_found()

    def __iter__(self) -> Iterator[Callable[[], np.ndarray]]:
        if self._files is not None:
            for file in self._files:
                yield functools.partial(self._read, file)
            return
        count, notes = 0, Notes()
        for name, data in _stream(str(self._path), notes):
            count += 1
            yield functools.partial(self._decode, data, f"{self._path}: {name}")
        self.count = count
        log_once(f"{self._path}: {line}" for line in notes.lines())
        if not count:
            raise self._none_found()

    def _read(self, file: Path) -> np.ndarray:
        return self._decode(read_bytes(file), str(file))

    def _decode(self, data: bytes, name: str) -> np.ndarray:
        values = decode_label(data, name)
        if self._num_classes is not None:
            wrong = (values >= self._num_classes) & (values != self._ignore_label)
            if wrong.any():
                shown = ", ".join(map(str, np.unique(values[wrong])[:10]))
                raise DataError(
                    f"{name}: label values must be 0 to {self._num_classes - 1} or "
                    f"{self._ignore_label}. Received: the values {shown}"
                )
        return values

    def _none_found(self) -> DataError:
        return DataError(
            f"{self._path}: expected masks ({', '.join(IMAGE_SUFFIXES)}). Received: none"
        )


def _is_mask(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _members_if_uncompressed(path: str) -> int | None:
    """The number of masks in an archive, or None if it is compressed."""
    try:
        with tarfile.open(path, "r:") as tar:
            return sum(is_plain_file(member, path) and _is_mask(member.name) for member in tar)
    except (OSError, EOFError, tarfile.TarError):
        # Compressed, or damaged, which raises an error when it is read.
        return None


def _stream(path: str, notes: Notes) -> Iterator[tuple[str, bytes]]:
    """Yields names and contents of the masks in an archive in order; notes other members."""
    with reading_archive(path), tarfile.open(path, "r|*") as tar:
        while (member := tar.next()) is not None:
            # `tarfile` keeps every member that it has read.
            tar.members.clear()
            if is_plain_file(member, path) and _is_mask(member.name):
                yield member.name, read_member(tar, member, path)
            elif not member.isdir():
                notes.add(_other_kind(member), member.name)


def _other_kind(member: tarfile.TarInfo) -> str:
    name = PurePosixPath(member.name).name
    if not member.isfile():
        return "links, pipes and devices, ignored"
    if name.startswith("."):
        return MACOS_FILES if name.startswith("._") else HIDDEN_FILES
    return "files without the ending of an image, ignored"
