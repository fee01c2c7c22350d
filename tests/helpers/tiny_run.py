"""A run as training writes it, and commands in which the backbone "tiny" is registered."""

from dilated_affinity.run_dir.checkpoints import TrainingState, write_checkpoint
from dilated_affinity.run_dir.layout import BEST, CONFIG_FILE
from dilated_affinity.run_dir.model import build_model
from dilated_affinity.version import __version__
from helpers.forked import run_forked
from helpers.tiny import NUM_CLASSES, tiny_config, write_camvid


def command(name, *arguments):
    """Runs `dilated_affinity.cli.<name>` in a process of its own."""
    return run_forked(f"dilated_affinity.cli.{name}", *arguments)


def write_run(folder, **settings):
    """Writes data and a run below `folder` without training; returns its config and model_dir."""
    config = tiny_config(write_camvid(folder / "camvid"), **settings)
    config.save(folder / "model" / CONFIG_FILE, __version__)
    model = build_model(config, NUM_CLASSES)
    for name in ("semantic_logits", "affinity_logits"):  # so that logits are not all near 0
        model.get_layer(name).kernel.assign(model.get_layer(name).kernel * 100)
    write_checkpoint(folder / "model" / BEST, model, TrainingState())
    return config, folder / "model"
