"""Starting a run from the weights of another run, or of a file."""

import dataclasses
import json
import warnings
import zipfile
from pathlib import Path
from types import EllipsisType

import keras
import numpy as np
from absl import logging

from dilated_affinity.affinity.geometry import Rates, check_rates, format_rates
from dilated_affinity.config import Config
from dilated_affinity.datasets.classes import ClassTable
from dilated_affinity.errors import ConfigError, DataError, first_line
from dilated_affinity.models.deeplab import affinity_rates
from dilated_affinity.run_dir.checkpoints import Checkpoints, read_state
from dilated_affinity.run_dir.layout import BEST, CHECKPOINTS, CONFIG_FILE, load_classes
from dilated_affinity.training.objectives.registry import class_layers

SUFFIXES = (".keras", ".weights.h5")

_CLASSES, _RATES = "semantic_logits", "affinity_logits"
_NOT_LOADED = {"f": np.nan, "i": 0, "u": 0}


@dataclasses.dataclass(frozen=True)
class InitialModel:
    """A file of initial weights, and what is known of its model.

    Attributes:
        path: The `.keras` or `.weights.h5` file.
        classes: Names of the classes it was trained for; None if unknown.
        rates: The rates of its affinity, None without affinity; `...` if unknown.
    """

    path: Path
    classes: tuple[str, ...] | None = None
    rates: Rates | None | EllipsisType = ...

    def to_json(self) -> dict:
        """Returns it as JSON types, to be sent to other processes; see `from_json`."""
        known = {} if self.rates is ... else {"rates": self.rates}
        return {"path": str(self.path), "classes": self.classes, **known}

    @classmethod
    def from_json(cls, content):
        """Builds it from what `to_json` returned."""
        classes, rates = content["classes"], content.get("rates", ...)
        return cls(
            Path(content["path"]),
            None if classes is None else tuple(classes),
            rates if rates in (..., None) else check_rates(rates),
        )


def find_initial_model(initial_model: str) -> InitialModel:
    """Finds the file of weights that the setting `initial_model` names.

    Args:
        initial_model: The folder of a run, for its best model, or for its newest if it has not
            been validated; or a `.keras` or `.weights.h5` file. For a file in the `checkpoints/`
            of a run, that run tells classes and rates.

    Raises:
        ConfigError: If it is neither.
        DataError: If there is no such file or folder, or the run has no model yet, or a damaged
            one.
    """
    path = Path(initial_model).expanduser()
    if (path / CONFIG_FILE).is_file():
        best = path / BEST
        newest = Checkpoints(path / CHECKPOINTS).paths()[-1:]
        if not best.is_file() and not newest:
            raise DataError(f"{path}: initial_model: this run has no checkpoint yet.")
        path = best if best.is_file() else newest[0]
    elif path.is_dir():
        raise DataError(f"{path}: initial_model: no run here ({CONFIG_FILE} is missing).")
    elif not path.name.endswith(SUFFIXES):
        raise ConfigError(
            f"initial_model must be the folder of a run or a {' or '.join(SUFFIXES)} file. "
            f"Received: initial_model={initial_model!r}"
        )
    elif not path.is_file():
        raise DataError(f"{path}: initial_model: no such file.")
    run = path.parent.parent
    if path.parent.name == CHECKPOINTS and (run / CONFIG_FILE).is_file():
        read_state(path)  # which checks every byte
        table = load_classes(run)
        names = None if table is None else table.names
        return InitialModel(path, names, Config.load(run / CONFIG_FILE).affinity_rates)
    return InitialModel(path, rates=_rates_in(path))


def load_initial_weights(
    model: keras.Model, initial: InitialModel, classes: ClassTable, file=None
) -> None:
    """Gives a model the weights of another, except for heads of other classes or rates.

    Heads that are left out keep their fresh weights, and the log names them.

    Args:
        model: As `build_model` and `add_objective` make it, not compiled.
        initial: The file of weights.
        classes: The classes of the model.
        file: Path to read instead of `initial.path`, which errors name.

    Raises:
        DataError: If the file cannot be read, or is of another network; `model` is unchanged.
    """
    left_out = _foreign_heads(model, initial, classes)
    before = model.get_weights()
    # Keras skips variables that do not fit; those that it skipped are still NaN.
    model.set_weights([np.full_like(each, _NOT_LOADED[each.dtype.kind]) for each in before])
    try:
        _load(model, initial.path, file or initial.path)
        values = _by_variable(model, model.get_weights())
    except BaseException:
        model.set_weights(before)
        raise
    fresh = _by_variable(model, before)
    of_classes = {_CLASSES, *class_layers()}
    for layer in model.layers:
        missing = [each.path for each in layer.weights if np.isnan(values[id(each)]).any()]
        if layer.name in (*of_classes, _RATES) and missing:
            left_out.setdefault(layer.name, "of another shape")
        elif missing:
            model.set_weights(before)
            raise DataError(
                f"{initial.path}: initial_model: the weights of another network, which has no "
                f"{missing[0]} of this shape. The backbone, filters, separable and atrous_rates "
                "must be those it was trained with, and the file no export of export_main."
            )
        if layer.name in left_out:
            values.update({id(variable): fresh[id(variable)] for variable in layer.weights})
    model.set_weights([values[id(variable)] for variable in model.weights])
    reasons = ", ".join(f"{name} ({reason})" for name, reason in left_out.items())
    logging.info(
        "initial weights from %s%s", initial.path, f"; left out: {reasons}" if reasons else ""
    )


def _by_variable(model, values):
    return {id(variable): value for variable, value in zip(model.weights, values, strict=True)}


def _foreign_heads(model, initial, classes):
    """Returns the names of heads that are for other classes or rates in the file, and why."""
    present, of_classes = [layer.name for layer in model.layers], {_CLASSES, *class_layers()}
    found = {}
    if initial.classes is not None and initial.classes != classes.names:
        reason = f"its {len(initial.classes)} classes are others than the {len(classes.names)} here"
        found = dict.fromkeys((name for name in present if name in of_classes), reason)
    rates = affinity_rates(model)
    if rates is None and initial.rates not in (..., None):
        found[_RATES] = f"its rates are {format_rates(initial.rates)}, this run has no affinity"
    elif rates is not None and initial.rates not in (..., rates):
        theirs = "none" if initial.rates is None else format_rates(initial.rates)
        found[_RATES] = f"its rates are {theirs}, here {format_rates(rates)}"
    return found


def _load(model, path, file):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of variables that it skips
            model.load_weights(file, skip_mismatch=True)
    except Exception as error:  # whatever Keras and HDF5 raise for other files
        raise DataError(
            f"{path}: initial_model: cannot be read as weights: {first_line(error)}"
        ) from error


def _rates_in(path):
    """Returns the rates of the `AffinityHead` in a `.keras` file; `...` for other files."""
    if path.suffix != ".keras":
        return ...
    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
        heads = [
            layer["config"]
            for layer in config["config"]["layers"]
            if layer["class_name"] == "AffinityHead"
        ]
        return check_rates(heads[0]["rates"]) if heads else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: initial_model: not a Keras model: {first_line(error)}") from error
