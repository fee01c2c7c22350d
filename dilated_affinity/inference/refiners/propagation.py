"""Refinement by affinity propagation (section 3.3, Eq. 6) at every pixel."""

import numpy as np

from dilated_affinity.affinity.propagation import propagate
from dilated_affinity.inference.padding import crop
from dilated_affinity.inference.refiners.base import Refiner
from dilated_affinity.models.deeplab import affinity_rates


class Propagation(Refiner):
    """Propagates class probabilities by affinity; a model without affinity is left as it is.

    It works on the padded tensors of `ImageOutputs`, behind a mask, so that propagation is compiled
    for few shapes. Subclasses change where (`on_grid`, `at_image_size`) or how (`states`, `layer`).
    """

    def __init__(self, model, refinement):
        super().__init__(model, refinement)
        self.rates = affinity_rates(model)

    def __call__(self, outputs, iterations=None):
        counts = self.counts(iterations)
        if self.rates is None or not any(counts):
            yield from super().__call__(outputs, counts)
            return
        given = outputs.given is not None
        probabilities, affinity, valid = (
            self.on_grid(values, outputs.size)
            for values in (
                outputs.padded_probabilities,
                outputs.given if given else outputs.padded_affinity,
                outputs.pad(np.ones(outputs.size, bool)),
            )
        )
        if not given:
            affinity = self.refinement.affinities(affinity, self.rates, valid)
        states = self.states(probabilities, affinity, counts, valid)
        for count, state in zip(counts, states, strict=True):
            yield self.at_image_size(state, outputs) if count else outputs.probabilities

    def on_grid(self, values, size):
        """The pixels of a padded map (1, h, w, ...) at which to propagate, for a size of image."""
        return values

    def at_image_size(self, state, outputs):
        """Probabilities (1, H, W, C) of the image from those at which propagation arrived."""
        return crop(state, outputs.size)

    def states(self, probabilities, affinities, counts, valid):
        """Yields the probabilities (B, h, w, C) after each of ascending numbers of iterations."""
        return propagated(self.refinement, self.rates, probabilities, affinities, counts, valid)

    def in_graph(self, images):
        logits, probabilities = super().in_graph(images)
        if self.rates is not None:
            probabilities = self.layer()([probabilities, logits["affinity"]])
        return logits, probabilities

    def layer(self):
        """The layer over probabilities and affinity logits on the grid of `rates`."""
        return self.refinement.layer(self.rates)


def propagated(refinement, rates, probabilities, affinities, counts, valid):
    """Yields the probabilities after each of ascending numbers of iterations of Eq. 6.

    Args:
        refinement: `Refinement`, for lambda.
        rates: (vertical, horizontal) pairs.
        probabilities: float32 (B, h, w, C).
        affinities: float32 (B, h, w, 8|R|), in [0, 1].
        counts: The numbers of iterations.
        valid: bool (B, h, w), which pixels belong to the image.
    """
    done = 0
    for count in counts:
        if count > done:
            settings = count - done, refinement.self_weight, valid
            probabilities = propagate(probabilities, affinities, rates, *settings)
            done = count
        yield probabilities
