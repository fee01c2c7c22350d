"""Whether there is an NVIDIA GPU, asked without TensorFlow or JAX."""

from collections.abc import Mapping
from pathlib import Path

NVIDIA_FILES = (
    Path("/dev/nvidia0"),
    Path("/proc/driver/nvidia"),
    Path("/usr/lib/wsl/lib/libcuda.so.1"),
)
"""Files of which Linux has one where there is an NVIDIA device, whatever is installed to use it.

The last one is that of Linux under Windows (WSL 2).
"""


def nvidia_gpu_wanted(environment: Mapping[str, str], files=NVIDIA_FILES) -> bool:
    """Whether this machine has an NVIDIA GPU that `CUDA_VISIBLE_DEVICES` does not hide.

    Args:
        environment: Environment variables.
        files: Paths of which one exists where there is such a GPU.
    """
    hidden = environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not hidden and any(path.exists() for path in files)
