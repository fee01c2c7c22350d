"""Trains DeepLabv3+ with dilated affinity, or continues a training.

    train_main --dataset=camvid --data_dir=CamVid --model_dir=runs/camvid

Settings that are not given follow the data set's recipe. Started again with the same model_dir
and settings, it continues where it stopped, with the same result as a run that was not stopped.
Ctrl-C and SIGTERM end it after the current step, with a checkpoint; a second time, at once.

    train_main --dataset=folder --data_dir=my_data --check_only

does not train, but reads all the data once and prints its contents and all problems in it.
"""

import sys

from absl import flags

from dilated_affinity.cli import app, config_flags
from dilated_affinity.datasets.checking import check_dataset
from dilated_affinity.errors import ConfigError, DilatedAffinityError
from dilated_affinity.runtime.system import configure_malloc
from dilated_affinity.training.run_checks import check_run, load_sources, read_all
from dilated_affinity.training.trainer import train

_given = config_flags.define()
_MODEL_DIR = flags.DEFINE_string("model_dir", None, "Folder of the run; made if missing.")
_CHECK_ONLY = flags.DEFINE_bool(
    "check_only",
    False,
    "Do not train: read every image and label once, report counts, sizes, class shares and all "
    "problems, and whether training would accept the other settings (all but downloads). Exit "
    "status 1 if there is a problem.",
)
_STOP_AFTER = flags.DEFINE_integer(
    "stop_after",
    0,
    "Stop with a checkpoint after this many steps; 0 for no limit.",
    lower_bound=0,
)


def _train():
    if _CHECK_ONLY.value:
        _check(config_flags.recipe_with(_given()), _MODEL_DIR.value)
        return
    model_dir = app.required(_MODEL_DIR.value, "model_dir")
    configure_malloc()
    result = train(config_flags.recipe_with(_given()), model_dir, _STOP_AFTER.value)
    best = "none yet" if result.best_mean_iou is None else f"{100 * result.best_mean_iou:.2f} %"
    early = ", stopped early" if result.stopped_early else ""
    print(f"{model_dir}: {result.step} steps done{early}; best validation mIoU {best}")


def _check(config, model_dir):
    """Reads all the data and prints what training would refuse."""
    report = check_dataset(config.dataset, config.data_dir, (config.train_split, config.val_split))
    status = app.RUN_ERROR
    try:
        if report.problems:
            read_all(config)
            # Training skips these or does not read them.
            report.notes += report.problems
            report.problems = []
        classes = load_sources(config)[0].classes
        check_run(config, classes, model_dir)
    except DilatedAffinityError as error:
        status = app.USAGE_ERROR if isinstance(error, ConfigError) else app.RUN_ERROR
        if not report.problems:
            report.problems.append(str(error))
    print(report.text())
    if report.problems:
        sys.exit(status)


def main():
    """Entry point of the console script."""
    app.run(_train)


if __name__ == "__main__":
    main()
