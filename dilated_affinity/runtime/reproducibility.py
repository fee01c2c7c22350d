"""What the whole process has one of, and a training sets for itself: generators, determinism."""

import contextlib
import random

import numpy as np


@contextlib.contextmanager
def global_generators_kept():
    """Context that leaves Python's and NumPy's global generators as it found them."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextlib.contextmanager
def deterministic_operations(wanted: bool = True):
    """Context in which TensorFlow's operations give the same bits every time, where wanted.

    Where not, or where the process has chosen so before, nothing changes.
    """
    # TensorFlow offers in public only to switch it on.
    from tensorflow.python.framework import config

    if not wanted or config.is_op_determinism_enabled():
        yield
        return
    config.enable_op_determinism()
    try:
        yield
    finally:
        config.disable_op_determinism()
