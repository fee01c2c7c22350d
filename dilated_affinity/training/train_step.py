"""A model that skips training steps whose loss or gradients are not finite."""

import keras
from keras import ops

from dilated_affinity.runtime.distribution import sum_over_replicas


class SkipNonFiniteModel(keras.Model):
    """`keras.Model` that undoes a training step whose loss or gradients are not finite.

    The optimizer, a `MultiplierSGD`, skips such an update; the moving statistics of batch norm and
    the metrics, which the forward pass has changed, are set back. The optimizer counts the step,
    so that schedule and data advance, and the step reports its loss as NaN. It raises nothing:
    a callback of `fit` has to look at the loss.
    """

    def train_step(self, *arguments):
        """Does Keras' own step and undoes it if it is not finite."""
        if keras.backend.backend() == "jax":
            return self._jax_step(*arguments)
        return self._tensorflow_step(*arguments)

    def _tensorflow_step(self, data):
        import tensorflow as tf

        skipped_updates = _skipped_updates(self.optimizer)
        count = tf.identity(skipped_updates.value)
        for metric in self.metrics:
            # Compiled metrics have no variables before they are built.
            if not getattr(metric, "built", True):
                metric.build(keras.utils.unpack_x_y_sample_weight(data)[1], self.output)
        # The states of random generators, which are integers, advance.
        moving = (each for each in self.non_trainable_variables if _is_float(each))
        changing = [variable.value for variable in (*moving, *self.metrics_variables)]
        before = [tf.identity(variable) for variable in changing]
        logs = super().train_step(data)
        finite = tf.math.is_finite(logs["loss"]) & tf.equal(count, skipped_updates.value)
        finite = tf.equal(sum_over_replicas(tf.cast(finite, tf.float32) - 1.0), 0.0)
        for variable, value in zip(changing, before, strict=True):
            variable.assign(tf.where(finite, variable, value))
        return _with_loss(logs, finite)

    def _jax_step(self, state, data):
        logs, new_state = super().train_step(state, data)
        index = _index_of(self.optimizer.variables, _skipped_updates(self.optimizer))
        finite = ops.isfinite(logs["loss"]) & (state[2][index] == new_state[2][index])
        trainable, moving, optimizer, metrics = new_state
        # The states of random generators, which are integers, advance.
        moving = [
            ops.where(finite, new, old) if ops.is_tensor(new) and _is_float(new) else new
            for new, old in zip(moving, state[1], strict=True)
        ]
        metrics = [ops.where(finite, new, old) for new, old in zip(metrics, state[3], strict=True)]
        return _with_loss(logs, finite), (trainable, moving, optimizer, metrics)


def heads_not_finite(model: SkipNonFiniteModel, images, targets) -> list[str]:
    """Returns the names of outputs whose loss, or its gradients, are not finite on a batch.

    Works under TensorFlow; with other backends it returns none. Changes the moving statistics of
    batch norm.
    """
    if keras.backend.backend() != "tensorflow":
        return []
    import tensorflow as tf

    with tf.GradientTape(persistent=True) as tape:
        outputs = model(images, training=True)
        losses = {name: loss(targets[name], outputs[name]) for name, loss in model.loss.items()}
    found = []
    for name, loss in losses.items():
        gradients = tape.gradient(loss, model.trainable_variables)
        tensors = [loss, *(each for each in gradients if each is not None)]
        if not all(bool(tf.reduce_all(tf.math.is_finite(each))) for each in tensors):
            found.append(name)
    return found


def _skipped_updates(optimizer):
    """Returns `skipped_updates` of a `MultiplierSGD`, also within a loss-scaling optimizer."""
    return getattr(optimizer, "inner_optimizer", optimizer).skipped_updates


def _index_of(variables, wanted):
    return next(index for index, variable in enumerate(variables) if variable is wanted)


def _is_float(value):
    return keras.backend.is_float_dtype(keras.backend.standardize_dtype(value.dtype))


def _with_loss(logs, finite):
    return {**logs, "loss": ops.where(finite, logs["loss"], float("nan"))}
