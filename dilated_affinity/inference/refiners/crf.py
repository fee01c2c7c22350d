"""Refinement by a dense CRF (Table 5) in the place of propagation."""

import dataclasses
import itertools

from keras import ops

from dilated_affinity.errors import ConfigError
from dilated_affinity.inference.refiners.base import Refiner


class CRF(Refiner):
    """Refines the probabilities of an image by `DenseCRF`; the model's affinity is not used.

    `map` works on several images at once, each in a process of its own, see `DenseCRF.map`.

    Raises:
        ConfigError: If the extra `crf` is not installed.
    """

    def __init__(self, model, refinement):
        super().__init__(model, refinement)
        refinement.crf.check_installed()

    def __call__(self, outputs, iterations=None):
        return next(self.map([outputs], iterations))

    def map(self, outputs, iterations=None):
        counts = self.counts(iterations)
        streams = itertools.tee(outputs, len(counts))
        columns = [
            self._column(count, stream) for count, stream in zip(counts, streams, strict=True)
        ]
        return (iter(column) for column in zip(*columns, strict=True))

    def _column(self, count, outputs):
        """Yields the probabilities of each image after a number of iterations."""
        if not count:
            return (each.probabilities for each in outputs)
        crf = dataclasses.replace(self.refinement.crf, iterations=count)
        pairs = ((each.image, ops.convert_to_numpy(each.probabilities)[0]) for each in outputs)
        return (refined[None] for refined in crf.map(pairs))

    def in_graph(self, images):
        raise ConfigError(
            "a dense CRF cannot be a part of a Keras model or an export; refine by propagation "
            "(--refine=propagation) or not at all (none). Received: refine='crf'"
        )
