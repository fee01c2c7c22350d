"""The two official archives of PASCAL VOC 2012 and SBD, read without unpacking them to disk."""

import os
import tarfile
from collections.abc import Iterator

from dilated_affinity.datasets.files.tars import (
    is_plain_file,
    read_member,
    reading_archive,
)
from dilated_affinity.datasets.voc2012_aug.id_lists import derive_splits, parse_ids
from dilated_affinity.errors import DataError
from dilated_affinity.runtime.progress import open_with_progress

VOC_ARCHIVE = "VOCtrainval_11-May-2012.tar"
SBD_ARCHIVE = "benchmark.tgz"

_VOC = "VOCdevkit/VOC2012"
_SBD = "benchmark_RELEASE/dataset"


class VocArchives:
    """Images and masks by id, and the ids of each split, from the two archives.

    Args:
        voc_path: `VOCtrainval_11-May-2012.tar`. It is not compressed, so its members are read on
            demand.
        sbd_path: `benchmark.tgz`. It is read once, and its masks are kept in memory.

    Attributes:
        splits: The ids of each split, see `derive_splits`.

    Raises:
        DataError: If an archive is damaged or is another one, the path of a member leads out of it,
            or the lists contain ids of missing files.
    """

    def __init__(self, voc_path: str | os.PathLike, sbd_path: str | os.PathLike):
        self._path = os.fspath(voc_path)
        with reading_archive(self._path):
            self._tar = tarfile.open(self._path, "r:")
            self._members = {
                member.name: member for member in self._tar if is_plain_file(member, self._path)
            }
        self._sbd = dict(_sbd_files(os.fspath(sbd_path)))
        lists = {
            split: self._read(f"{_VOC}/ImageSets/Segmentation/{split}.txt")
            for split in ("train", "val", "trainval")
        }
        sbd_ids: set[str] = set()
        for split in ("train", "val"):
            name = f"{_SBD}/{split}.txt"
            if name not in self._sbd:
                raise DataError(f"{sbd_path}: expected the member {name}. Received: no such member")
            sbd_ids.update(parse_ids(self._sbd[name], f"{sbd_path}: {name}"))
        official = {
            split: parse_ids(data, f"{voc_path}: {split}.txt") for split, data in lists.items()
        }
        self.splits = derive_splits(official, sbd_ids, self._path)

    def image(self, example_id: str) -> tuple[bytes, str]:
        """Returns the JPEG file of an example, and its name in errors."""
        name = f"{_VOC}/JPEGImages/{example_id}.jpg"
        return self._read(name), f"{self._path}: {name}"

    def mask(self, example_id: str) -> tuple[bytes, str]:
        """Returns the mask of an example, VOC's PNG or SBD's MATLAB file, and its name."""
        official = f"{_VOC}/SegmentationClass/{example_id}.png"
        name = f"{_SBD}/cls/{example_id}.mat"
        if official not in self._members and name in self._sbd:
            return self._sbd[name], name
        return self._read(official), f"{self._path}: {official}"

    def _read(self, name: str) -> bytes:
        if name not in self._members:
            raise DataError(f"{self._path}: expected the member {name}. Received: no such member")
        with reading_archive(self._path):
            return read_member(self._tar, self._members[name], self._path)


def _sbd_files(path: str) -> Iterator[tuple[str, bytes]]:
    """Reads the lists and the class masks; the images are those of VOC and are ignored."""
    with (
        reading_archive(path),
        open_with_progress(path) as file,
        tarfile.open(fileobj=file, mode="r|gz") as tar,
    ):
        for member in tar:
            if is_plain_file(member, path) and (
                member.name in (f"{_SBD}/train.txt", f"{_SBD}/val.txt")
                or member.name.startswith(f"{_SBD}/cls/")
            ):
                yield member.name, read_member(tar, member, path)
