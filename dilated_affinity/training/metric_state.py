"""The state of metrics in the middle of an epoch, so that a resumed epoch reports all its steps."""

import keras
import numpy as np


def metric_values(model: keras.Model) -> list[dict]:
    """Returns the values of a compiled model's metric variables, as JSON types.

    Under `tf.distribute` a variable has a value on each replica; their sum is its value.
    """
    return [
        {"replicas": [np.asarray(part).tolist() for part in _on_replicas(variable)]}
        for variable in model.metrics_variables
    ]


def assign_metric_values(model: keras.Model, values: list):
    """Gives the metric variables of a model what `metric_values` returned.

    The number of replicas may differ; then the first replica gets the sum.
    """
    for variable, value in zip(model.metrics_variables, values, strict=True):
        # Checkpoints of older versions hold the sum alone.
        parts = value["replicas"] if isinstance(value, dict) else [value]
        replicas = _on_replicas(variable)
        if len(parts) != len(replicas):
            # Not shares of the sum, which would be rounded.
            parts = [np.sum(parts, axis=0)]
        for replica, part in zip(replicas, parts, strict=False):
            replica.assign(part)


def _on_replicas(variable):
    return getattr(variable.value, "values", [variable])
