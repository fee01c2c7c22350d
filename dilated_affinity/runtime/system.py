"""The machine a process runs on: versions and hardware, and how memory is allocated."""

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
"""Packages that numbers may depend on, each by the names it can be installed under."""

_INSTRUCTIONS = ("avx2", "avx512f", "amx_tile")
"""Vector instructions that TensorFlow has kernels of their own for, which round differently."""


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST = 2**31 - 1


def environment() -> dict:
    """Keras' backend, versions of packages (null for those not installed) and hardware, as JSON."""
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
    """Has the memory of freed tensors used again, rather than given back to the system.

    By default glibc maps each tensor above 32 MiB anew, so that the kernel has to find and clear
    every page of it; for a batch of full-resolution targets this takes longer than computing
    them, on virtual machines twice as long. Memory then stays at its peak. Call it early, before
    other threads are at work.

    Returns:
        Whether the C library knows these settings; False, and nothing done, elsewhere.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    # One arena: the others are made of pieces of 64 MiB, and map what is larger.
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, _LARGEST), (_M_TRIM_THRESHOLD, _LARGEST))
    return all([mallopt(option, value) == 1 for option, value in settings])


def _instructions():
    """Those of `_INSTRUCTIONS` that the processor has, where the system tells."""
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
