"""Boundary reweighting as an objective, a row of Table 5."""

from dilated_affinity.baselines.boundary import boundary_weights
from dilated_affinity.datasets.classes import IGNORE_LABEL
from dilated_affinity.training.objectives.objective import Objective


class BoundaryObjective(Objective):
    """Larger weights of the semantic loss near the boundaries of classes."""

    def sample_weights(self, labels, config):
        weights = boundary_weights(
            labels,
            config.boundary_amplitude,
            config.boundary_sigma,
            IGNORE_LABEL,
            normalize=True,
        )
        return {"semantic": weights}
