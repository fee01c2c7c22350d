"""The image files below a folder, and what else lies there."""

import os
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dilated_affinity.datasets.files.images import IMAGE_SUFFIXES
from dilated_affinity.datasets.notes import Notes, shown

MACOS_FILES = "files that macOS writes beside others (._*), passed over"
HIDDEN_FILES = "hidden files, passed over"
HIDDEN_FOLDERS = "hidden folders, passed over"
LINKED_FOLDERS = "folders that are links, followed"
LINKED_AGAIN = "folders that links lead to once more, passed over"


class Listing(NamedTuple):
    """What lies below a folder.

    Attributes:
        images: What is named as images are, by the ending, sorted; links to nothing too.
        notes: What was passed over, and which links were followed.
        problems: Folders that cannot be read, one line each.
    """

    images: list[Path]
    notes: Notes
    problems: list[str]


def list_images(folder: str | os.PathLike) -> Listing:
    """Finds the image files below a folder.

    Sub-folders that are links are followed. Every folder is read once, whatever leads to it, so
    that links in a circle have an end; where several paths lead to one, that without links counts.

    Args:
        folder: A folder that exists, with or without sub-folders.

    Returns:
        A `Listing`.
    """
    found = Listing([], Notes(), [])
    others: list[Path] = []
    seen: set[tuple[int, int]] = set()
    # Folders before links to folders, so that a link never takes a folder's place.
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
                others.append(path)
            else:
                # A link to nothing too: reading it says so.
                found.images.append(path)
    note_files_of_other_kinds(others, found.notes)
    found.images.sort()
    return found


def note_files_of_other_kinds(paths: Sequence[Path], notes: Notes) -> None:
    """Notes files whose names do not end as those of images do, with how many end in what."""
    endings = Counter(path.suffix.lower() for path in paths).most_common()
    counts = shown((f"{count} {ending or 'without ending'}" for ending, count in endings), 5)
    for path in sorted(paths):
        notes.add(f"files that are no images by their ending, passed over ({counts})", path)
