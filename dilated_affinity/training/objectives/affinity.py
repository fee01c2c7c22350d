"""The paper's objective: dilated affinity, and optionally the probabilities refined by it."""

import keras
from keras import ops

from dilated_affinity.affinity.learned import LearnedPropagation
from dilated_affinity.affinity.loss import AffinityLoss
from dilated_affinity.affinity.targets import affinity_targets
from dilated_affinity.datasets.classes import IGNORE_LABEL
from dilated_affinity.evaluation.metrics import AffinityAccuracy, PixelAccuracy
from dilated_affinity.inference.refinement import Refinement
from dilated_affinity.inference.refiners.decoder_stride import decoder_resize, divided_rates
from dilated_affinity.models.resize import AlignedResize
from dilated_affinity.models.training_model import at_decoder_stride
from dilated_affinity.training.losses import SemanticLoss
from dilated_affinity.training.objectives.objective import Objective, TrainedOutput

_SMALLEST_PROBABILITY = 1e-7

LEARNED = "learned_propagation"
"""Layer and output of the saved model that hold the settings learned in training."""


class AffinityObjective(Objective):
    """The affinity loss of section 3.2; with `train_propagation` also a loss after propagation.

    The model that is fitted has its affinity logits at the decoder's stride. `AffinityLoss`
    resizes them itself there, which takes less time and memory than the model would.
    """

    predicts_affinity = True

    def targets(self, labels, config):
        if config.affinity_rates is None:
            return {}
        targets = {"affinity": affinity_targets(labels, config.affinity_rates, IGNORE_LABEL)}
        if config.train_propagation:
            targets["refined"] = labels
        return targets

    def extra_outputs(self, model, config):
        if not config.train_refinement:
            return {}
        # A layer of the saved model, so that the optimizer trains it and checkpoints hold it.
        return {LEARNED: _refined_at_decoder_stride(model, config)}

    def outputs(self, model, config, statistics=None, class_weights=None):
        if statistics is None:
            return {}
        return {"affinity": _affinity_output(config, statistics)}

    def fitted_outputs(self, model, config, statistics=None, class_weights=None):
        if statistics is None:
            return {}
        outputs, grid = at_decoder_stride(model)
        logits = outputs["affinity"]
        fitted = {"affinity": _affinity_output(config, statistics, logits, **grid)}
        if config.train_propagation:
            fitted["refined"] = TrainedOutput(
                SemanticLoss(class_weights=class_weights),
                config.train_propagation_weight,
                (PixelAccuracy(),),
                _refined(model, config),
            )
        return fitted

    def multipliers(self, config):
        return {"affinity_logits": config.head_multiplier * config.affinity_head_multiplier}

    def check(self, model, config):
        if config.train_propagation:
            divided_rates(config.affinity_rates, decoder_resize(model).source_stride)


def _affinity_output(config, statistics, logits=None, **grid):
    loss = AffinityLoss(
        statistics,
        config.weighting,
        config.gamma,
        affinity_reduction=config.affinity_reduction,
        **grid,
    )
    metrics = (AffinityAccuracy(statistics.rates, **grid),)
    return TrainedOutput(loss, config.beta, metrics, logits)


def _refined(model, config):
    """Logarithms of the probabilities refined at the decoder's stride, at full resolution.

    As logits they give these probabilities again, so that the semantic loss takes them.
    """
    resize = decoder_resize(model)
    if config.train_refinement:
        refined = model.output[LEARNED]
    else:
        refined = _refined_at_decoder_stride(model, config)
    enlarge = AlignedResize(resize.source_stride, 1, resize.padding, dtype="float32")
    images = resize.input[1]
    return ops.log(ops.maximum(enlarge([refined, images]), _SMALLEST_PROBABILITY))


def _refined_at_decoder_stride(model, config):
    resize = decoder_resize(model)
    logits = at_decoder_stride(model)[0]["affinity"]
    refinement = Refinement.from_config(config).replace(
        iterations=config.train_propagation, variant="propagation"
    )
    rates = divided_rates(config.affinity_rates, resize.source_stride)
    if config.train_refinement:
        propagation = refinement.layer(rates, LearnedPropagation, name=LEARNED)
    else:
        propagation = refinement.layer(rates)
    probabilities = keras.layers.Softmax(dtype="float32")(resize.input[0])
    return propagation([probabilities, logits])
