"""Section 3.3: refinement by affinity propagation, Eq. 6."""

import keras
from keras import ops

from dilated_affinity.affinity.affinities import (
    STEEPNESS,
    THRESHOLD,
    check_steepness,
    steep_sigmoid,
    symmetric_logits,
)
from dilated_affinity.affinity.forms import select
from dilated_affinity.affinity.geometry import NEIGHBORS, check_rates
from dilated_affinity.errors import ConfigError
from dilated_affinity.runtime.xla import compiled, has_values

ITERATIONS = 10
SELF_WEIGHT = 6.0


def propagate(
    probabilities,
    affinities,
    rates,
    iterations=ITERATIONS,
    self_weight=SELF_WEIGHT,
    valid_mask=None,
    storage_dtype="float32",
):
    """Refines class probabilities by those of the neighbours, weighted by affinity (Eq. 6).

    One iteration replaces every p_i by N(lambda p_i max(p_i) + sum over s in S_i of a_s p_s),
    where N divides by the sum over the classes. Under TensorFlow this is compiled by XLA, once
    for each shape. It is differentiable with respect to probabilities and affinities; the gradient
    stores the probabilities of every iteration.

    Args:
        probabilities: Floating point (B, H, W, C), non-negative, summing to 1 over the classes.
        affinities: Floating point (B, H, W, 8|R|) in [0, 1], in the order of `neighbor_offsets`;
            from `steep_sigmoid` or `affinities_from_targets`.
        rates: Text such as `"8,(12,24),16"`, or numbers and (vertical, horizontal) pairs.
        iterations: Number of iterations of Eq. 6, at least 0. Defaults to 10.
        self_weight: lambda of Eq. 6, at least 0. Defaults to 6.
        valid_mask: Optional boolean (B, H, W). Pixels outside it contribute nothing to their
            neighbours, like pixels outside the image, and keep their own probabilities.
        storage_dtype: `"float32"`, or `"bfloat16"` to store probabilities and affinities between
            iterations: about three digits and half the memory traffic, which limits the speed on a
            GPU. Sums are float32 in either case. Defaults to `"float32"`.

    Returns:
        float32 probabilities of shape (B, H, W, C).

    Raises:
        ConfigError: If `iterations` or `self_weight` is negative, shapes do not match each other or
            `rates`, a dtype is not the one above, or valid pixels have values that are not finite.
            Values are checked eagerly only, not while a graph is traced.
    """
    probabilities, affinities, valid, rates, self_weight = checked_arguments(
        probabilities, affinities, rates, iterations, self_weight, valid_mask
    )
    select.check_storage_dtype(storage_dtype)
    return _refine(
        probabilities, affinities, valid, int(iterations), self_weight, rates, storage_dtype
    )


def checked_arguments(probabilities, affinities, rates, iterations, self_weight, valid_mask):
    """Checks and converts the arguments of `propagate`.

    Returns:
        Probabilities, affinities, the mask as (B, H, W, 1) or None, rates, and self_weight; all but
        the rates in float32.

    Raises:
        ConfigError: See `propagate`.
    """
    rates = check_rates(rates)
    check_settings(iterations, self_weight)
    if valid_mask is not None:
        valid_mask = ops.convert_to_tensor(valid_mask)
    _check_dtypes(probabilities, affinities, valid_mask)
    probabilities = ops.convert_to_tensor(probabilities, "float32")
    affinities = ops.convert_to_tensor(affinities, "float32")
    _check_shapes(probabilities, affinities, rates, valid_mask)
    if valid_mask is not None:
        # Not [..., None], which LiteRT's converter does not support for four dimensions.
        valid_mask = ops.expand_dims(ops.cast(valid_mask, "float32"), -1)
    _check_finite(probabilities, affinities, valid_mask)
    self_weight = ops.convert_to_tensor(self_weight, "float32")
    return probabilities, affinities, valid_mask, rates, self_weight


def check_settings(iterations, self_weight):
    """Raises `ConfigError` if a value is out of range."""
    if isinstance(iterations, bool) or int(iterations) != iterations or iterations < 0:
        raise ConfigError(
            f"iterations must be a whole number, at least 0. Received: iterations={iterations!r}"
        )
    if not self_weight >= 0:
        raise ConfigError(f"self_weight must be at least 0. Received: self_weight={self_weight}")


def _check_dtypes(probabilities, affinities, valid_mask):
    given = {"probabilities": probabilities, "affinities": affinities}
    for name, values in given.items():
        dtype = getattr(values, "dtype", "float32")
        if not keras.backend.is_float_dtype(dtype):
            hint = "; convert targets by affinities_from_targets" * (name == "affinities")
            raise ConfigError(
                f"{name} must be floating point{hint}. "
                f"Received: dtype {keras.backend.standardize_dtype(dtype)}"
            )
    dtype = "bool" if valid_mask is None else valid_mask.dtype
    if keras.backend.standardize_dtype(dtype) != "bool":
        raise ConfigError(
            f"valid_mask must be boolean. Received: dtype {keras.backend.standardize_dtype(dtype)}"
        )


def _check_finite(probabilities, affinities, valid):
    """Raises `ConfigError` for values that are not finite, in eager execution only.

    XLA drops assertions, so a graph has none.
    """
    if not all(map(has_values, (probabilities, affinities, valid))):
        return
    wrong = int(_count_not_finite(probabilities, affinities, valid))
    if wrong:
        raise ConfigError(
            "probabilities and affinities must be finite. "
            f"Received: NaN or infinity at {wrong} pixels"
        )


@compiled
def _count_not_finite(probabilities, affinities, valid):
    # A sum over the channels is not finite where one of them is not.
    totals = ops.sum(probabilities, axis=-1) + ops.sum(affinities, axis=-1)
    wrong = ops.logical_not(ops.isfinite(totals))
    if valid is not None:
        wrong = ops.logical_and(wrong, valid[..., 0] > 0)
    return ops.sum(ops.cast(wrong, "int32"))


def _check_shapes(probabilities, affinities, rates, valid_mask):
    shapes = [tuple(probabilities.shape), tuple(affinities.shape)]
    if len(shapes[0]) != 4 or len(shapes[1]) != 4:
        raise ConfigError(
            "probabilities and affinities must be (batch, height, width, channels). "
            f"Received: shapes {shapes[0]} and {shapes[1]}"
        )
    channels = NEIGHBORS * len(rates)
    if shapes[1][-1] != channels:
        raise ConfigError(
            f"affinities must have {channels} channels, 8 for each of the {len(rates)} rates. "
            f"Received: shape {shapes[1]}, rates={rates}"
        )
    if valid_mask is not None:
        shapes.append(tuple(valid_mask.shape))
        if len(shapes[2]) != 3:
            raise ConfigError(
                f"valid_mask must be (batch, height, width). Received: shape {shapes[2]}"
            )
    for sizes in zip(*(shape[:3] for shape in shapes), strict=True):
        if len({size for size in sizes if size is not None}) > 1:
            raise ConfigError(
                "probabilities, affinities and valid_mask must agree in batch, height and width. "
                f"Received: shapes {', '.join(map(str, shapes))}"
            )


def _refine(
    probabilities, affinities, valid, iterations, self_weight, rates, storage_dtype="float32"
):
    """`_propagate` with the gradient of `_propagate_gradient`: a while loop has none under XLA."""
    form = select.suitable_form(storage_dtype), storage_dtype
    classes = probabilities.shape[-1]
    # On a CPU all numbers of iterations share a compilation. On a GPU a loop of variable length
    # would synchronise with the host after each iteration.
    count = ops.convert_to_tensor(iterations, "int32") if form[0] == "lanes" else iterations

    @ops.custom_gradient
    def refine(probabilities, affinities):
        refined = _propagate(
            # The gradient is given below; the tape need not record the computation.
            ops.stop_gradient(probabilities),
            ops.stop_gradient(affinities),
            valid,
            count,
            self_weight,
            rates,
            *form,
        )[..., :classes]

        def gradient(*arguments, upstream=None):
            # The PyTorch backend passes `upstream` by name.
            upstream = arguments[0] if upstream is None else upstream
            to_probabilities, to_affinities = _propagate_gradient(
                upstream, probabilities, affinities, valid, self_weight, rates, iterations, *form
            )
            return to_probabilities[..., :classes], to_affinities

        return refined, gradient

    return refine(probabilities, affinities)


# The compiled functions may leave the class axis padded: slicing inside would take another buffer.


@compiled
def _propagate(probabilities, affinities, valid, iterations, self_weight, rates, *form):
    grid = select.grid(*form, probabilities, affinities, valid, self_weight, rates)
    refined = grid.iterate(grid.start(probabilities), iterations)
    return grid.end(refined, probabilities)


@compiled
def _propagate_gradient(
    upstream, probabilities, affinities, valid, self_weight, rates, iterations, *form
):
    """Gradients with respect to probabilities and affinities; stores every iteration's state."""
    grid = select.grid(*form, probabilities, affinities, valid, self_weight, rates)
    return grid.gradient(upstream, probabilities, iterations)


@keras.saving.register_keras_serializable("dilated_affinity")
class AffinityPropagation(keras.layers.Layer):
    """Layer that applies `propagate` to probabilities and affinity logits, always in float32.

    Args:
        rates: Text such as `"8,(12,24),16"`, or numbers and (vertical, horizontal) pairs.
        iterations: Number of iterations of Eq. 6. Defaults to 10.
        self_weight: lambda of Eq. 6. Defaults to 6.
        mu: Steepness of Eq. 7. Defaults to 7.
        threshold: tau, see `steep_sigmoid`. Defaults to 0.
        symmetric: Average the logits of both directions of a pair, see `symmetric_logits`.
            Defaults to False.
        storage_dtype: See `propagate`.

    Call arguments:
        inputs: `[probabilities, affinity_logits]` of shapes (B, H, W, C) and (B, H, W, 8|R|).
        valid_mask: Optional boolean (B, H, W), see `propagate`.

    Returns:
        float32 probabilities of shape (B, H, W, C).

    Example:

    >>> import numpy as np
    >>> layer = AffinityPropagation(((1, 1),), iterations=3)
    >>> layer([np.full((1, 5, 7, 2), 0.5), np.zeros((1, 5, 7, 8))]).shape
    TensorShape([1, 5, 7, 2])
    """

    def __init__(
        self,
        rates,
        iterations=ITERATIONS,
        self_weight=SELF_WEIGHT,
        mu=STEEPNESS,
        threshold=THRESHOLD,
        symmetric=False,
        storage_dtype="float32",
        dtype="float32",
        **kwargs,
    ):
        super().__init__(dtype=dtype, **kwargs)
        check_settings(iterations, self_weight)
        check_steepness(mu, threshold)
        select.check_storage_dtype(storage_dtype)
        self.rates = check_rates(rates)
        self.iterations = iterations
        self.self_weight = self_weight
        self.mu = mu
        self.threshold = threshold
        self.symmetric = symmetric
        self.storage_dtype = storage_dtype

    def call(self, inputs, valid_mask=None):
        probabilities, logits = inputs
        return propagate(
            probabilities,
            self.affinities(logits, valid_mask),
            self.rates,
            self.iterations,
            self.self_weight,
            valid_mask,
            self.storage_dtype,
        )

    def affinities(self, logits, valid_mask=None):
        """The affinities with which the layer propagates, float32 (B, H, W, 8|R|)."""
        if self.symmetric:
            logits = symmetric_logits(logits, self.rates, valid_mask)
        return steep_sigmoid(logits, self.mu, self.threshold)

    def compute_output_shape(self, input_shape):
        return input_shape[0]

    def get_config(self):
        return {
            **super().get_config(),
            "rates": [list(rate) for rate in self.rates],
            "iterations": self.iterations,
            "self_weight": self.self_weight,
            "mu": self.mu,
            "threshold": self.threshold,
            "symmetric": self.symmetric,
            "storage_dtype": self.storage_dtype,
        }
