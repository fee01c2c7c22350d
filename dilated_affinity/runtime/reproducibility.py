"""Contexts for global state that a training sets: random generators and determinism."""

import contextlib
import random

import numpy as np


@contextlib.contextmanager
def preserve_global_generators():
    """Context that restores Python's and NumPy's global generators at its end."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextlib.contextmanager
def deterministic_operations(wanted: bool = True):
    """Context in which TensorFlow's operations are deterministic if `wanted`.

    It changes nothing if they are deterministic already.
    """
    # TensorFlow's public API can only enable it.
    from tensorflow.python.framework import config

    if not wanted or config.is_op_determinism_enabled():
        yield
        return
    config.enable_op_determinism()
    try:
        yield
    finally:
        config.disable_op_determinism()
