"""Propagation that ends for an image when its labels have converged."""

import dataclasses

from dilated_affinity.affinity.early_stopping import (
    EarlyStoppingPropagation,
    propagate_until_stable,
)
from dilated_affinity.inference.refiners.propagation import Propagation


class EarlyStopPropagation(Propagation):
    """Propagates for the iterations of the settings at most, see `EarlyStop`."""

    def states(self, probabilities, affinities, counts, valid):
        for count in counts:
            if not count:
                yield probabilities
                continue
            # From the start: resumed, it would not know for how long labels have been stable.
            settings = count, self.refinement.self_weight, valid, self.refinement.stop
            yield propagate_until_stable(probabilities, affinities, self.rates, *settings)

    def layer(self):
        stop = dataclasses.asdict(self.refinement.stop)
        return self.refinement.layer(self.rates, EarlyStoppingPropagation, **stop)
