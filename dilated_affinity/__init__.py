"""Sharper semantic segmentation by dilated affinity (arXiv 1907.07011).

DeepLabv3+ also learns which of a pixel's neighbours at several dilation rates share its class. This
improves the features during training, and refines the prediction by affinity propagation.
"""

from dilated_affinity.affinity.affinities import (
    affinities_from_targets,
    steep_sigmoid,
    symmetric_logits,
)
from dilated_affinity.affinity.geometry import format_rates, neighbor_offsets, parse_rates
from dilated_affinity.affinity.loss import AffinityLoss
from dilated_affinity.affinity.propagation import AffinityPropagation, propagate
from dilated_affinity.affinity.statistics import AffinityStatistics
from dilated_affinity.affinity.targets import affinity_targets, neighbor_counts
from dilated_affinity.config import Config
from dilated_affinity.datasets.registry import load_dataset, load_source
from dilated_affinity.errors import ConfigError, DataError, DilatedAffinityError, RunError
from dilated_affinity.evaluation.calibration import Calibration, calibrate
from dilated_affinity.evaluation.evaluate import Evaluation, evaluate
from dilated_affinity.evaluation.metrics import (
    AffinityAccuracy,
    BoundaryIoU,
    MeanIoU,
    PixelAccuracy,
)
from dilated_affinity.evaluation.search import search_refinement
from dilated_affinity.export.export import export_model
from dilated_affinity.inference.model import inference_model
from dilated_affinity.inference.predictor import Prediction, Predictor
from dilated_affinity.inference.refinement import Refinement
from dilated_affinity.inference.views import Views
from dilated_affinity.models.deeplab import DeepLabV3Plus
from dilated_affinity.models.training_model import training_model
from dilated_affinity.run_dir.load import load_run
from dilated_affinity.training.input_pipeline import evaluation_dataset, training_dataset
from dilated_affinity.training.losses import SemanticLoss
from dilated_affinity.training.objectives.objective import Objective, TrainedOutput
from dilated_affinity.training.objectives.registry import register_objective
from dilated_affinity.training.tensorboard import TensorBoardMonitor
from dilated_affinity.training.trainer import TrainingResult, train
from dilated_affinity.version import __version__

__all__ = [
    "AffinityAccuracy",
    "AffinityLoss",
    "AffinityPropagation",
    "AffinityStatistics",
    "BoundaryIoU",
    "Calibration",
    "Config",
    "ConfigError",
    "DataError",
    "DeepLabV3Plus",
    "DilatedAffinityError",
    "Evaluation",
    "MeanIoU",
    "Objective",
    "PixelAccuracy",
    "Prediction",
    "Predictor",
    "Refinement",
    "RunError",
    "SemanticLoss",
    "TensorBoardMonitor",
    "TrainedOutput",
    "TrainingResult",
    "Views",
    "__version__",
    "affinities_from_targets",
    "affinity_targets",
    "calibrate",
    "evaluate",
    "evaluation_dataset",
    "export_model",
    "format_rates",
    "inference_model",
    "load_dataset",
    "load_run",
    "load_source",
    "neighbor_counts",
    "neighbor_offsets",
    "parse_rates",
    "propagate",
    "register_objective",
    "search_refinement",
    "steep_sigmoid",
    "symmetric_logits",
    "train",
    "training_dataset",
    "training_model",
]
