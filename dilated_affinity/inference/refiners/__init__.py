"""Methods of refinement, a module each, and the table that names them. Needs no TensorFlow.

A new method is a module with a subclass of `Refiner` and a line in `METHODS`. `Config.refine`, the
flag `--refine`, and everything that refines predictions follow from that line.
"""

import dataclasses
import importlib


@dataclasses.dataclass(frozen=True)
class Method:
    """A method of refinement.

    Attributes:
        implementation: Module in this package and class in it, `"module:Class"`.
        title: Name in tables and messages, after "iterations of".
        iterations: Name of the setting of its iterations; None for a method without any.
        propagates: Whether it propagates by affinity.
    """

    implementation: str
    title: str
    iterations: str | None = "propagation_iterations"
    propagates: bool = True

    def load(self) -> type:
        """The subclass of `Refiner`."""
        module, name = self.implementation.split(":")
        return getattr(importlib.import_module(f"{__name__}.{module}"), name)


METHODS = {
    "none": Method("base:Refiner", "propagation", None, propagates=False),
    "propagation": Method("propagation:Propagation", "propagation"),
    "propagation_decoder_stride": Method(
        "decoder_stride:DecoderStridePropagation", "propagation at the decoder's stride"
    ),
    "propagation_early_stop": Method(
        "early_stop:EarlyStopPropagation", "propagation with early stopping"
    ),
    "crf": Method("crf:CRF", "a dense CRF", "crf_iterations", propagates=False),
}
"""Every method by its name, the value of `Config.refine` and `Refinement.variant`."""

RENAMED = {
    "exact": "propagation",
    "decoder_stride": "propagation_decoder_stride",
    "early_stop": "propagation_early_stop",
}
"""Variants of propagation by their names in version 0.1.0."""


def renamed_refine(postprocess="propagate", refinement="exact") -> str:
    """Returns the method that two settings of version 0.1.0 named.

    >>> renamed_refine("propagate", "decoder_stride"), renamed_refine("crf", "decoder_stride")
    ('propagation_decoder_stride', 'crf')
    """
    return RENAMED.get(refinement, refinement) if postprocess == "propagate" else postprocess


def make_refiner(model, refinement):
    """The `Refiner` of a model's predictions.

    Args:
        model: As `DeepLabV3Plus` builds it.
        refinement: `Refinement`.

    Raises:
        ConfigError: If the model does not allow the method, or a package that it needs is missing.
    """
    return METHODS[refinement.variant].load()(model, refinement)
