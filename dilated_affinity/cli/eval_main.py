"""Evaluates a run, before and after refinement.

    eval_main --model_dir=runs/camvid
    eval_main --model_dir=runs/camvid --checkpoint=last
    eval_main --model_dir=runs/camvid --affinity_source=ground_truth
    eval_main --model_dir=runs/camvid --eval_scales=0.75,1,1.25 --eval_flip
    eval_main --model_dir=runs/camvid --refine=propagation_decoder_stride
    eval_main --model_dir=runs/camvid --refine=crf
    eval_main --model_dir=runs/camvid --search --val_split="train[:60]" --save

The data set, rates, output stride and other settings come from the run's config.json. The table is
printed, and its numbers are written to a JSON file.
"""

import dataclasses
import json
import math
from pathlib import Path

from absl import flags, logging

from dilated_affinity.cli import app, config_flags
from dilated_affinity.datasets.registry import load_source
from dilated_affinity.errors import ConfigError
from dilated_affinity.evaluation import evaluate as evaluation
from dilated_affinity.evaluation import search
from dilated_affinity.inference.refinement import Refinement
from dilated_affinity.run_dir.describe import log_run_summary, refinement_in_words, views_in_words
from dilated_affinity.run_dir.layout import chosen_checkpoint
from dilated_affinity.run_dir.load import load_run
from dilated_affinity.run_dir.selection_bias import selection_bias
from dilated_affinity.runtime.files import write_atomically
from dilated_affinity.training.run_calibration import save_searched
from dilated_affinity.visualization import refinement_search_figure

_SYMMETRIC = {"yes": (True,), "no": (False,), "both": (False, True)}

_given = config_flags.define(
    ("data_dir", "val_split", *config_flags.VIEWS, *config_flags.REFINEMENT, *config_flags.CRF)
)
_MODEL_DIR = flags.DEFINE_string("model_dir", None, "Folder of the run.")
_CALIBRATED = app.define_calibrated()
_CHECKPOINT = config_flags.define_checkpoint()
_ITERATIONS = flags.DEFINE_list(
    "propagation_iterations",
    [str(count) for count in evaluation.ITERATIONS],
    "Iterations of propagation to measure at, ascending; the default adds the run's own number.",
)
_AFFINITY_SOURCE = flags.DEFINE_enum(
    "affinity_source",
    "predicted",
    evaluation.AFFINITY_SOURCES,
    "Affinity to propagate with: predicted, or that of the ground truth, the oracle of Tables 3 "
    "and 4.",
)
_SEARCH = flags.DEFINE_bool(
    "search",
    False,
    "Try all combinations of --search_self_weights, --search_mus, --search_thresholds, "
    "--search_symmetric and --propagation_iterations instead, at full resolution. "
    "calibrate_main is faster.",
)
_SEARCH_SELF_WEIGHTS = flags.DEFINE_list(
    "search_self_weights", [f"{value:g}" for value in search.SELF_WEIGHTS], "Values of lambda."
)
_SEARCH_MUS = flags.DEFINE_list(
    "search_mus", [f"{value:g}" for value in search.STEEPNESSES], "Values of mu."
)
_SEARCH_THRESHOLDS = flags.DEFINE_list(
    "search_thresholds", [f"{value:g}" for value in search.THRESHOLDS], "Values of tau."
)
_SEARCH_SYMMETRIC = flags.DEFINE_enum(
    "search_symmetric",
    "yes",
    tuple(_SYMMETRIC),
    "Whether to average the logits of both directions of a pair.",
)
_SAVE = flags.DEFINE_bool(
    "save",
    False,
    "Save the best settings of the search in the run, for every command to use.",
)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "JSON file to write. Default: in model_dir evaluation_<affinity_source>.json, with "
    "--nocalibrated evaluation_given.json, with --refine=crf evaluation_crf.json, or search.json. "
    "A search also writes a plot with the ending .png.",
)

_COMPARED = (
    *("checkpoint", "split", "output_stride", "scales", "flip", "window", "refine"),
    *("self_weight", "mu", "affinity_threshold", "symmetric_affinity", "iterations"),
)
"""Keys in which two evaluations of a run may differ."""


def _evaluate():
    model_dir = Path(app.required(_MODEL_DIR.value, "model_dir"))
    config, model = load_run(model_dir, _CALIBRATED.value, _CHECKPOINT.value, **_given())
    # Now, and not when all is measured: training may find a better model meanwhile.
    step = chosen_checkpoint(model_dir, _CHECKPOINT.value)[1].step
    source = load_source(config.dataset, config.val_split, config.data_dir)
    if _SAVE.value and not _SEARCH.value:
        raise ConfigError("--save is of a search; add --search.")
    cautions = selection_bias(model_dir, _CHECKPOINT.value, config, source, _CALIBRATED.value)
    if _SEARCH.value:
        _search(config, model, step, source, cautions)
        return
    refinement = Refinement.from_config(config)
    iterations = _iterations(config, refinement)
    output = Path(_OUTPUT.value or model_dir / f"evaluation_{_name(refinement)}.json")
    _log_summary(config, model, source, refinement_in_words(config, iterations), output)
    _warn(model_dir, cautions)
    result = evaluation.evaluate(
        model, source, iterations, _AFFINITY_SOURCE.value, refinement, config.views
    )
    settings = refinement.to_config()
    del settings["propagation_iterations"]
    if refinement.variant == "crf":
        settings = {"crf": dataclasses.asdict(refinement.crf)}
    _show(result, output, config, step, {**settings, **result.to_json()})


def _name(refinement):
    """The end of the name of the JSON file."""
    if not refinement.propagates and refinement.variant != "none":
        return refinement.variant
    # Beside the evaluation of the calibrated settings, with which it is to be compared.
    given = not _CALIBRATED.value and _AFFINITY_SOURCE.value == "predicted"
    return "given" if given else _AFFINITY_SOURCE.value


def _search(config, model, step, source, cautions):
    if _AFFINITY_SOURCE.value != "predicted":
        raise ConfigError(
            "--search propagates with the predicted affinity. "
            f"Received: affinity_source={_AFFINITY_SOURCE.value!r}"
        )
    if not Refinement.from_config(config).propagates:
        config = config.replace(refine="propagation")
    refinement = Refinement.from_config(config)
    iterations = _iterations(config, refinement)
    grid = [_numbers(each) for each in (_SEARCH_SELF_WEIGHTS, _SEARCH_MUS, _SEARCH_THRESHOLDS)]
    grid.append(_SYMMETRIC[_SEARCH_SYMMETRIC.value])
    output = Path(_OUTPUT.value or Path(_MODEL_DIR.value, "search.json"))
    plot = output.with_suffix(".png")
    if output == plot:
        raise ConfigError(
            f"--output of a search is its JSON file; .png is the plot's. Received: {output}"
        )
    count = math.prod(map(len, grid))
    work = f"search of {count} settings at {len(iterations)} numbers of iterations"
    _log_summary(config, model, source, work, output)
    _warn(_MODEL_DIR.value, cautions)
    result = search.search_refinement(
        model,
        source,
        iterations,
        *grid,
        views=config.views,
        refinement=refinement,
    )
    _show(result, output, config, step, result.to_json())
    figure = refinement_search_figure(result)
    write_atomically(plot, lambda path: figure.savefig(path, dpi=120))
    if _SAVE.value:
        print(save_searched(Path(_MODEL_DIR.value), result.best, config.val_split, step))


def _warn(model_dir, cautions):
    for caution in cautions:
        logging.warning("%s: %s", model_dir, caution)


def _log_summary(config, model, source, work, output):
    images = f"{len(source)} images of {config.val_split}"
    work = f"{_CHECKPOINT.value} checkpoint; {views_in_words(config)}; {work}"
    log_run_summary(config, model, source.classes.num_classes, images, work, output)


def _show(result, output, config, step, measured):
    """Prints the table, and writes it as JSON with the settings behind it."""
    # Before the file, which may fail to be written.
    print(f"{config.dataset} {config.val_split}: {result.table()}")
    print(f"measured: the {_CHECKPOINT.value} checkpoint, of step {step}")
    early = config.refine == "propagation_early_stop"
    stop = {"patience": config.stop_patience, "tolerance": config.stop_tolerance} if early else {}
    content = {
        "dataset": config.dataset,
        "split": config.val_split,
        "checkpoint": _CHECKPOINT.value,
        "step": step,
        "output_stride": config.eval_output_stride,
        **dataclasses.asdict(config.views),
        "scales": list(config.views.scales),
        "refine": config.refine,
        **stop,
        **measured,
    }
    _warn_of_other_settings(output, content)
    write_atomically(output, (json.dumps(content, indent=1) + "\n").encode())


def _warn_of_other_settings(output, content):
    """Warns of an evaluation of other settings that is about to be replaced."""
    try:
        # Version 0.1.0 knew no other.
        earlier = {"checkpoint": "best", **json.loads(output.read_text(encoding="utf-8"))}
        # One of an earlier version lacks what is newer than it.
        known = [name for name in _COMPARED if name in earlier or name == "split"]
        others = {name: earlier[name] for name in known if name in content}
    except (OSError, ValueError, KeyError, TypeError):
        return  # none, or none of ours
    changed = [f"{name}={value}" for name, value in others.items() if value != content[name]]
    if changed:
        logging.warning(
            "%s: replaces an evaluation with %s; --output keeps both", output, ", ".join(changed)
        )


def _numbers(flag):
    try:
        return [float(value) for value in flag.value]
    except ValueError:
        raise ConfigError(
            f"--{flag.name} must be numbers separated by commas. Received: {','.join(flag.value)}"
        ) from None


def _iterations(config, refinement):
    given = flags.FLAGS["propagation_iterations"].present
    if not refinement.propagates:
        if given or _AFFINITY_SOURCE.value != "predicted":
            raise ConfigError(
                "--propagation_iterations and --affinity_source are for propagation. "
                f"Received: refine={refinement.variant!r}"
            )
        return tuple(sorted({0, refinement.iterations}))
    if config.affinity_rates is None and not given:
        return (0,)
    if not given:
        # Those that the settings stop at as well, such as a saved search found.
        return tuple(sorted({*evaluation.ITERATIONS, refinement.iterations}))
    try:
        return tuple(int(count) for count in _ITERATIONS.value)
    except ValueError:
        raise ConfigError(
            "--propagation_iterations must be whole numbers separated by commas. "
            f"Received: {','.join(_ITERATIONS.value)}"
        ) from None


def main():
    """Entry point of the console script."""
    app.run(_evaluate)


if __name__ == "__main__":
    main()
