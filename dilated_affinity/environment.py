"""What a process computes with: what a number needs beside the settings it came from."""

import importlib.metadata
import os
import platform
from pathlib import Path

import keras

from dilated_affinity.distribution import gpu_names

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
