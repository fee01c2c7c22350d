"""The optimizer of DeepLab's recipe: SGD with learning-rate multipliers, and its schedule."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("dilated_affinity")
class WarmupPolynomialDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Polynomial decay to 0 after a linear warm-up.

    At step s the learning rate is `initial * (1 - s / steps) ** power`. During the warm-up it is
    the lower of that and a linear rise from `warmup_learning_rate` at step 0 to `initial` at step
    `warmup_steps`.

    Args:
        initial_learning_rate: The learning rate from which it decays.
        steps: Total number of optimizer steps, after which the learning rate is 0.
        power: Power of the decay. Defaults to 0.9.
        warmup_steps: Number of steps of the warm-up. Defaults to 0.
        warmup_learning_rate: Learning rate at the start of the warm-up. Defaults to 0.
        accumulation: The optimizer's `gradient_accumulation_steps`, since Keras calls a schedule
            with the number of batches. Defaults to 1.

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
    """`keras.optimizers.SGD` with learning-rate multipliers.

    Momentum accumulates `learning_rate * gradient` in Keras, so a multiplied learning rate has the
    same effect as in an optimizer of that variable alone.

    An update is skipped if the loss or any gradient is NaN or infinite: variables and momentum
    keep their values, while `iterations` is incremented. `skipped_updates` counts such updates.

    Args:
        *args: As for `keras.optimizers.SGD`.
        multipliers: Factors by variable path (`variable.path`); 1 for all other variables.
        **kwargs: As for `keras.optimizers.SGD`.
    """

    def __init__(self, *args, multipliers=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.multipliers = dict(multipliers or {})

    def build(self, variables):
        unknown = set(self.multipliers) - {variable.path for variable in variables}
        if unknown:
            raise ValueError(
                "multipliers must be of trainable variables. "
                f"Received: {', '.join(sorted(unknown))}"
            )
        self._factors = [self.multipliers.get(variable.path, 1.0) for variable in variables]
        super().build(variables)
        self.skipped_updates = self.add_variable((), dtype="int", name="skipped_updates")

    def scale_loss(self, loss):
        """Returns the loss that Keras differentiates; gradients of a non-finite one are NaN."""
        loss = super().scale_loss(loss)
        return loss * ops.where(ops.isfinite(loss), 1.0, float("nan"))

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        if keras.backend.backend() == "tensorflow":
            # Calls `_distributed_tf_update_step`, which has the sums over all replicas.
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

        def skip():
            self.skipped_updates.assign_add(1)

        ops.cond(_all_finite(reduced), apply, skip)

    def update_step(self, gradient, variable, learning_rate):
        factor = self._factors[self._get_variable_index(variable)]
        super().update_step(gradient, variable, learning_rate * factor)

    def get_config(self):
        return {**super().get_config(), "multipliers": self.multipliers}


def _all_finite(tensors):
    return ops.all(ops.stack([ops.all(ops.isfinite(each)) for each in tensors]))
