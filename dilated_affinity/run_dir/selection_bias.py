"""Whether the images that are measured have also made choices, by which their scores gain."""

import os
from pathlib import Path

from dilated_affinity.config import Config
from dilated_affinity.datasets.registry import Source, load_source
from dilated_affinity.run_dir.checkpoints import Checkpoints, read_state
from dilated_affinity.run_dir.layout import (
    BEST,
    CHECKPOINTS,
    CONFIG_FILE,
    load_calibration,
    read_log,
)


def selection_bias(
    model_dir: str | os.PathLike,
    which: str,
    config: Config,
    source: Source,
    calibrated: bool = True,
) -> list[str]:
    """Returns a line for each choice that the evaluated images have also made.

    Args:
        model_dir: The run's folder.
        which: The evaluated checkpoint, as for `chosen_checkpoint`.
        config: The settings in force; `val_split` is the evaluated split.
        source: Its examples.
        calibrated: Whether the refinement is that which calibration or a search saved in the run.
    """
    model_dir, found = Path(model_dir), []
    validations = len(read_log(model_dir))
    run = Config.load(model_dir / CONFIG_FILE)
    # Only now, since reading a split may take long.
    if validations > 1 and _overlap(run.val_split, config, source):
        on = f"{run.val_split}, which is measured here as well"
        stopped = validations * run.validation_interval < run.train_steps
        early = 0 < run.early_stop_patience < validations and stopped
        # The best of all may be the last, which nothing would then have chosen.
        if which == "best" and not _is_last(model_dir):
            remedy = "" if early else "; --checkpoint=last is free of this choice"
            found.append(f"the checkpoint is the best of {validations} by mIoU on {on}{remedy}")
        elif early:
            found.append(f"training was stopped early by mIoU on {on}")
    calibration = load_calibration(model_dir) if calibrated else None
    fitted = calibration["settings"].items() if calibration else ()
    if fitted and all(getattr(config, name) == value for name, value in fitted):
        split = calibration.get("split", run.train_split)
        if _overlap(split, config, source):
            by = calibration.get("by", "calibration")
            found.append(
                f"the refinement was chosen by {by} on {split}, which is measured here as well; "
                "--nocalibrated is free of this choice"
            )
    return found


def _is_last(model_dir):
    checkpoints = Checkpoints(model_dir / CHECKPOINTS).paths()
    return (
        bool(checkpoints) and read_state(checkpoints[-1]).step == read_state(model_dir / BEST).step
    )


def _overlap(split, config, source):
    """Whether a split shares examples with the evaluated one."""
    if split == config.val_split:
        return True
    if not _names(split) & _names(config.val_split):
        return False
    return bool(set(load_source(config.dataset, split, config.data_dir).ids) & set(source.ids))


def _names(split):
    """Returns the names of the splits in an expression such as `train+val[:10]`."""
    return {part.partition("[")[0].strip() for part in split.split("+")}
