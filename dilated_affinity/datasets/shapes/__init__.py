"""Procedural images of textured, overlapping shapes; made on the spot, no download."""

from dilated_affinity.datasets.shapes.shapes_dataset_builder import Shapes

__all__ = ["Shapes"]
