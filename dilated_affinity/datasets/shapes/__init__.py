"""Procedural images of textured, overlapping shapes, generated without a download."""

from dilated_affinity.datasets.shapes.shapes_dataset_builder import Shapes

__all__ = ["Shapes"]
