"""Adaptive affinity fields as an objective, a row of Table 5."""

from dilated_affinity.baselines.aaf import AdaptiveAffinityFieldLoss, AdaptiveSizeWeights
from dilated_affinity.training.objectives.objective import Objective, TrainedOutput


class AAFObjective(Objective):
    """The AAF loss on the class logits, with learned weights of its window sizes."""

    class_layers = ("aaf",)

    def targets(self, labels, config):
        return {"aaf": labels}

    def extra_outputs(self, model, config):
        # A layer of the saved model, so that the optimizer trains it and checkpoints hold it.
        semantic = model.output["semantic"]
        return {"aaf": AdaptiveSizeWeights(semantic.shape[-1], name="aaf")(semantic)}

    def outputs(self, model, config, statistics=None, class_weights=None):
        batches = config.train_steps * config.accumulation
        return {"aaf": TrainedOutput(AdaptiveAffinityFieldLoss(model.get_layer("aaf"), batches))}

    def multipliers(self, config):
        # The size weights have the backbone's learning rate in the authors' code.
        return {"aaf": 1.0}
