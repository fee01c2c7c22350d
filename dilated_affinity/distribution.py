"""Training on several devices: which ones, and sums over all of them."""

import keras
from keras import ops

from dilated_affinity.errors import ConfigError


def replica_strategy(num_replicas=0):
    """The `tf.distribute` strategy for a number of this machine's devices.

    Args:
        num_replicas: Number of devices; 0 takes all visible GPUs, or the CPU where there is none.

    Returns:
        `MirroredStrategy` over the first GPUs (logical CPU devices where there are no GPUs), or
        for one device TensorFlow's default strategy.

    Raises:
        ConfigError: If there are not so many devices.
    """
    import tensorflow as tf

    gpus = tf.config.list_logical_devices("GPU")
    devices = gpus or tf.config.list_logical_devices("CPU")
    count = num_replicas or max(len(gpus), 1)
    if count > len(devices):
        kind = "GPUs" if gpus else "CPU devices, and no GPU"
        raise ConfigError(f"There are {len(devices)} {kind}. Received: num_replicas={num_replicas}")
    if count == 1:
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy([device.name for device in devices[:count]])


def sum_over_replicas(value):
    """A scalar's sum over the replicas that compute this step together; itself where it is one.

    Under another backend than TensorFlow, where a program sees the whole batch, it is the value.
    """
    if keras.backend.backend() != "tensorflow":
        return value
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def mean_over_counted(sums, counted):
    """Values whose mean, over a step's replicas too, is the sum of `sums` per counted pixel.

    Keras takes the mean of the values on each replica and averages that over the replicas.

    Args:
        sums: float32 values of any shape, the same on every replica.
        counted: Number of counted pixels, float32 scalar.

    Returns:
        `sums` times a common factor; 0 where nothing is counted on any replica.
    """
    size = ops.cast(ops.size(sums), "float32")
    total = sum_over_replicas(ops.stack([size, counted]))
    return sums * (total[0] / ops.maximum(total[1], 1.0))
