"""Sharper semantic segmentation by dilated affinity (arXiv 1907.07011).

DeepLabv3+ also learns which of a pixel's neighbours at several dilation rates share its class. This
improves the features during training, and refines the prediction by affinity propagation.
"""

import importlib
from typing import TYPE_CHECKING

from dilated_affinity.runtime.quiet import hide_startup_messages, runs_command

if TYPE_CHECKING:
    from dilated_affinity.affinity.affinities import (
        affinities_from_targets,
        steep_sigmoid,
        symmetric_logits,
    )
    from dilated_affinity.affinity.early_stopping import EarlyStop
    from dilated_affinity.affinity.geometry import format_rates, neighbor_offsets, parse_rates
    from dilated_affinity.affinity.loss import AffinityLoss
    from dilated_affinity.affinity.propagation import AffinityPropagation, propagate
    from dilated_affinity.affinity.statistics import AffinityStatistics
    from dilated_affinity.affinity.targets import affinity_targets, neighbor_counts
    from dilated_affinity.baselines.crf import DenseCRF
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
    "DenseCRF",
    "DilatedAffinityError",
    "EarlyStop",
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

_MODULES = {
    "AffinityAccuracy": "evaluation.metrics",
    "AffinityLoss": "affinity.loss",
    "AffinityPropagation": "affinity.propagation",
    "AffinityStatistics": "affinity.statistics",
    "BoundaryIoU": "evaluation.metrics",
    "Calibration": "evaluation.calibration",
    "Config": "config",
    "ConfigError": "errors",
    "DataError": "errors",
    "DeepLabV3Plus": "models.deeplab",
    "DenseCRF": "baselines.crf",
    "DilatedAffinityError": "errors",
    "EarlyStop": "affinity.early_stopping",
    "Evaluation": "evaluation.evaluate",
    "MeanIoU": "evaluation.metrics",
    "Objective": "training.objectives.objective",
    "PixelAccuracy": "evaluation.metrics",
    "Prediction": "inference.predictor",
    "Predictor": "inference.predictor",
    "Refinement": "inference.refinement",
    "RunError": "errors",
    "SemanticLoss": "training.losses",
    "TensorBoardMonitor": "training.tensorboard",
    "TrainedOutput": "training.objectives.objective",
    "TrainingResult": "training.trainer",
    "Views": "inference.views",
    "__version__": "version",
    "affinities_from_targets": "affinity.affinities",
    "affinity_targets": "affinity.targets",
    "calibrate": "evaluation.calibration",
    "evaluate": "evaluation.evaluate",
    "evaluation_dataset": "training.input_pipeline",
    "export_model": "export.export",
    "format_rates": "affinity.geometry",
    "inference_model": "inference.model",
    "load_dataset": "datasets.registry",
    "load_run": "run_dir.load",
    "load_source": "datasets.registry",
    "neighbor_counts": "affinity.targets",
    "neighbor_offsets": "affinity.geometry",
    "parse_rates": "affinity.geometry",
    "propagate": "affinity.propagation",
    "register_objective": "training.objectives.registry",
    "search_refinement": "evaluation.search",
    "steep_sigmoid": "affinity.affinities",
    "symmetric_logits": "affinity.affinities",
    "train": "training.trainer",
    "training_dataset": "training.input_pipeline",
    "training_model": "models.training_model",
}
"""The module of each public name, below the package."""


def __getattr__(name):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})


if runs_command():
    # A command imports what it needs, and can be asked for help, versions or what is missing
    # without TensorFlow.
    hide_startup_messages()
else:
    # All of it, so that Keras knows the classes of saved models from the import on.
    for _name in __all__:
        __getattr__(_name)
