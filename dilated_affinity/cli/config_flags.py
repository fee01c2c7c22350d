"""Flags generated from the fields of `Config`, so that the two cannot drift."""

import dataclasses

from absl import flags

from dilated_affinity.config import OBJECTIVES, Config
from dilated_affinity.datasets.registry import dataset_names
from dilated_affinity.errors import ConfigError, did_you_mean
from dilated_affinity.models.deeplab import BACKBONES
from dilated_affinity.recipes import RECIPES
from dilated_affinity.run_dir.layout import WHICH

_NAMES = {"dataset": dataset_names(), "backbone": tuple(BACKBONES), "objective": OBJECTIVES}
"""Settings whose values are names that grow, and are checked when the flags have been parsed."""


def _group(title):
    fields = dataclasses.fields(Config)
    return tuple(field.name for field in fields if field.metadata["group"] == title)


VIEWS = ("eval_output_stride", *_group("evaluation"))
"""Settings of the views of an image that a trained network predicts."""

CRF = tuple(name for name in _group("refinement") if name.startswith("crf_"))
"""Settings of the dense CRF."""

REFINEMENT = tuple(
    name
    for name in _group("refinement")
    if name not in (*CRF, "propagation_iterations", "calibrate")
)
"""Settings of the refinement that every command for predictions has."""

_defined: dict[str, str] = {}


def define_checkpoint():
    """Defines the flag `--checkpoint` of the commands that load a run; returns its holder."""
    return flags.DEFINE_enum(
        "checkpoint",
        "best",
        WHICH,
        "Which of the run's checkpoints: that of the best validation mIoU, or the last. Measured "
        "on the split that chose it, the best is a little too good.",
    )


def define(names=None, default="the run's"):
    """Defines a flag for each setting, or for those named; none has a value until it is given.

    Args:
        names: The settings; None for all.
        default: What help says that a setting is where its own default, and those of the recipes,
            do not decide, for they do only if `dataset` is among the settings.

    Returns:
        A function that returns the settings given on the command line, as a dict.
    """
    fields = [field for field in dataclasses.fields(Config) if names is None or field.name in names]
    follows_recipe = any(field.name == "dataset" for field in fields)
    for field in fields:
        default = _default(field) if follows_recipe else default
        _defined[field.name] = default
        text = _text(field)
        choices = field.metadata["choices"]
        if field.type is bool:
            flags.DEFINE_bool(field.name, None, text)
        elif field.type is int:
            flags.DEFINE_integer(field.name, None, text)
        elif field.type is float:
            flags.DEFINE_float(field.name, None, text)
        elif choices and field.name not in _NAMES:
            flags.DEFINE_enum(field.name, None, choices, text)
        else:
            flags.DEFINE_string(field.name, None, text)

    def given():
        values = {field.name: flags.FLAGS[field.name].value for field in fields}
        return {name: value for name, value in values.items() if value is not None}

    return given


def groups() -> dict[str, dict[str, str]]:
    """The flags that `define` has defined: their groups, names and defaults as text."""
    found = {}
    for field in dataclasses.fields(Config):
        if field.name in _defined:
            found.setdefault(field.metadata["group"], {})[field.name] = _defined[field.name]
    return found


def recipe_with(settings: dict) -> Config:
    """The recipe of `settings["dataset"]`, or of the default data set, with these settings.

    Raises:
        ConfigError: For a data set or backbone that does not exist, before anything is written,
            and for what `Config` refuses.
    """
    settings = dict(settings)
    config = Config.for_dataset(settings.pop("dataset", Config.dataset), **settings)
    for name, known in _NAMES.items():
        value = getattr(config, name)
        if value not in known:
            raise ConfigError(
                f"{name} must be one of {', '.join(known)}.{did_you_mean(value, known)} "
                f"Received: {name}={value!r}"
            )
    return config


def _text(field):
    text, known = field.metadata["help"], field.metadata["choices"]
    if field.name in _NAMES:
        known = _NAMES[field.name]
    elif field.type is str:  # absl adds an enum's values itself
        known = None
    return f"{text} One of {', '.join(map(str, known))}." if known else text


def _default(field):
    text = f"{_shown(field.default)} ({field.metadata['source']})"
    recipes = {}
    for name, recipe in RECIPES.items():
        if field.name in recipe:
            recipes.setdefault(_shown(recipe[field.name]), []).append(name)
    return "; ".join(
        [text, *(f"{value} for {' and '.join(names)}" for value, names in recipes.items())]
    )


def _shown(value):
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) or "empty"
