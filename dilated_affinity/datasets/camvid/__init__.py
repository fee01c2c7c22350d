"""CamVid in the folder layout of the SegNet tutorial."""

from dilated_affinity.datasets.camvid.camvid_dataset_builder import Camvid

__all__ = ["Camvid"]
