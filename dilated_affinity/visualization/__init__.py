"""Pictures (uint8 RGB arrays) and Matplotlib figures of data, predictions and runs."""

from dilated_affinity.visualization.calibration_figure import calibration_figure
from dilated_affinity.visualization.figures import (
    affinity_accuracy_figure,
    class_iou_figure,
    confusion_matrix_figure,
    count_frequency_figure,
    figure_array,
    learning_curves_figure,
    refinement_search_figure,
)
from dilated_affinity.visualization.pictures import (
    ERROR_ENTRIES,
    REFINEMENT_ENTRIES,
    affinity_picture,
    agreeing_neighbors,
    class_entries,
    color_counts,
    colorize,
    comparison,
    count_entries,
    error_map,
    error_picture,
    overlay,
    overlay_entries,
    refinement_map,
    side_by_side,
    with_legend,
)
from dilated_affinity.visualization.pixel_affinity_figure import (
    explore_affinity,
    pixel_affinity_figure,
)

__all__ = [
    "ERROR_ENTRIES",
    "REFINEMENT_ENTRIES",
    "affinity_accuracy_figure",
    "affinity_picture",
    "agreeing_neighbors",
    "calibration_figure",
    "class_entries",
    "class_iou_figure",
    "color_counts",
    "colorize",
    "comparison",
    "confusion_matrix_figure",
    "count_entries",
    "count_frequency_figure",
    "error_map",
    "explore_affinity",
    "error_picture",
    "figure_array",
    "learning_curves_figure",
    "overlay",
    "overlay_entries",
    "pixel_affinity_figure",
    "refinement_map",
    "refinement_search_figure",
    "side_by_side",
    "with_legend",
]
