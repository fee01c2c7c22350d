"""What a process computes with: what a number needs beside the settings it came from."""

import importlib.metadata
import os
import platform

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


def environment() -> dict:
    """Keras' backend, versions of packages (null for those not installed) and hardware, as JSON."""
    return {
        "backend": keras.backend.backend(),
        "packages": {
            names[0]: next(filter(None, map(_version, names)), None) for names in _PACKAGES
        },
        "hardware": {
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "gpus": gpu_names(),
        },
    }


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
