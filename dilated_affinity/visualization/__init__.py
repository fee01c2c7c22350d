"""Pictures, as uint8 RGB arrays, and Matplotlib figures, of data, predictions and whole runs."""

from dilated_affinity.visualization.figures import (
    affinity_accuracy_figure,
    class_iou_figure,
    confusion_matrix_figure,
    count_frequency_figure,
    figure_array,
    learning_curves_figure,
    pixel_affinity_figure,
    refinement_search_figure,
)
from dilated_affinity.visualization.pictures import (
    REFINEMENT_ENTRIES,
    affinity_picture,
    agreeing_neighbors,
    class_entries,
    color_counts,
    colorize,
    comparison,
    error_map,
    overlay,
    refinement_map,
    side_by_side,
    with_legend,
)

__all__ = [
    "REFINEMENT_ENTRIES",
    "affinity_accuracy_figure",
    "affinity_picture",
    "agreeing_neighbors",
    "class_entries",
    "class_iou_figure",
    "color_counts",
    "colorize",
    "comparison",
    "confusion_matrix_figure",
    "count_frequency_figure",
    "error_map",
    "figure_array",
    "learning_curves_figure",
    "overlay",
    "pixel_affinity_figure",
    "refinement_map",
    "refinement_search_figure",
    "side_by_side",
    "with_legend",
]
