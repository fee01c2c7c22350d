"""Lists the image files below a folder, and notes other contents."""

import os
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dilated_affinity.datasets.files.images import IMAGE_SUFFIXES
from dilated_affinity.datasets.notes import Notes, abbreviate
from dilated_affinity.errors import DataError

MACOS_FILES = "files that macOS writes beside others (._*), ignored"
HIDDEN_FILES = "hidden files, ignored"
HIDDEN_FOLDERS = "hidden folders, ignored"
OTHER_FOLDERS = "folders of other names, ignored"
LINKED_FOLDERS = "folders that are links, followed"
BROKEN_LINKS = "links that lead nowhere, ignored"
LINKED_AGAIN = "folders reached again through links, ignored"


class Listing(NamedTuple):
    """Contents of a folder and its sub-folders.

    Attributes:
        images: Files with the ending of an image, sorted, including broken links.
        notes: Ignored files, and links that were followed.
        problems: Folders that cannot be read, one line each.
    """

    images: list[Path]
    notes: Notes
    problems: list[str]


def list_images(folder: str | os.PathLike) -> Listing:
    """Finds the image files below a folder.

    Sub-folders that are links are followed. Every folder is read once, so that cyclic links end; of
    several paths to a folder, the one without links is used.

    Args:
        folder: An existing folder, with or without sub-folders.

    Returns:
        A `Listing`.
    """
    found = Listing([], Notes(), [])
    others: list[Path] = []
    seen: set[tuple[int, int]] = set()
    # Folders before links to folders, so that a link never replaces a folder.
    waiting, links = deque([Path(folder)]), deque()
    while waiting or links:
        is_link = not waiting
        current = links.popleft() if is_link else waiting.popleft()
        try:
            status = os.stat(current)
            if (status.st_dev, status.st_ino) in seen:
                found.notes.add(LINKED_AGAIN, current)
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(current), key=lambda entry: entry.name)
        except OSError as error:
            found.problems.append(f"{current}: cannot be read ({error.strerror or error})")
            continue
        if is_link:
            found.notes.add(LINKED_FOLDERS, current)
        for entry in entries:
            path = Path(entry.path)
            if path.is_dir():
                if entry.name.startswith("."):
                    found.notes.add(HIDDEN_FOLDERS, path)
                elif path.is_symlink():
                    links.append(path)
                else:
                    waiting.append(path)
            elif entry.name.startswith("._"):
                found.notes.add(MACOS_FILES, path)
            elif entry.name.startswith("."):
                found.notes.add(HIDDEN_FILES, path)
            elif path.suffix.lower() not in IMAGE_SUFFIXES:
                if is_broken_link(path):
                    found.notes.add(BROKEN_LINKS, path)
                else:
                    others.append(path)
            else:
                # Broken links to images included: reading them raises the error.
                found.images.append(path)
    note_files_of_other_kinds(others, found.notes)
    found.images.sort()
    return found


def find_images(folder: str | os.PathLike) -> Listing:
    """Does the same as `list_images` for a folder that must contain images.

    Raises:
        DataError: If the folder is missing or contains no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of images. Received: no such folder")
    listing = list_images(folder)
    if not listing.images:
        passed = "".join(f"; {line}" for line in listing.notes.lines())
        raise DataError(
            f"{folder}: expected image files ({', '.join(IMAGE_SUFFIXES)}). Received: none{passed}"
        )
    return listing


def is_broken_link(path: Path) -> bool:
    """Returns whether a path is a link that leads nowhere."""
    return path.is_symlink() and not path.exists()


def note_files_of_other_kinds(paths: Sequence[Path], notes: Notes) -> None:
    """Notes files without the ending of an image, with the number of each ending."""
    endings = Counter(path.suffix.lower() for path in paths).most_common()
    counts = abbreviate((f"{count} {ending or 'without ending'}" for ending, count in endings), 5)
    for path in sorted(paths):
        notes.add(f"files without the ending of an image, ignored ({counts})", path)
