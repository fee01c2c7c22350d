"""Searches beta and its loss reduction, then lambda, mu and iterations, on a part of train.

The paper selects them by cross-validation (sections 3.2 and 4.2) and does not say on which data.
Here models are trained on the first 80 % of train and compared on the last 20 %, so that the
reported split chooses nothing. For each variant every beta of a grid is tried with the mean of the
affinity loss over channels and with their sum (affinity_reduction; the sum is 8|R| times as
large). The pair with the best mIoU before propagation is kept, and all combinations of lambda, mu
and iterations are compared on the model of its first seed.

    python -m experiments.run beta_search --data_dir=VOC
    python -m experiments.run beta_search --dataset=camvid --scale=small --data_dir=CamVid \\
        --backbone_weights=mobilenet_v2_imagenet_notop.weights.h5 \\
        --variant=rates_8_16 --variant=rates_8_12x24_16
    python -m experiments.run beta_search --dataset=shapes --scale=smoke --multiples=1,2 \\
        --variant=rates_8_16

Writes choices_<dataset>_<scale>.json, which every table reads, so search first. A variant in that
file is not searched again; a run recorded with other settings has to be removed by hand.

Cost: a run for each beta, reduction, variant and seed, each as in Table 1.
"""

import dataclasses
import itertools
import re
import statistics

from absl import flags, logging

from dilated_affinity.affinity.loss import AFFINITY_REDUCTIONS
from dilated_affinity.datasets.registry import load_source
from dilated_affinity.errors import ConfigError
from dilated_affinity.evaluation import evaluate as evaluation
from dilated_affinity.evaluation import search
from experiments.records import write_json
from experiments.run_queue import last_model
from experiments.variants import VARIANTS

_SEARCHED = [name for name, variant in VARIANTS.items() if variant.has_affinity]


def define_flags(**where):
    """Defines the flags of the search; `where` says for which module, as absl takes it."""
    flags.DEFINE_list(
        "multiples",
        ["0.25", "0.5", "1", "2", "4"],
        "Grid of beta, as multiples of the default.",
        **where,
    )
    flags.DEFINE_multi_enum(
        "reduction",
        AFFINITY_REDUCTIONS,
        AFFINITY_REDUCTIONS,
        "Reduction of the affinity loss over channels, which beta multiplies.",
        **where,
    )
    flags.DEFINE_multi_enum(
        "variant",
        _SEARCHED,
        _SEARCHED,
        "Runs to search for.",
        **where,
    )


def run(queue):
    """Searches as the flags say."""
    values = flags.FLAGS
    search_for(queue, values.variant, _numbers(values.multiples), values.reduction)


def search_for(queue, variants, multiples, reductions):
    """Searches for each variant without a choice so far, and prints the choices."""
    for variant in variants:
        if variant not in queue.choices():
            choice = choose(queue, variant, multiples, reductions)
            # Read again: another search may have written meanwhile.
            choices = {**queue.choices(), variant: choice}
            write_json(queue.choices_path, {"choices": choices})
        print(f"{variant}: {queue.choices()[variant]}")


def choose(queue, variant, multiples, reductions) -> dict:
    """The best beta, reduction and refinement of a variant, with the results of all others."""
    tried = {}
    betas = [queue.default_beta(variant) * multiple for multiple in multiples]
    for reduction, beta in itertools.product(reductions, betas):
        found = [_mean_iou(_of(queue, reduction), variant, seed, beta) for seed in queue.seeds]
        logging.info("%s: beta %g of the %s, mIoU %s", variant, beta, reduction, found)
        tried[reduction, beta] = found
    reduction, best = max(tried, key=lambda pair: statistics.fmean(tried[pair]))
    config, model, source = _trained(_of(queue, reduction), variant, queue.seeds[0], best)
    found = search.search_refinement(model, source)
    return {
        "affinity_reduction": reduction,
        "beta": best,
        "refinement": {**found.best.to_config(), "mean_iou": found.best_mean_iou},
        "trained_on": config.train_split,
        "decided_on": config.val_split,
        "betas": [
            {"affinity_reduction": reduction, "beta": beta, "mean_iou": values}
            for (reduction, beta), values in tried.items()
        ],
        "refinements": found.to_json(),
    }


def _of(queue, reduction):
    """The queue with this reduction of the affinity loss."""
    return dataclasses.replace(queue, given={**queue.given, "affinity_reduction": reduction})


def _mean_iou(queue, variant, seed, beta):
    _, model, source = _trained(queue, variant, seed, beta)
    return evaluation.evaluate(model, source, (0,)).mean_iou[0]


def _trained(queue, variant, seed, beta):
    """Settings and model of a run on the first part of train, and the rest of train as a source."""
    whole = queue.config(variant, seed)
    begin, end = _parts(whole.train_split)
    config = queue.config(variant, seed, beta=beta, train_split=begin, val_split=end)
    # The mean is not named, so that runs of version 0.1.0 are found.
    reduction = "" if config.affinity_reduction == "mean" else f"_{config.affinity_reduction}"
    model_dir = queue.runs_dir / f"{queue.name(variant, seed)}_beta{beta:g}{reduction}"
    queue.train(config, model_dir)
    return config, last_model(config, model_dir), load_source(config.dataset, end, config.data_dir)


def _parts(split):
    """The first 80 % and the rest of a split such as `train` or `train[:n]`."""
    found = re.fullmatch(r"(\w+)(?:\[:(\d+)\])?", split)
    if not found:
        raise ConfigError(f"Cannot divide this split. Received: train_split={split!r}")
    name, size = found.groups()
    if size is None:
        return f"{name}[:80%]", f"{name}[80%:]"
    border = int(size) * 4 // 5
    return f"{name}[:{border}]", f"{name}[{border}:{size}]"


def _numbers(texts):
    try:
        return [float(text) for text in texts]
    except ValueError:
        raise ConfigError(
            f"--multiples must be numbers separated by commas. Received: {','.join(texts)}"
        ) from None
