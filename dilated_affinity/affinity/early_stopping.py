"""Affinity propagation (section 3.3) that stops when labels have converged."""

import dataclasses

import keras
from keras import ops

from dilated_affinity.affinity.affinities import STEEPNESS, THRESHOLD
from dilated_affinity.affinity.forms import select
from dilated_affinity.affinity.propagation import (
    ITERATIONS,
    SELF_WEIGHT,
    AffinityPropagation,
    checked_arguments,
)
from dilated_affinity.errors import ConfigError
from dilated_affinity.runtime.xla import compiled

PATIENCE = 1
TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class EarlyStop:
    """Criterion for stopping propagation before its last iteration.

    Attributes:
        patience: Consecutive iterations without change after which to stop, at least 1.
        tolerance: Largest share of an image's pixels, in [0, 1), whose labels may change in an
            iteration that counts as one without change. With 0, propagation of photographs takes
            more than 10 iterations.

    Raises:
        ConfigError: If a value is out of range.
    """

    patience: int = PATIENCE
    tolerance: float = TOLERANCE

    def __post_init__(self):
        if type(self.patience) is not int or self.patience < 1:
            raise ConfigError(
                f"patience must be a positive whole number. Received: patience={self.patience!r}"
            )
        if not 0 <= self.tolerance < 1:
            raise ConfigError(
                f"tolerance must be at least 0 and below 1. Received: tolerance={self.tolerance!r}"
            )


def propagate_until_stable(
    probabilities,
    affinities,
    rates,
    iterations=ITERATIONS,
    self_weight=SELF_WEIGHT,
    valid_mask=None,
    stop=None,
    storage_dtype="float32",
):
    """Applies `propagate` to each image until its labels have converged.

    Each image of a batch stops independently, so its result does not depend on the others. The
    batch takes the time of its slowest image. There is no gradient.

    Args:
        probabilities: See `propagate`.
        affinities: See `propagate`.
        rates: See `propagate`.
        iterations: Maximum number of iterations of Eq. 6, at least 0. Defaults to 10.
        self_weight: lambda of Eq. 6, at least 0. Defaults to 6.
        valid_mask: See `propagate`. Pixels outside it do not count towards `tolerance`.
        stop: `EarlyStop`; None for its defaults.
        storage_dtype: See `propagate`.

    Returns:
        float32 probabilities of shape (B, H, W, C).

    Raises:
        ConfigError: As `propagate`.

    Example:

    >>> import numpy as np
    >>> probabilities = np.full((1, 5, 7, 2), 0.5, "float32")
    >>> affinities = np.ones((1, 5, 7, 8), "float32")
    >>> propagate_until_stable(probabilities, affinities, ((1, 1),)).shape
    TensorShape([1, 5, 7, 2])
    """
    stop = stop or EarlyStop()
    select.check_storage_dtype(storage_dtype)
    probabilities, affinities, valid, rates, self_weight = checked_arguments(
        probabilities, affinities, rates, iterations, self_weight, valid_mask
    )
    refined, _ = _propagate_until_stable(
        # XLA cannot differentiate a loop whose length depends on data.
        ops.stop_gradient(probabilities),
        ops.stop_gradient(affinities),
        valid,
        ops.convert_to_tensor(int(iterations), "int32"),
        self_weight,
        ops.convert_to_tensor(stop.patience, "int32"),
        ops.convert_to_tensor(stop.tolerance, "float32"),
        rates,
        select.suitable_form(storage_dtype),
        storage_dtype,
    )
    return refined[..., : probabilities.shape[-1]]


@compiled
def _propagate_until_stable(
    probabilities, affinities, valid, iterations, self_weight, patience, tolerance, rates, *form
):
    """Returns refined probabilities, their class axis possibly padded, and the iterations done."""
    grid = select.grid(*form, probabilities, affinities, valid, self_weight, rates)
    counted = ops.ones_like(probabilities[..., :1]) if valid is None else valid
    allowed = tolerance * ops.sum(counted, axis=(1, 2, 3))

    def unfinished(step, _, unchanged):
        return ops.logical_and(step < iterations, ops.any(unchanged < patience))

    def iterate(step, current, unchanged):
        active = ops.reshape(unchanged < patience, (-1,) + (1,) * (len(current.shape) - 1))
        refined = ops.where(active, grid.step(current), current)
        changed = grid.changed(current, refined)
        return step + 1, refined, ops.where(changed <= allowed, unchanged + 1, 0)

    unchanged = ops.zeros_like(allowed, "int32")
    start = ops.zeros_like(iterations), grid.start(probabilities), unchanged
    steps, refined, _ = ops.while_loop(unfinished, iterate, start)
    return grid.end(refined, probabilities), steps


@keras.saving.register_keras_serializable("dilated_affinity")
class EarlyStoppingPropagation(AffinityPropagation):
    """Layer that applies `propagate_until_stable` to probabilities and affinity logits, in float32.

    Args:
        rates: See `AffinityPropagation`.
        iterations: Maximum number of iterations of Eq. 6. Defaults to 10.
        self_weight: lambda of Eq. 6. Defaults to 6.
        mu: Steepness of Eq. 7. Defaults to 7.
        threshold: See `AffinityPropagation`.
        symmetric: See `AffinityPropagation`.
        patience: See `EarlyStop`.
        tolerance: See `EarlyStop`.

    Call arguments:
        inputs: `[probabilities, affinity_logits]` of shapes (B, H, W, C) and (B, H, W, 8|R|).
        valid_mask: Optional boolean (B, H, W), see `propagate`.

    Returns:
        float32 probabilities of shape (B, H, W, C).
    """

    def __init__(
        self,
        rates,
        iterations=ITERATIONS,
        self_weight=SELF_WEIGHT,
        mu=STEEPNESS,
        threshold=THRESHOLD,
        symmetric=False,
        patience=PATIENCE,
        tolerance=TOLERANCE,
        **kwargs,
    ):
        super().__init__(rates, iterations, self_weight, mu, threshold, symmetric, **kwargs)
        self.stop = EarlyStop(patience, tolerance)

    def call(self, inputs, valid_mask=None):
        probabilities, logits = inputs
        return propagate_until_stable(
            probabilities,
            self.affinities(logits, valid_mask),
            self.rates,
            self.iterations,
            self.self_weight,
            valid_mask,
            self.stop,
            self.storage_dtype,
        )

    def get_config(self):
        return {**super().get_config(), **dataclasses.asdict(self.stop)}
