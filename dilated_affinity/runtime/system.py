"""Versions, hardware and memory allocation of the process."""

import ctypes
import importlib.metadata
import os
import platform
import sys
from pathlib import Path

import keras

from dilated_affinity.runtime.distribution import gpu_names

_PACKAGES = (
    ("tensorflow", "tensorflow-cpu"),
    ("jax",),
    ("keras",),
    ("numpy",),
    ("tensorflow-datasets",),
    ("opencv-python-headless",),
    ("pydensecrf2",),
)
"""Packages that may affect results, each with all names of its distributions."""

_INSTRUCTIONS = ("avx2", "avx512f", "amx_tile")
"""Vector instructions for which TensorFlow has kernels with different rounding."""


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST = 2**31 - 1


def environment() -> dict:
    """Returns Keras' backend, package versions (None if not installed) and hardware, as JSON."""
    return {
        "backend": keras.backend.backend(),
        "packages": {
            names[0]: next(filter(None, map(_version, names)), None) for names in _PACKAGES
        },
        "hardware": {
            "machine": platform.machine(),
            "instructions": _instructions(),
            "cores": os.cpu_count(),
            "gpus": gpu_names(),
        },
    }


def configure_malloc() -> bool:
    """Configures glibc to reuse the memory of freed tensors rather than return it to the system.

    By default glibc maps each tensor above 32 MiB separately, and the kernel has to provide and
    clear each of its pages; for a batch of full-resolution targets this takes longer than computing
    them, on virtual machines twice as long. The process then keeps its peak memory. Call it early,
    before other threads have started.

    Returns:
        True if the settings were applied; False under other C libraries.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    # A single arena, since the others consist of heaps of 64 MiB and map larger blocks.
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, _LARGEST), (_M_TRIM_THRESHOLD, _LARGEST))
    return all([mallopt(option, value) == 1 for option, value in settings])


def _instructions():
    """Those of `_INSTRUCTIONS` that the processor supports, on Linux."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return []
    return [name for name in _INSTRUCTIONS if name in flags]


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
