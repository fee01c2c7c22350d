"""The folder of a run, `model_dir`: its files, and its lock."""

import contextlib
import csv
import dataclasses
import io
import json
import os
from pathlib import Path

from absl import logging

from dilated_affinity.affinity.geometry import format_rates
from dilated_affinity.affinity.statistics import AffinityStatistics
from dilated_affinity.config import Config
from dilated_affinity.datasets.classes import ClassTable
from dilated_affinity.datasets.registry import Source, label_readers
from dilated_affinity.errors import ConfigError, DataError, RunError, first_line
from dilated_affinity.run_dir.checkpoints import Checkpoints, TrainingState, read_state
from dilated_affinity.runtime.distribution import broadcast
from dilated_affinity.runtime.files import exclusive_lock, remove_unfinished, write_atomically
from dilated_affinity.runtime.progress import progress
from dilated_affinity.runtime.system import environment
from dilated_affinity.version import __version__

CONFIG_FILE = "config.json"
CLASSES_FILE = "classes.json"
STATISTICS_FILE = "statistics.json"
CLASS_WEIGHTS_FILE = "class_weights.json"
CALIBRATION_FILE = "calibration.json"
TRAINED_ON_FILE = "trained_on.json"
LOG_FILE = "log.csv"
LOCK_FILE = ".lock"
CHECKPOINTS = "checkpoints"
BEST = Path(CHECKPOINTS, "best.keras")
_OF_THE_START = ("initial_model", "backbone_weights", "statistics")
"""Settings that are read when a run begins, and then never again."""

WHICH = ("best", "last")
"""Names of checkpoints: that of the best validation, and the newest."""


@contextlib.contextmanager
def lock_run_dir(model_dir: Path, config: Config):
    """Context in which no other process can train in `model_dir`.

    Raises:
        RunError: If it belongs to a run of other settings or to one that is running, or cannot be
            written.
    """
    with contextlib.ExitStack() as stack:
        broadcast(lambda: _lock(model_dir, config, stack))
        yield


def _lock(model_dir, config, stack):
    try:
        model_dir.mkdir(parents=True, exist_ok=True)
        stack.enter_context(exclusive_lock(model_dir / LOCK_FILE))
    except BlockingIOError:
        raise RunError(f"{model_dir}: another process is training in this folder.") from None
    except OSError as error:
        raise RunError(f"{model_dir}: cannot train here: {error.strerror}") from None
    refuse_other_settings(model_dir, config)
    try:
        _forget_other_settings(model_dir, config)
        # Only here: other processes, such as an evaluation, may be writing in the other folders.
        remove_unfinished(model_dir / CHECKPOINTS)
    except OSError as error:
        raise _cannot_write(model_dir, error) from None


def refuse_other_settings(model_dir: Path, config: Config):
    """Raises `RunError` if `config` changes settings of a run in `model_dir` that has trained."""
    changes = _changes(model_dir, config)
    if changes and has_trained(model_dir):
        raise RunError(
            f"{model_dir}: holds a run of another configuration: {changes}. Give the same settings "
            "to continue it (the learning rate of every step depends on train_steps, so that more "
            "of them make another run); or another model_dir, with "
            f"--initial_model={model_dir} to start from this run's weights; or remove the folder."
        )


def has_trained(model_dir: Path) -> bool:
    """Returns whether a run has written anything that depends on its training."""
    return (model_dir / LOG_FILE).exists() or (model_dir / CHECKPOINTS).exists()


def as_begun(model_dir: Path, config: Config) -> Config:
    """Returns settings in which those of a run's start are as the run in `model_dir` began.

    They name files that are read where there is no checkpoint yet. The log names those that are
    passed over.
    """
    if not Checkpoints(model_dir / CHECKPOINTS).paths():
        return config
    begun = Config.load(model_dir / CONFIG_FILE)
    for name in _OF_THE_START:
        now, then = getattr(config, name), getattr(begun, name)
        if now != then:
            logging.warning(
                "%s: continues from its last checkpoint; %s=%s is not read (the run began with %s)",
                *(model_dir, name, now or "none", then or "none"),
            )
    return config.replace(**{name: getattr(begun, name) for name in _OF_THE_START})


def _changes(model_dir, config):
    """The settings of the run in `model_dir` that `config` changes, as text."""
    path = model_dir / CONFIG_FILE
    return Config.load(path).changes(config, "now") if path.is_file() else ""


def _forget_other_settings(model_dir, config):
    """Removes what a run of other settings has left that ended before it trained."""
    if changes := _changes(model_dir, config):
        logging.info("%s: begins anew, since nothing was trained with %s", model_dir, changes)
        # The settings last: until then another start finds them, and removes the rest.
        for name in (CLASSES_FILE, STATISTICS_FILE, CLASS_WEIGHTS_FILE, CONFIG_FILE):
            (model_dir / name).unlink(missing_ok=True)


def save_settings(model_dir: Path, config: Config, classes: ClassTable):
    """Saves settings and classes of a run in its folder, which from then on refuses others.

    Call it after the data has been found, so that a misspelt data set can be corrected.

    Raises:
        RunError: If it cannot be written.
    """

    def save():
        try:
            table = json.dumps(dataclasses.asdict(classes), indent=1) + "\n"
            write_atomically(model_dir / CLASSES_FILE, table.encode())
            config.save(model_dir / CONFIG_FILE, __version__)
        except OSError as error:
            raise _cannot_write(model_dir, error) from None

    broadcast(save)


def load_classes(model_dir: Path) -> ClassTable | None:
    """Returns the classes of a run; None for a run of a version that did not save them.

    Raises:
        DataError: If the file is damaged.
    """
    path = model_dir / CLASSES_FILE
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        colors = [tuple(map(int, color)) for color in (*table["palette"], table["void_color"])]
        return ClassTable(tuple(map(str, table["names"])), tuple(colors[:-1]), colors[-1])
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise DataError(f"{path}: not a table of classes: {first_line(error)}") from None


def save_calibration(model_dir: Path, content: dict):
    """Saves settings of the refinement that were fitted to a run, for every command to use.

    Args:
        model_dir: The run's folder.
        content: JSON types, with the settings that were fitted under `"settings"`.

    Raises:
        RunError: If it cannot be written.
    """
    try:
        text = json.dumps(content, indent=1) + "\n"
        write_atomically(model_dir / CALIBRATION_FILE, text.encode())
    except OSError as error:
        raise _cannot_write(model_dir, error) from None


def load_calibration(model_dir: Path) -> dict | None:
    """Returns what `save_calibration` saved; None if there is nothing.

    Raises:
        DataError: If the file is damaged.
    """
    path = model_dir / CALIBRATION_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        Config(**content["settings"])
        return content
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(f"{path}: not a calibration: {first_line(error)}") from None


def record_environment(model_dir: Path):
    """Adds backend, versions and hardware of this process to those the run was trained on.

    With several processes, those of the first one. Known ones are not repeated.

    Raises:
        DataError: If the file is damaged.
        RunError: If it cannot be written.
    """

    def record():
        earlier, now = trained_on(model_dir), environment()
        if now in earlier:
            return
        try:
            content = json.dumps([*earlier, now], indent=1) + "\n"
            write_atomically(model_dir / TRAINED_ON_FILE, content.encode())
        except OSError as error:
            raise _cannot_write(model_dir, error) from None

    broadcast(record)


def trained_on(model_dir: Path) -> list[dict]:
    """Returns each `environment` that a run was trained on; none if it was not recorded.

    Raises:
        DataError: If the file is damaged.
    """
    path = model_dir / TRAINED_ON_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON file: {first_line(error)}") from None
    if not isinstance(content, list):
        raise DataError(f"{path}: must hold a list. Received: {type(content).__name__}")
    return content


def _cannot_write(model_dir, error):
    return RunError(f"{model_dir}: cannot write here: {error.strerror}")


def run_statistics(config: Config, source: Source, model_dir: Path) -> AffinityStatistics | None:
    """Returns the statistics of the training labels; None for a run without affinity.

    They come from the run's folder, from the file that the settings name, or are counted now. With
    several processes the first one reads, counts and writes.

    Raises:
        DataError: If the file or a label cannot be read.
        RunError: If the file is of other rates.
    """
    if config.affinity_rates is None:
        return None
    counts = broadcast(lambda: _statistics(config, source, model_dir).get_config())
    return AffinityStatistics.from_config(counts)


def _statistics(config, source, model_dir):
    path = model_dir / STATISTICS_FILE
    if path.is_file() or config.statistics:
        statistics = given_statistics(config, path if path.is_file() else config.statistics)
    else:
        readers = progress(label_readers(source), "affinity statistics")
        statistics = AffinityStatistics.from_labels(readers, config.affinity_rates)
    if not path.is_file():
        statistics.save(path)
    return statistics


def chosen_checkpoint(model_dir: str | os.PathLike, which: str) -> tuple[Path, TrainingState]:
    """Returns the best or the last checkpoint of a run, after checking it, and its state.

    Args:
        model_dir: The run's folder, in which nothing is changed.
        which: `"best"`, that of the highest validation mIoU; or `"last"`, that of the most steps.

    Raises:
        ConfigError: For another `which`.
        RunError: If there is no such checkpoint yet.
        DataError: If it is damaged.
    """
    if which not in WHICH:
        raise ConfigError(f"checkpoint must be one of {', '.join(WHICH)}. Received: {which!r}")
    model_dir = Path(model_dir)
    path = model_dir / BEST
    if which == "best" and not path.is_file():
        raise RunError(f"{model_dir}: this run has no {BEST} yet; it was never validated.")
    if which == "last":
        path = next(reversed(Checkpoints(model_dir / CHECKPOINTS).paths()), None)
        if path is None:
            raise RunError(f"{model_dir}: this run has no checkpoint in {CHECKPOINTS} yet.")
    return path, read_state(path)


def read_log(model_dir: str | os.PathLike) -> list[dict[str, str]]:
    """Returns the rows of a run's log, one for each validation; none if there is no log yet.

    Raises:
        DataError: If it is not a log.
    """
    path = Path(model_dir) / LOG_FILE
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise DataError(f"{path}: not the log of a run: {error}") from None


def given_statistics(config: Config, path: str | os.PathLike) -> AffinityStatistics:
    """Reads statistics from a file.

    Raises:
        DataError: If it cannot be read.
        RunError: If its rates are not those of the run.
    """
    statistics = AffinityStatistics.load(path)
    if statistics.rates != config.affinity_rates:
        raise RunError(
            f"{path}: statistics of rates {format_rates(statistics.rates)}, "
            f"but the run has rates {config.rates}."
        )
    return statistics


def write_log(model_dir: str | os.PathLike, state: TrainingState):
    """Writes the log of a run as CSV, with a row for each validation."""
    rows = [row for row in state.rows if "val_mean_iou" in row]
    columns = dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_atomically(Path(model_dir) / LOG_FILE, text.getvalue().encode())
