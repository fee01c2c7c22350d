"""A user's own folder of images and masks."""

from dilated_affinity.datasets.folder.checking import FolderReport, check_folder
from dilated_affinity.datasets.folder.folder_dataset_builder import Folder

__all__ = ["Folder", "FolderReport", "check_folder"]
