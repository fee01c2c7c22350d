"""Writes a finished run of train_main as one JSON record to experiments/results.

    eval_main --model_dir=runs/camvid --checkpoint=last
    eval_main --model_dir=runs/camvid --checkpoint=last --affinity_source=ground_truth
    eval_main --model_dir=runs/camvid --checkpoint=last --nocalibrated
    python -m experiments.run record_run --model_dir=runs/camvid --name=camvid_recipe

The record holds the settings, the log, the calibration, the evaluations (--nocalibrated is
optional), package versions and the hardware, without folders of this machine. Evaluations must be
of the last checkpoint, so that the reported split chooses nothing.
"""

from pathlib import Path

from absl import flags

from dilated_affinity.cli import app
from dilated_affinity.errors import DataError
from dilated_affinity.evaluation.evaluate import AFFINITY_SOURCES
from dilated_affinity.run_dir.layout import chosen_checkpoint
from experiments.records import RESULTS, read_json, run_record, write_json

_MODEL_DIR = flags.DEFINE_string("model_dir", None, "Folder of the run.")
_NAME = flags.DEFINE_string("name", None, "Name of the JSON file, without .json.")


def main():
    """Entry point."""
    app.run(_record)


def _record():
    model_dir = Path(app.required(_MODEL_DIR.value, "model_dir"))
    output = RESULTS / f"{app.required(_NAME.value, 'name')}.json"
    given = ("given",) if (model_dir / "evaluation_given.json").is_file() else ()
    evaluation = {
        name: read_json(model_dir / f"evaluation_{name}.json")
        for name in (*AFFINITY_SOURCES, *given)
    }
    step = chosen_checkpoint(model_dir, "last")[1].step
    for name, content in evaluation.items():
        if content.get("step") != step:
            raise DataError(
                f"{model_dir}/evaluation_{name}.json: must be of step {step}, the last; "
                f"evaluate again with --checkpoint=last. Received: step {content.get('step')}"
            )
    write_json(output, {**run_record(model_dir), "evaluation": evaluation})
    print(output)
