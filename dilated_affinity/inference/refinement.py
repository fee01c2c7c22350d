"""The settings of refinement (section 3.3) as one value."""

import dataclasses
import warnings

from dilated_affinity.affinity.affinities import (
    STEEPNESS,
    THRESHOLD,
    check_steepness,
    steep_sigmoid,
    symmetric_logits,
)
from dilated_affinity.affinity.early_stopping import EarlyStop
from dilated_affinity.affinity.propagation import (
    ITERATIONS,
    SELF_WEIGHT,
    AffinityPropagation,
    check_settings,
)
from dilated_affinity.baselines.crf import DenseCRF
from dilated_affinity.errors import ConfigError
from dilated_affinity.inference.refiners import METHODS, RENAMED

_CONFIG_NAMES = {
    "self_weight": "self_weight",
    "mu": "mu",
    "threshold": "affinity_threshold",
    "symmetric": "symmetric_affinity",
}
"""Settings of a run by the fields of `Refinement`, for Eq. 6 and 7."""


@dataclasses.dataclass(frozen=True)
class Refinement:
    """The method of refinement and its settings. The defaults are the paper's.

    Attributes:
        iterations: Number of iterations, at least 0: of Eq. 6, or of the CRF's mean field.
        self_weight: lambda of Eq. 6, at least 0.
        mu: Steepness of Eq. 7, above 1.
        threshold: tau, the affinity logit at which Eq. 7 gives 0.5, see `steep_sigmoid`.
        symmetric: Whether to average the logits of both directions of a pair, see
            `symmetric_logits`.
        variant: The method, a value of `Config.refine`: `"none"`; `"propagation"`, Eq. 6 at every
            pixel; `"propagation_decoder_stride"`, Eq. 6 at the pixels where the decoder has
            features, and bilinear interpolation between them; `"propagation_early_stop"`, until
            the labels have converged; or `"crf"`, a dense CRF.
        stop: When `"propagation_early_stop"` ends.
        crf: The CRF of `"crf"`, whose iterations are the attribute `iterations`.

    Raises:
        ConfigError: For a value out of its range.

    Example:

    >>> Refinement(iterations=3, mu=50.0).replace(threshold=1.0).threshold
    1.0
    """

    iterations: int = ITERATIONS
    self_weight: float = SELF_WEIGHT
    mu: float = STEEPNESS
    threshold: float = THRESHOLD
    symmetric: bool = False
    variant: str = "propagation"
    stop: EarlyStop = EarlyStop()
    crf: DenseCRF = DenseCRF()

    def __post_init__(self):
        check_settings(self.iterations, self.self_weight)
        check_steepness(self.mu, self.threshold)
        if self.variant in RENAMED:
            new = RENAMED[self.variant]
            text = f"the refinement {self.variant} is called {new} since version 0.2.0."
            warnings.warn(text, FutureWarning, stacklevel=3)
            object.__setattr__(self, "variant", new)
        if self.variant not in METHODS:
            raise ConfigError(
                f"refinement must be one of {', '.join(METHODS)}, a Refinement, an EarlyStop, or a "
                f"DenseCRF. Received: refinement={self.variant!r}"
            )

    @classmethod
    def from_config(cls, config):
        """Makes the refinement of a run's settings, with 0 iterations for `refine="none"`."""
        crf = {name: getattr(config, f"crf_{name}") for name in _field_names(DenseCRF)}
        return cls(
            config.refinement_iterations,
            **{field: getattr(config, name) for field, name in _CONFIG_NAMES.items()},
            variant=config.refine,
            stop=EarlyStop(config.stop_patience, config.stop_tolerance),
            crf=DenseCRF(**crf),
        )

    @property
    def propagates(self) -> bool:
        """Whether the method propagates by affinity."""
        return METHODS[self.variant].propagates

    def replace(self, **changes):
        """Returns a copy with some settings changed."""
        return dataclasses.replace(self, **changes)

    def to_config(self) -> dict:
        """Returns the settings of propagation by their names in `Config`."""
        values = {name: getattr(self, field) for field, name in _CONFIG_NAMES.items()}
        return {"propagation_iterations": self.iterations, **values}

    def layer(self, rates, layer_class=AffinityPropagation, **more) -> AffinityPropagation:
        """Returns the layer that propagates with these settings.

        Args:
            rates: (vertical, horizontal) pairs, in pixels of the layer's inputs.
            layer_class: `AffinityPropagation` or a subclass of it.
            **more: Further arguments of that class.
        """
        settings = {field: getattr(self, field) for field in _CONFIG_NAMES}
        return layer_class(rates, self.iterations, **settings, **more)

    def affinities(self, logits, rates, valid_mask=None):
        """Returns the affinities to propagate with (Eq. 7).

        Args:
            logits: float32 (B, H, W, 8|R|).
            rates: (vertical, horizontal) pairs, in pixels of `logits`.
            valid_mask: bool (B, H, W), which pixels belong to the image; None for all.

        Returns:
            float32 (B, H, W, 8|R|), in [0, 1].
        """
        if self.symmetric:
            logits = symmetric_logits(logits, rates, valid_mask)
        return steep_sigmoid(logits, self.mu, self.threshold)


def as_refinement(refinement=None, **settings) -> Refinement:
    """Makes a `Refinement` from what public functions accept.

    Args:
        refinement: A `Refinement`; the name of a method, an `EarlyStop` or a `DenseCRF`, otherwise
            with the paper's settings; or None for all of the paper's.
        **settings: Fields of `Refinement` to replace; those that are None keep their value.

    Raises:
        ConfigError: For anything else, or a value out of its range.

    Example:

    >>> as_refinement("propagation_decoder_stride", iterations=3).variant
    'propagation_decoder_stride'
    """
    fields = _field_names(Refinement)
    unknown = settings.keys() - set(fields)
    if unknown:
        raise ConfigError(
            f"settings of the refinement are {', '.join(fields)}. "
            f"Received: {', '.join(sorted(unknown))}"
        )
    if refinement is None:
        refinement = Refinement()
    elif isinstance(refinement, EarlyStop):
        refinement = Refinement(variant="propagation_early_stop", stop=refinement)
    elif isinstance(refinement, DenseCRF):
        refinement = Refinement(refinement.iterations, variant="crf", crf=refinement)
    elif not isinstance(refinement, Refinement):
        refinement = Refinement(variant=refinement)
    return refinement.replace(
        **{name: value for name, value in settings.items() if value is not None}
    )


def _field_names(kind):
    return [field.name for field in dataclasses.fields(kind)]
