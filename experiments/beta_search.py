"""Searches beta and what it multiplies, then lambda, mu and iterations, on a part of train.

The paper selects them by cross-validation (sections 3.2 and 4.2) and does not say on what. Here
the first 80 % of train are trained on and the last 20 % decide, so that the reported split plays no
part. For each variant every beta of a grid is tried, on the mean of the affinity loss over channels
and on their sum (`affinity_reduction`; the sum is 8|R| times as large); what gives the best mIoU
before propagation is kept, and with its first seed's model all combinations of lambda, mu and
iterations are compared.

    python -m experiments.beta_search --data_dir=VOC
    python -m experiments.beta_search --dataset=camvid --scale=small --data_dir=CamVid \\
        --backbone_weights=mobilenet_v2_imagenet_notop.weights.h5 \\
        --variant=rates_8_16 --variant=rates_8_12x24_16
    python -m experiments.beta_search --dataset=shapes --scale=smoke --multiples=1,2 \\
        --variant=rates_8_16

Writes `choices_<dataset>_<scale>.json`, which every table reads: search first. What is in it is not
searched again; a run recorded with other settings has to be removed by hand.

Cost: a run for each beta, reduction, variant and seed, each as in Table 1.
"""

import dataclasses
import itertools
import re
import statistics

from absl import flags, logging

from dilated_affinity.affinity.loss import AFFINITY_REDUCTIONS
from dilated_affinity.cli import app
from dilated_affinity.datasets.registry import load_source
from dilated_affinity.errors import ConfigError
from dilated_affinity.evaluation import evaluate as evaluation
from dilated_affinity.evaluation import search
from experiments.records import write_json
from experiments.runs import define_flags, last_model
from experiments.variants import VARIANTS

_SEARCHED = [name for name, variant in VARIANTS.items() if variant.has_affinity]

_MULTIPLES = flags.DEFINE_list(
    "multiples", ["0.25", "0.5", "1", "2", "4"], "Grid of beta, as multiples of the default."
)
_REDUCTIONS = flags.DEFINE_multi_enum(
    "reduction",
    AFFINITY_REDUCTIONS,
    AFFINITY_REDUCTIONS,
    "Of the affinity loss over channels, which beta multiplies; may be given several times.",
)
_VARIANTS = flags.DEFINE_multi_enum(
    "variant", _SEARCHED, _SEARCHED, "Runs to search for; may be given several times."
)


def main():
    """Entry point."""
    make_queue = define_flags()

    app.run(
        lambda: search_for(
            make_queue(), _VARIANTS.value, _numbers(_MULTIPLES.value), _REDUCTIONS.value
        )
    )


def search_for(queue, variants, multiples, reductions):
    """Chooses for each variant for which nothing has been chosen yet, and prints the choice."""
    for variant in variants:
        if variant not in queue.choices():
            choice = choose(queue, variant, multiples, reductions)
            # Read again: another search may have written meanwhile.
            choices = {**queue.choices(), variant: choice}
            write_json(queue.choices_path, {"choices": choices})
        print(f"{variant}: {queue.choices()[variant]}")


def choose(queue, variant, multiples, reductions) -> dict:
    """Beta, what it multiplies, and refinement of one variant, and all that was tried."""
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
    """The queue, its runs of this reduction."""
    return dataclasses.replace(queue, given={**queue.given, "affinity_reduction": reduction})


def _mean_iou(queue, variant, seed, beta):
    _, model, source = _trained(queue, variant, seed, beta)
    return evaluation.evaluate(model, source, (0,)).mean_iou[0]


def _trained(queue, variant, seed, beta):
    """A run on a part of train, trained now unless it is, and the rest of train."""
    whole = queue.config(variant, seed)
    begin, end = _parts(whole.train_split)
    config = queue.config(variant, seed, beta=beta, train_split=begin, val_split=end)
    # Of the mean by beta alone, as before there was a choice.
    reduction = "" if config.affinity_reduction == "mean" else f"_{config.affinity_reduction}"
    model_dir = queue.runs_dir / f"{queue.name(variant, seed)}_beta{beta:g}{reduction}"
    queue.train(config, model_dir)
    return config, last_model(config, model_dir), load_source(config.dataset, end, config.data_dir)


def _parts(split):
    """The first 80 % and the rest of a split, or of a part of one that is written `train[:n]`."""
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


if __name__ == "__main__":
    main()
