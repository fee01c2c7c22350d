"""A line that summarises the settings in force, written by a command as its first."""

import os
from collections.abc import Mapping
from pathlib import Path

import keras
from absl import logging

from dilated_affinity.affinity.geometry import format_rates
from dilated_affinity.config import Config
from dilated_affinity.runtime.distribution import gpu_names

_NVIDIA_FILES = (Path("/dev/nvidia0"), Path("/proc/driver/nvidia"))
"""Files by which Linux lists NVIDIA devices, even without CUDA."""

_FOR_GPUS = {"tensorflow": "pip install -e '.[gpu]'", "jax": "pip install 'jax[cuda13]'"}


def log_run_summary(
    config: Config,
    model: keras.Model,
    num_classes: int,
    images: str,
    work: str,
    output,
    devices: int = 1,
):
    """Logs data, sizes, model, work, devices, precision and output in one line.

    Args:
        config: The settings in force.
        model: The model that is trained or used.
        num_classes: Number of classes of the data set.
        images: The images, such as `"100 images of val"`.
        work: What is done with them, such as the result of `refinement_in_words`.
        output: The file or folder to write.
        devices: Number of devices that share the work. Defaults to 1.
    """
    rates, precision = config.affinity_rates, config.mixed_precision
    logging.info(
        "%s: %s, %d classes, rates %s; %s with %s parameters; %s; on %s, %s; writing to %s",
        config.dataset,
        images,
        num_classes,
        "none" if rates is None else format_rates(rates),
        config.backbone,
        f"{model.count_params():,}",
        work,
        _devices_in_words(devices),
        "float32" if precision == "none" else f"mixed {precision}",
        output,
    )


def views_in_words(config: Config) -> str:
    """Describes the views of an evaluation: output stride, scales, flip and windows.

    Example:

    >>> views_in_words(Config(eval_scales="0.5,1", eval_flip=True))
    'output stride 8, scales 0.5,1, mirrored'
    """
    return describe_views(
        config.eval_output_stride, config.scales, config.eval_flip, config.eval_window
    )


def describe_views(output_stride: int, scales, flip: bool, window: int) -> str:
    """Does what `views_in_words` does, for the values that an evaluation records."""
    words = [f"output stride {output_stride}"]
    if tuple(scales) != (1.0,):
        words.append(f"scales {','.join(f'{scale:g}' for scale in scales)}")
    if flip:
        words.append("mirrored")
    if window:
        words.append(f"windows of {window}")
    return ", ".join(words)


def refinement_in_words(config: Config, iterations=None) -> str:
    """Describes how predictions are refined.

    Args:
        config: The settings in force.
        iterations: Numbers of iterations; that of the settings when None.

    Example:

    >>> refinement_in_words(Config())
    '10 iterations of propagation with lambda 6, mu 7'
    >>> refinement_in_words(Config(mu=50.0, affinity_threshold=1.0, symmetric_affinity=True))
    '10 iterations of propagation with lambda 6, mu 50, tau 1, symmetric'
    >>> refinement_in_words(Config(refinement="decoder_stride"), (0, 3))
    '0, 3 iterations of propagation with lambda 6, mu 7, decoder_stride'
    >>> refinement_in_words(Config(rates="none"))
    'no refinement'
    """
    if config.postprocess == "crf":
        return f"{config.crf_iterations} iterations of a dense CRF"
    counts = (config.iterations_of_refinement,) if iterations is None else tuple(iterations)
    if config.affinity_rates is None or counts == (0,):
        return "no refinement"
    variant = "" if config.refinement == "exact" else f", {config.refinement}"
    settings = describe_affinity(
        config.self_weight, config.mu, config.affinity_threshold, config.symmetric_affinity
    )
    return f"{', '.join(map(str, counts))} iterations of propagation with {settings}{variant}"


def describe_affinity(self_weight, mu, threshold=0.0, symmetric=False) -> str:
    """Describes the settings of Eq. 6 and 7; those of which the paper has none only if set.

    >>> describe_affinity(6.0, 50.0, 1.0)
    'lambda 6, mu 50, tau 1'
    """
    words = [f"lambda {self_weight:g}", f"mu {mu:g}"]
    if threshold:
        words.append(f"tau {threshold:g}")
    if symmetric:
        words.append("symmetric")
    return ", ".join(words)


def unused_gpu(nvidia_files, environment: Mapping[str, str]) -> str | None:
    """Returns a warning if the backend does not see an NVIDIA GPU, with what to install.

    Args:
        nvidia_files: Paths of which one exists if there is such a GPU.
        environment: Environment variables, which may hide GPUs from the backend on purpose.

    Returns:
        The warning; None if GPUs are seen, hidden on purpose, or absent.
    """
    backend = keras.backend.backend()
    hidden = environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    platforms = environment.get("JAX_PLATFORMS", "")
    if backend == "jax" and platforms and "cuda" not in platforms and "gpu" not in platforms:
        hidden = True
    if backend not in _FOR_GPUS or hidden or gpu_names():
        return None
    if not any(path.exists() for path in nvidia_files):
        return None
    name = {"tensorflow": "TensorFlow", "jax": "JAX"}[backend]
    return f"WARNING: {name} does not see the NVIDIA GPU of this machine; {_FOR_GPUS[backend]}"


def _devices_in_words(count):
    kind = next(iter(gpu_names()), "CPU")
    if warning := unused_gpu(_NVIDIA_FILES, os.environ):
        kind = f"{kind} ({warning})"
    return kind if count == 1 else f"{count} devices ({kind})"
