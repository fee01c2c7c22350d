"""A warning where an NVIDIA GPU is there that the backend does not see."""

import functools
import os
from collections.abc import Mapping

import keras
from absl import logging

from dilated_affinity.runtime.distribution import gpu_names
from dilated_affinity.runtime.nvidia import NVIDIA_FILES, nvidia_gpu_wanted

_FOR_GPUS = {"tensorflow": "pip install -e '.[gpu]'", "jax": "pip install 'jax[cuda13]'"}


@functools.cache
def warn_of_unused_gpu():
    """Logs the warning of `unused_gpu`, if there is one, once in a process."""
    warning = unused_gpu(NVIDIA_FILES, os.environ)
    if warning:
        logging.warning("%s", warning)


def unused_gpu(nvidia_files, environment: Mapping[str, str]) -> str | None:
    """Warns of an NVIDIA GPU that the backend does not see.

    Args:
        nvidia_files: Paths of which one exists on a machine with such a GPU.
        environment: Environment variables, some of which hide GPUs from the backend on purpose.

    Returns:
        A warning that names the package to install; None if GPUs are visible, hidden on purpose, or
        absent.
    """
    backend = keras.backend.backend()
    platforms = environment.get("JAX_PLATFORMS", "")
    if backend == "jax" and platforms and "cuda" not in platforms and "gpu" not in platforms:
        return None
    if backend not in _FOR_GPUS or not nvidia_gpu_wanted(environment, nvidia_files) or gpu_names():
        return None
    name = {"tensorflow": "TensorFlow", "jax": "JAX"}[backend]
    return f"{name} does not see the NVIDIA GPU of this machine; {_FOR_GPUS[backend]}"
