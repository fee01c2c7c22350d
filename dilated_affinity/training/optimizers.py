"""What DeepLab's recipe asks of an optimizer and Keras does not offer.

SGD with a learning rate of its own for some variables, and a polynomial schedule with warm-up.
"""

import keras
from keras import ops


@keras.saving.register_keras_serializable("dilated_affinity")
class WarmupPolynomialDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Polynomial decay to 0, with a linear rise to its curve before.

    At step s the learning rate is `initial * (1 - s / steps) ** power`; while s is below
    `warmup_steps` it is on the line from `warmup_learning_rate` to `initial`, where that is lower.

    Args:
        initial_learning_rate: The learning rate from which it decays.
        steps: Number of optimizer steps in all, after which it is 0.
        power: Power of the decay. Defaults to 0.9.
        warmup_steps: Number of steps of the rise. Defaults to 0.
        warmup_learning_rate: Where the rise begins. Defaults to 0.
        accumulation: The optimizer's `gradient_accumulation_steps`; Keras asks a schedule for a
            learning rate by the number of batches. Defaults to 1.

    Example:

    >>> schedule = WarmupPolynomialDecay(0.01, steps=100, power=1.0, warmup_steps=10)
    >>> [round(float(schedule(step)), 4) for step in (0, 5, 50, 100)]
    [0.0, 0.005, 0.005, 0.0]
    """

    def __init__(
        self,
        initial_learning_rate,
        steps,
        power=0.9,
        warmup_steps=0,
        warmup_learning_rate=0.0,
        accumulation=1,
    ):
        self.initial_learning_rate = initial_learning_rate
        self.steps = steps
        self.power = power
        self.warmup_steps = warmup_steps
        self.warmup_learning_rate = warmup_learning_rate
        self.accumulation = accumulation

    def __call__(self, step):
        step = ops.cast(ops.floor_divide(step, self.accumulation), "float32")
        remaining = ops.maximum(1.0 - step / self.steps, 0.0)
        decayed = self.initial_learning_rate * remaining**self.power
        if not self.warmup_steps:
            return decayed
        low = self.warmup_learning_rate
        risen = low + (self.initial_learning_rate - low) * step / self.warmup_steps
        return ops.where(step < self.warmup_steps, ops.minimum(risen, decayed), decayed)

    def get_config(self):
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "steps": self.steps,
            "power": self.power,
            "warmup_steps": self.warmup_steps,
            "warmup_learning_rate": self.warmup_learning_rate,
            "accumulation": self.accumulation,
        }


@keras.saving.register_keras_serializable("dilated_affinity")
class MultiplierSGD(keras.optimizers.SGD):
    """`keras.optimizers.SGD` whose learning rate is multiplied for some variables.

    Momentum accumulates `learning_rate * gradient` in Keras, so a multiplied learning rate acts as
    it would in an optimizer of that variable alone.

    It refuses an update if the loss or any gradient is NaN or infinite: variables and momentum
    stay as they are, while `iterations` goes on. `skipped_updates` counts these.

    Args:
        *args: As for `keras.optimizers.SGD`.
        multipliers: Factor by variable path (`variable.path`); 1 for variables not named.
        **kwargs: As for `keras.optimizers.SGD`.
    """

    def __init__(self, *args, multipliers=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.multipliers = dict(multipliers or {})

    def build(self, variables):
        unknown = set(self.multipliers) - {variable.path for variable in variables}
        if unknown:
            raise ValueError(
                f"multipliers name variables that are not trained: {', '.join(sorted(unknown))}"
            )
        self._factors = [self.multipliers.get(variable.path, 1.0) for variable in variables]
        super().build(variables)
        self.skipped_updates = self.add_variable((), dtype="int", name="skipped_updates")

    def scale_loss(self, loss):
        """The loss, by which Keras differentiates; one that is not finite has NaN gradients."""
        loss = super().scale_loss(loss)
        return loss * ops.where(ops.isfinite(loss), 1.0, float("nan"))

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        if keras.backend.backend() == "tensorflow":
            # Comes to `_distributed_tf_update_step`, which has the sums over all replicas.
            super()._backend_update_step(grads, trainable_variables, learning_rate)
            return
        finite = _all_finite(grads)
        changing = [*trainable_variables, *self.momentums]
        before = [variable.value for variable in changing]
        super()._backend_update_step(grads, trainable_variables, learning_rate)
        for variable, value in zip(changing, before, strict=True):
            variable.assign(ops.where(finite, variable.value, value))
        self.skipped_updates.assign_add(ops.cast(~finite, self.skipped_updates.dtype))

    def _distributed_tf_update_step(self, distribution, grads_and_vars, learning_rate):
        update = super()._distributed_tf_update_step
        reduced = [distribution.experimental_local_results(grad)[0] for grad, _ in grads_and_vars]

        def apply():
            update(distribution, grads_and_vars, learning_rate)

        def refuse():
            self.skipped_updates.assign_add(1)

        ops.cond(_all_finite(reduced), apply, refuse)

    def update_step(self, gradient, variable, learning_rate):
        factor = self._factors[self._get_variable_index(variable)]
        super().update_step(gradient, variable, learning_rate * factor)

    def get_config(self):
        return {**super().get_config(), "multipliers": self.multipliers}


def _all_finite(tensors):
    return ops.all(ops.stack([ops.all(ops.isfinite(each)) for each in tensors]))
