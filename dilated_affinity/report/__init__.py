"""A run as one HTML file: settings, curves, tables and its best and worst images."""

from dilated_affinity.report.measurement import ImageScore, Measurement, measure
from dilated_affinity.report.page import report_page
from dilated_affinity.report.run_files import RunFiles

__all__ = ["ImageScore", "Measurement", "RunFiles", "measure", "report_page"]
