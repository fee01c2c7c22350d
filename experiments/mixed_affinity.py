"""Measures what propagation would gain with a more accurate affinity.

    python -m experiments.run mixed_affinity --model_dir=runs/camvid

At a share of the pixels, drawn at random, the affinity of the labels takes the place of the
predicted one, for all of a pixel's neighbours at once. The share grows from none to all. Its row
has the accuracy of the affinity for pixels of which 3 or 4 neighbours share the class, as a mean
over the rates, and the mIoU before and after propagation with the run's settings.
"""

from pathlib import Path

from absl import flags

from dilated_affinity.cli import app, config_flags
from dilated_affinity.datasets.registry import load_source
from dilated_affinity.errors import ConfigError
from dilated_affinity.inference.refinement import Refinement
from dilated_affinity.run_dir.load import load_run
from experiments.affinity_mixtures import COUNTS, measure
from experiments.records import RESULTS, run_record, write_json

_given = config_flags.define(
    (
        *("data_dir", "val_split", "eval_output_stride", "propagation_iterations"),
        *("self_weight", "mu", "affinity_threshold", "symmetric_affinity"),
    )
)
_MODEL_DIR = flags.DEFINE_string("model_dir", None, "Folder of the run.")
_CHECKPOINT = config_flags.define_checkpoint()
_OUTPUT = flags.DEFINE_string("output", str(RESULTS / "mixed_affinity.json"), "JSON file to write.")


def main():
    """Entry point."""
    app.run(_run)


def _run():
    model_dir = Path(app.required(_MODEL_DIR.value, "model_dir"))
    config, model = load_run(model_dir, checkpoint=_CHECKPOINT.value, **_given())
    refinement = Refinement.from_config(config)
    if config.affinity_rates is None or not refinement.iterations:
        raise ConfigError(
            f"{model_dir}: must be a run with affinity and iterations of propagation. "
            f"Received: rates={config.rates}, {refinement.iterations} iterations"
        )
    source = load_source(config.dataset, config.val_split, config.data_dir)
    rows = measure(model, source, config.affinity_rates, refinement)
    columns = [f"n{count}" for count in COUNTS] + ["mIoU, 0", f"mIoU, {refinement.iterations}"]
    print("share of true" + "".join(f"{name:>10}" for name in columns))
    for row in rows:
        values = [*(row[f"accuracy_n{count}"] for count in COUNTS), *row["mean_iou"]]
        print(f"{100 * row['share']:>11.0f} %" + "".join(f"{100 * each:10.2f}" for each in values))
    settings = {"split": config.val_split, "checkpoint": _CHECKPOINT.value, "images": len(source)}
    measured = {**settings, "refinement": refinement.to_config(), "shares": rows}
    write_json(Path(_OUTPUT.value), {**run_record(model_dir), "mixed_affinity": measured})
