"""Every setting of a run: one dataclass field each, with its meaning and its source.

Command-line flags are generated from these fields (`cli/config_flags.py`), and a run's
`config.json` is this dataclass, so neither can drift from what the code reads. This module does not
import TensorFlow.
"""

import dataclasses
import json
import math
import os
import re
import warnings
from pathlib import Path

from dilated_affinity.affinity.geometry import check_rates, format_rates, parse_rates
from dilated_affinity.errors import ConfigError, DataError, did_you_mean
from dilated_affinity.inference.refiners import METHODS, renamed_refine
from dilated_affinity.inference.views import Views, parse_scales
from dilated_affinity.recipes import RECIPES
from dilated_affinity.runtime.files import write_atomically


def _setting(default, text, source, *, group, choices=None, low=None, high=None, resumable=False):
    """A field; `resumable` marks settings that a resumed run may change."""
    metadata = {
        "help": text,
        "source": source,
        "group": group,
        "choices": choices,
        "low": low,
        "high": high,
        "resumable": resumable,
    }
    return dataclasses.field(default=default, metadata=metadata)


def _crf(default, text, low):
    """A field of the dense CRF: `crf_` and the name of a field of `baselines.crf.DenseCRF`."""
    source = "kazuto1011/deeplab-pytorch, for VOC"
    return _setting(default, text, source, group="refinement", low=low, resumable=True)


_DEEPLAB = "tensorflow/models research/deeplab"

_TRAINED_THROUGH = ("self_weight", "mu", "affinity_threshold", "symmetric_affinity")
"""Settings of refinement that change weights where `train_propagation` trains through it."""

OBJECTIVES = {"none": False, "affinity": True, "aaf": False, "boundary": False}
"""Names of the training objectives beside the classes, and whether they predict affinity.

They are defined in `dilated_affinity.training.objectives`; `register_objective` adds to them."""

_RENAMED = {
    "iterations": "train_steps",
    "flip": "random_flip",
    "structure": "objective",
    "postprocess": "refine",
    "refinement": "refine",
}
"""Settings of version 0.1.0 by their names of then."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of training, evaluation and prediction.

    Build one with `Config.for_dataset(name, **overrides)`, which starts from the data set's
    recipe. Every field is checked when it is built.

    Raises:
        ConfigError: For a value out of range, or an invalid combination of values.
    """

    dataset: str = _setting("shapes", "Name of the data set.", "ours", group="data")
    data_dir: str = _setting(
        "data",
        "Folder of the data set, or one that holds it under its name (see data/*/README.md).",
        "ours",
        group="data",
        resumable=True,
    )
    train_split: str = _setting("train", "Split to train on.", "ours", group="data")
    val_split: str = _setting("val", "Split to validate and evaluate on.", "ours", group="data")

    backbone: str = _setting("resnet101", "Name of the backbone.", "paper 4.1", group="model")
    backbone_weights: str = _setting(
        "imagenet",
        "Initial weights of the backbone: 'imagenet' (downloaded by Keras), 'none', a .weights.h5 "
        "file of the keras.applications model without classifier, or, for a beta ResNet, the "
        "prefix of a TensorFlow 1 checkpoint.",
        "paper 4.1",
        group="model",
        resumable=True,
    )
    initial_model: str = _setting(
        "",
        "Start from these weights: the folder of a run (its best model), or a .keras or "
        ".weights.h5 file. Heads for other classes or rates are left out, and logged.",
        "ours",
        group="model",
        resumable=True,
    )
    rates: str = _setting(
        "8,(12,24),16",
        "Dilation rates R; a bracketed pair means itself and its transpose. 'none' trains plain "
        "DeepLabv3+.",
        "paper 4.3",
        group="model",
    )
    output_stride: int = _setting(
        16, "Output stride in training.", "paper 4.1", group="model", choices=(8, 16, 32)
    )
    eval_output_stride: int = _setting(
        8,
        "Output stride in evaluation and prediction.",
        "paper 4.1",
        group="model",
        choices=(8, 16, 32),
        resumable=True,
    )
    separable: bool = _setting(
        True, "Depthwise separable 3x3 convolutions in ASPP and decoder.", _DEEPLAB, group="model"
    )
    multi_grid: str = _setting(
        "none",
        "Factors on the dilation of the units of the backbone's last stage, such as 1,2,4.",
        f"{_DEEPLAB}, whose default is 1,1,1; the DeepLabv3 paper has 1,2,4",
        group="model",
    )
    atrous_rates: str = _setting(
        "6,12,18",
        "Dilations of the ASPP at output stride 16; others follow. Smaller ones for small images.",
        _DEEPLAB,
        group="model",
    )
    filters: int = _setting(256, "Channels of ASPP and decoder.", "paper 3.2", group="model", low=1)
    dropout: float = _setting(
        0.1, "Dropout rate after the ASPP.", _DEEPLAB, group="model", low=0, high=0.99
    )
    batch_norm: str = _setting(
        "sync",
        "Statistics of batch norm: over all replicas, over one, or the backbone's stored ones. "
        "Only frozen allows batches of one image, for which it also freezes batch norm of ASPP and "
        "decoder.",
        "paper 4.1",
        group="model",
        choices=("sync", "local", "frozen"),
    )
    batch_norm_momentum: float = _setting(
        0.95,
        "Momentum of batch norm's moving statistics.",
        f"{_DEEPLAB}, for ResNets",
        group="model",
        low=0,
        high=1,
    )
    head_batch_norm_momentum: float = _setting(
        0.0,
        "Momentum for ASPP and decoder; 0 uses batch_norm_momentum. 0.9997 is for long schedules: "
        "after 2,000 steps 55 % of the statistics are still their initial values.",
        "ours; tensorflow/models research/deeplab has 0.9997, as have the paper's recipes",
        group="model",
        low=0,
        high=0.99999,
    )

    objective: str = _setting(
        "affinity",
        "Training objective beside the classes: affinity, the paper's method; aaf (adaptive "
        "affinity fields) or boundary (larger weights near boundaries), which the paper compares "
        "with; or none.",
        "paper 4.3",
        group="loss",
        choices=OBJECTIVES,
    )
    weighting: str = _setting(
        "sqrt_neighbor",
        "Weighting of the affinity loss, a row of Table 1.",
        "paper 3.2",
        group="loss",
        choices=("none", "signal", "neighbor", "sqrt_neighbor"),
    )
    gamma: float = _setting(
        2.0, "Focusing parameter of the focal loss.", "paper 3.2", group="loss", low=0
    )
    beta: float = _setting(
        1.2,
        "Weight of the affinity loss in the total: of its mean over the 8|R| neighbours of a "
        "pixel, or, with affinity_reduction=sum, of its sum, which is 8|R| times as large.",
        "paper 4.3",
        group="loss",
        low=0,
    )
    affinity_reduction: str = _setting(
        "mean",
        "Whether the affinity loss of a pixel is the mean or the sum over its 8|R| neighbours. At "
        "the same beta the sum is 8|R| times as strong.",
        "ours; Eq. 5 prints sums, but only the mean fits the paper's betas, which do not fall with "
        "more rates",
        group="loss",
        choices=("mean", "sum"),
    )
    train_propagation: int = _setting(
        0,
        "Iterations of propagation at the decoder's stride through which to train, with a second "
        "semantic loss on the refined probabilities. Needs rates that are multiples of 4.",
        "ours; the paper propagates after training only",
        group="loss",
        low=0,
    )
    train_propagation_weight: float = _setting(
        1.0, "Weight of that second loss in the total.", "ours", group="loss", low=0
    )
    train_refinement: bool = _setting(
        False,
        "Learn tau, mu and lambda of propagation in that training, from those of the refinement "
        "on. Calibration starts from what was learned, and with calibrate=none it is kept.",
        "ours",
        group="loss",
    )
    class_weights: str = _setting(
        "none",
        "Weights of the classes in the semantic loss, a weighted mean: none; balanced, inversely "
        "proportional to the pixels of the training labels; or a JSON file with weights by class "
        "name, or with a list in class order.",
        "PyTorch's CrossEntropyLoss; scikit-learn's balanced",
        group="loss",
    )
    boundary_amplitude: float = _setting(
        10.0,
        "With objective=boundary, the additional weight of a pixel at a boundary; the weights of "
        "an image are then divided by their mean.",
        "Ronneberger et al. 2015",
        group="loss",
        low=0,
    )
    boundary_sigma: float = _setting(
        5.0,
        "With objective=boundary, the width in pixels over which it falls; smaller for small "
        "images.",
        "Ronneberger et al. 2015",
        group="loss",
        low=0.1,
    )
    statistics: str = _setting(
        "",
        "JSON file of affinity statistics; when empty they are counted over the training labels.",
        "ours",
        group="loss",
        resumable=True,
    )

    train_steps: int = _setting(
        30000, "Total number of training steps.", "paper 4.1", group="schedule", low=1
    )
    batch_size: int = _setting(
        16, "Images per step, over all replicas.", "paper 4.1", group="schedule", low=1
    )
    accumulation: int = _setting(
        1,
        "Number of parts into which each batch is split to save memory; their gradients are "
        "averaged. Batch norm and the means of losses are over one part.",
        "ours",
        group="schedule",
        low=1,
    )
    learning_rate: float = _setting(
        0.007, "Initial learning rate.", _DEEPLAB, group="schedule", low=0
    )
    head_multiplier: float = _setting(
        1.0,
        "Factor on the learning rate of everything but the backbone.",
        _DEEPLAB,
        group="schedule",
        low=0,
    )
    affinity_head_multiplier: float = _setting(
        1.0,
        "Additional factor on the learning rate of the affinity head. The number of its channels, "
        "8 for each rate, lets it learn as fast as with Eq. 5's sum over channels instead of the "
        "mean.",
        "ours",
        group="schedule",
        low=0,
    )
    bias_multiplier: float = _setting(
        1.0,
        "Factor on the learning rate of biases, without batch norm's offsets.",
        "Keras' default; tensorflow/models research/deeplab has 2, as have the paper's recipes",
        group="schedule",
        low=0,
    )
    warmup_steps: int = _setting(
        0,
        "Steps of linear warm-up of the learning rate from warmup_learning_rate.",
        "ZJULearning/RMI, by three of the paper's authors: 1,500 for VOC, 3,000 for Cityscapes",
        group="schedule",
        low=0,
    )
    warmup_learning_rate: float = _setting(
        1e-4,
        "Learning rate at the start of the warm-up.",
        "ZJULearning/RMI",
        group="schedule",
        low=0,
    )
    power: float = _setting(
        0.9, "Power of the polynomial decay to 0.", _DEEPLAB, group="schedule", low=0
    )
    momentum: float = _setting(
        0.9, "Momentum of SGD.", _DEEPLAB, group="schedule", low=0, high=0.999
    )
    weight_decay: float = _setting(
        1e-4,
        "Weight decay on convolution kernels, as half the sum of squares.",
        f"{_DEEPLAB}, for ResNets; it has 4e-5 for MobileNets",
        group="schedule",
        low=0,
    )

    crop_size: int = _setting(
        513,
        "Side of the training crops; k * output_stride + 1 samples them most evenly.",
        "paper 4.1",
        group="augmentation",
        low=17,
    )
    min_scale: float = _setting(
        0.5, "Smallest random scale.", _DEEPLAB, group="augmentation", low=0.05, high=20
    )
    max_scale: float = _setting(
        2.0, "Largest random scale.", _DEEPLAB, group="augmentation", low=0.05, high=20
    )
    scale_step: float = _setting(
        0.25,
        "Step between the random scales; 0 draws any scale between the two.",
        _DEEPLAB,
        group="augmentation",
        low=0,
    )
    random_flip: bool = _setting(
        True, "Mirror half of the images left to right.", _DEEPLAB, group="augmentation"
    )

    seed: int = _setting(
        0,
        "Seed of initial weights, order, augmentation and dropout.",
        "ours",
        group="run",
        low=0,
        high=2**32 - 1,
    )
    deterministic: bool = _setting(
        True,
        "Use deterministic operations. An exact resume needs them on GPUs, where they may be "
        "slower; on CPUs no cost was measurable.",
        "ours",
        group="run",
        resumable=True,
    )
    mixed_precision: str = _setting(
        "none",
        "Compute dtype of all but heads, losses and propagation, which are in float32.",
        "ours",
        group="run",
        choices=("none", "bfloat16", "float16"),
    )
    num_replicas: int = _setting(
        0,
        "Number of devices of each process to train on, each with a part of the batch; 0 uses all "
        "visible GPUs.",
        "paper 4.1: 4",
        group="run",
        low=0,
        resumable=True,
    )
    validate_every: int = _setting(
        0,
        "Steps between validations; 0 validates ten times in all.",
        "ours",
        group="run",
        low=0,
    )
    early_stop_patience: int = _setting(
        0,
        "Stop after this many validations in a row without a better mIoU; 0 trains to the end. The "
        "learning rate still follows the schedule of all train_steps.",
        "ours",
        group="run",
        low=0,
        resumable=True,
    )

    checkpoint_every: int = _setting(
        500,
        "Steps between checkpoints; every validation also writes one.",
        "ours",
        group="run",
        low=1,
        resumable=True,
    )
    keep_checkpoints: int = _setting(
        3,
        "Number of newest checkpoints to keep, beside the best.",
        "ours",
        group="run",
        low=2,
        resumable=True,
    )
    tensorboard: bool = _setting(
        False,
        "Write losses, IoU and pictures to model_dir/tensorboard (needs the extra tensorboard).",
        "ours",
        group="run",
        resumable=True,
    )
    on_nan: str = _setting(
        "error",
        "When the loss or a gradient is NaN or infinite: stop, or skip the step and count it.",
        "ours",
        group="run",
        choices=("error", "skip"),
        resumable=True,
    )
    on_bad_example: str = _setting(
        "error",
        "When a training image or label cannot be used: stop, or use another example and count it, "
        "up to 1 % of the split.",
        "ours",
        group="run",
        choices=("error", "skip"),
        resumable=True,
    )

    eval_scales: str = _setting(
        "1",
        "Scales of the image over which evaluation and prediction average, such as 0.75,1,1.25.",
        "inferred; DeepLab offers it",
        group="evaluation",
        resumable=True,
    )
    eval_flip: bool = _setting(
        False,
        "Average over the image and its mirror image in evaluation and prediction.",
        "inferred; DeepLab offers it",
        group="evaluation",
        resumable=True,
    )
    eval_window: int = _setting(
        0,
        "Side of the windows in which evaluation and prediction take images that are larger; 0 "
        "takes whole images.",
        "inferred; mmsegmentation offers it",
        group="evaluation",
        low=0,
        resumable=True,
    )

    refine: str = _setting(
        "propagation",
        "How predictions are refined. propagation: by affinity at every pixel, where the run has "
        "any. propagation_decoder_stride: at the pixels where the decoder has features, for rates "
        "that are multiples of its stride; faster and smoother. propagation_early_stop: until the "
        "labels have converged. crf: by a dense CRF (needs the extra crf). none: not at all.",
        "paper 4.3; decoder_stride and early_stop are ours",
        group="refinement",
        choices=tuple(METHODS),
        resumable=True,
    )
    propagation_iterations: int = _setting(
        10,
        "Iterations of affinity propagation.",
        "paper 4.4",
        group="refinement",
        low=0,
        resumable=True,
    )
    self_weight: float = _setting(
        6.0,
        "Weight lambda of a pixel's own prediction.",
        "paper 4.2",
        group="refinement",
        low=0,
        resumable=True,
    )
    mu: float = _setting(
        7.0,
        "Steepness mu of the affinity's sigmoid.",
        "paper 3.3",
        group="refinement",
        low=1.001,
        resumable=True,
    )
    affinity_threshold: float = _setting(
        0.0,
        "Threshold tau of the affinity's sigmoid: the logit that counts as neither same nor "
        "different. Training ends by finding it.",
        "ours; the paper has none",
        group="refinement",
        resumable=True,
    )
    symmetric_affinity: bool = _setting(
        False,
        "Average the affinity logits of both directions of a pair before propagation.",
        "ours; Eq. 1 says that they are equal",
        group="refinement",
        resumable=True,
    )
    calibrate: str = _setting(
        "training",
        "Images on which training ends by fitting the refinement's settings: training, some of "
        "those trained on; a split that is not trained on, such as train[90%:]; or none, which "
        "keeps the settings given.",
        "ours",
        group="refinement",
        resumable=True,
    )
    stop_patience: int = _setting(
        1,
        "For propagation_early_stop: successive iterations without a change of labels after which "
        "they have converged.",
        "ours",
        group="refinement",
        low=1,
        resumable=True,
    )
    stop_tolerance: float = _setting(
        1e-3,
        "For propagation_early_stop: share of an image's pixels whose labels may change in an "
        "iteration that still counts as one without a change.",
        "ours",
        group="refinement",
        low=0,
        high=0.999,
        resumable=True,
    )
    crf_iterations: int = _crf(10, "Mean field iterations of the dense CRF.", low=0)
    crf_gaussian_weight: float = _crf(3.0, "Weight of the CRF's smoothness kernel.", low=0)
    crf_gaussian_xy: float = _crf(
        1.0, "Standard deviation of the CRF's smoothness kernel in pixels.", low=0.01
    )
    crf_bilateral_weight: float = _crf(
        4.0, "Weight of the CRF's appearance (bilateral) kernel.", low=0
    )
    crf_bilateral_xy: float = _crf(
        67.0, "Standard deviation of the CRF's appearance kernel in pixels.", low=0.01
    )
    crf_bilateral_rgb: float = _crf(
        3.0, "Standard deviation of the CRF's appearance kernel in grey levels.", low=0.01
    )

    def __post_init__(self):
        object.__setattr__(self, "rates", _rates_as_text(self.rates))
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _checked(field, getattr(self, field.name)))
        if self.min_scale > self.max_scale:
            raise ConfigError(
                "min_scale must not exceed max_scale. "
                f"Received: min_scale={self.min_scale}, max_scale={self.max_scale}"
            )
        if self.batch_size % self.accumulation:
            raise ConfigError(
                "accumulation must divide batch_size. "
                f"Received: accumulation={self.accumulation}, batch_size={self.batch_size}"
            )
        if self.images_at_once < 2 and self.batch_norm != "frozen":
            raise ConfigError(
                "batch_size / accumulation must be at least 2, since batch norm over one image "
                "cancels its image-level features; batch_norm='frozen' allows one. "
                f"Received: batch_size={self.batch_size}, accumulation={self.accumulation}, "
                f"batch_norm={self.batch_norm!r}"
            )
        if self.warmup_steps >= self.train_steps:
            raise ConfigError(
                "warmup_steps must be below train_steps. "
                f"Received: warmup_steps={self.warmup_steps}, train_steps={self.train_steps}"
            )
        if self.train_propagation and self.affinity_rates is None:
            raise ConfigError(
                "train_propagation needs an affinity to propagate with. "
                f"Received: train_propagation={self.train_propagation}, "
                f"objective={self.objective!r}, rates={self.rates!r}"
            )
        if self.train_refinement and not (self.train_propagation and self.self_weight > 0):
            raise ConfigError(
                "train_refinement needs train_propagation, and a self_weight above 0. "
                f"Received: train_propagation={self.train_propagation}, "
                f"self_weight={self.self_weight:g}"
            )
        # Refuses what cannot be read.
        self.affinity_rates, self.multi_grid_factors, self.aspp_rates, self.views  # noqa: B018

    @classmethod
    def for_dataset(cls, dataset, **overrides):
        """The recipe of a data set, with single settings overridden."""
        _warn_of_old_names(overrides)
        settings = {**RECIPES.get(dataset, {}), **_with_new_names(overrides)}
        return cls(**{"dataset": dataset, **settings})

    @property
    def affinity_rates(self):
        """`rates` as pairs, or None for a run without affinity."""
        rates = None if self.rates == "none" else parse_rates(self.rates)
        return rates if OBJECTIVES[self.objective] else None

    @property
    def images_at_once(self) -> int:
        """Number of images over which batch norm and losses take statistics and means."""
        return self.batch_size // self.accumulation

    @property
    def multi_grid_factors(self) -> tuple[int, ...] | None:
        """`multi_grid` as numbers, or None."""
        return None if self.multi_grid == "none" else self._dilations("multi_grid", ", or none")

    @property
    def aspp_rates(self) -> tuple[int, ...]:
        """`atrous_rates` as numbers."""
        return self._dilations("atrous_rates")

    def _dilations(self, name, also=""):
        text = getattr(self, name)
        if not re.fullmatch(r"[1-9]\d?(,[1-9]\d?)*", text):
            raise ConfigError(
                f"{name} must be positive whole numbers below 100 with commas between{also}. "
                f"Received: {name}={text!r}"
            )
        return tuple(map(int, text.split(",")))

    @property
    def refinement_iterations(self) -> int:
        """Iterations of the method that `refine` names; 0 for none."""
        name = METHODS[self.refine].iterations
        return getattr(self, name) if name else 0

    @property
    def propagates(self) -> bool:
        """Whether predictions are refined by affinity."""
        method = METHODS[self.refine]
        return method.propagates and self.propagation_iterations > 0 and bool(self.affinity_rates)

    @property
    def calibration_split(self) -> str | None:
        """The split on which the refinement is calibrated after training; None if it is not."""
        if self.calibrate == "none" or not self.propagates:
            return None
        return self.train_split if self.calibrate == "training" else self.calibrate

    @property
    def views(self) -> Views:
        """The views of an image over which evaluation and prediction average."""
        return Views(parse_scales(self.eval_scales), self.eval_flip, self.eval_window)

    @property
    def validation_interval(self) -> int:
        """Steps between validations."""
        return self.validate_every or math.ceil(self.train_steps / 10)

    def replace(self, **changes):
        """A copy with some settings changed."""
        _warn_of_old_names(changes)
        return dataclasses.replace(self, **_with_new_names(changes))

    def differences(self, other):
        """Names of the settings in which a run of `other` could not continue a run of this one.

        With `train_propagation`, those of the propagation that is trained through are among them.
        """
        trained = _TRAINED_THROUGH if self.train_propagation else ()
        return [
            field.name
            for field in dataclasses.fields(self)
            if (not field.metadata["resumable"] or field.name in trained)
            and getattr(self, field.name) != getattr(other, field.name)
        ]

    def changes(self, other, where: str) -> str:
        """The `differences` as text, the other's values marked by `where`; empty without any."""
        return ", ".join(
            f"{name}={getattr(self, name)!r} ({where} {getattr(other, name)!r})"
            for name in self.differences(other)
        )

    def save(self, path: str | os.PathLike, version: str):
        """Writes the settings and the package version as JSON."""
        content = {"package_version": version, "config": dataclasses.asdict(self)}
        write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: str | os.PathLike):
        """Reads what `save` wrote, in this version or since 0.1.0.

        Raises:
            DataError: If the file is missing or not a configuration, or holds a setting that does
                not exist or is out of range.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            settings = _with_new_names(dict(content["config"]))
            unknown = set(settings) - {field.name for field in dataclasses.fields(cls)}
            if unknown:
                raise ConfigError(f"unknown settings: {', '.join(sorted(unknown))}")
            return cls(**settings)
        except OSError as error:
            raise DataError(f"{path}: cannot read the configuration: {error.strerror}") from None
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            text = " ".join(str(error).split())
            raise DataError(f"{path}: not the configuration of a run: {text}") from None


def _warn_of_old_names(settings):
    for name in settings.keys() & _RENAMED.keys():
        warnings.warn(
            f"{name} is called {_RENAMED[name]} since version 0.2.0.", FutureWarning, stacklevel=3
        )


def _with_new_names(settings):
    """The settings of a run, whose names may be those of version 0.1.0, by their names of today."""
    refine = {name: settings[name] for name in ("postprocess", "refinement") if name in settings}
    kept = {
        _RENAMED.get(name, name): value for name, value in settings.items() if name not in refine
    }
    return {**kept, "refine": renamed_refine(**refine)} if refine else kept


def _rates_as_text(rates):
    """Returns rates, given as text, numbers or pairs, as normalised text; `"none"` for None."""
    if rates is None or (isinstance(rates, str) and rates == "none"):
        return "none"
    return format_rates(check_rates(rates))


def _checked(field, value):
    """Returns the value in its field's type, or raises `ConfigError`."""
    name, kind, limits = field.name, field.type, field.metadata
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise ConfigError(f"{name} must be a {kind.__name__}. Received: {name}={value!r}")
    if limits["choices"] and value not in limits["choices"]:
        known = tuple(map(str, limits["choices"]))
        meant = did_you_mean(value, known) if kind is str else ""
        raise ConfigError(
            f"{name} must be one of {', '.join(known)}.{meant} Received: {name}={value!r}"
        )
    low, high = limits["low"], limits["high"]
    if (low is not None and value < low) or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ConfigError(f"{name} must be {bounds}. Received: {name}={value!r}")
    return value
