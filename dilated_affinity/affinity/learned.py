"""Settings of propagation as weights: tau and mu of Eq. 7, and lambda of Eq. 6."""

import math

import keras
from keras import ops

from dilated_affinity.affinity.affinities import (
    STEEPNESS,
    THRESHOLD,
    check_steepness,
    symmetric_logits,
)
from dilated_affinity.affinity.geometry import check_rates
from dilated_affinity.affinity.propagation import ITERATIONS, SELF_WEIGHT, propagate
from dilated_affinity.errors import ConfigError


@keras.saving.register_keras_serializable("dilated_affinity")
class LearnedPropagation(keras.layers.Layer):
    """Propagation whose tau, mu and lambda are trained with the network.

    Equation 6 normalizes its sum, so that lambda times the pixel's own probability and affinities
    a give the same as the initial lambda and affinities a times (initial lambda / lambda).
    `propagate` has gradients for its affinities, and thereby for all three.

    Args:
        rates: Text such as `"8,(12,24),16"`, or numbers and (vertical, horizontal) pairs.
        iterations: Number of iterations of Eq. 6. Defaults to 10.
        self_weight: Initial lambda, above 0. Defaults to 6.
        mu: Initial mu. Defaults to 7.
        threshold: Initial tau. Defaults to 0.
        symmetric: See `AffinityPropagation`.

    Call arguments:
        inputs: `[probabilities, affinity_logits]` of shapes (B, H, W, C) and (B, H, W, 8|R|).

    Returns:
        float32 probabilities of shape (B, H, W, C).

    Raises:
        ConfigError: If a value is out of its range.

    Example:

    >>> layer = LearnedPropagation(((1, 1),), self_weight=2.0)
    >>> {name: round(value, 3) for name, value in layer.settings().items()}
    {'self_weight': 2.0, 'mu': 7.0, 'threshold': 0.0}
    """

    def __init__(
        self,
        rates,
        iterations=ITERATIONS,
        self_weight=SELF_WEIGHT,
        mu=STEEPNESS,
        threshold=THRESHOLD,
        symmetric=False,
        dtype="float32",
        **kwargs,
    ):
        super().__init__(dtype=dtype, **kwargs)
        check_steepness(mu, threshold)
        if not self_weight > 0:
            raise ConfigError(
                f"self_weight must be above 0 to be learned. Received: self_weight={self_weight}"
            )
        self.rates = check_rates(rates)
        self.iterations = iterations
        self.self_weight = self_weight
        self.mu = mu
        self.threshold = threshold
        self.symmetric = symmetric
        # By their logarithms lambda and ln mu stay positive.
        self.log_self_weight = self._scalar("log_self_weight", math.log(self_weight))
        self.log_steepness = self._scalar("log_steepness", math.log(math.log(mu)))
        self.tau = self._scalar("tau", threshold)

    def _scalar(self, name, value):
        initializer = keras.initializers.Constant(value)
        return self.add_weight(shape=(), initializer=initializer, name=name)

    def call(self, inputs):
        probabilities, logits = inputs
        logits = ops.cast(logits, "float32")
        if self.symmetric:
            logits = symmetric_logits(logits, self.rates)
        affinities = ops.sigmoid((logits - self.tau) * ops.exp(self.log_steepness))
        scale = self.self_weight / ops.exp(self.log_self_weight)
        return propagate(
            probabilities, affinities * scale, self.rates, self.iterations, self.self_weight
        )

    def settings(self) -> dict[str, float]:
        """Returns the learned values by their names in `Refinement`."""
        steepness, self_weight, tau = (
            float(ops.convert_to_numpy(each))
            for each in (self.log_steepness, self.log_self_weight, self.tau)
        )
        return {
            "self_weight": math.exp(self_weight),
            "mu": math.exp(math.exp(steepness)),
            "threshold": tau,
        }

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
        }
