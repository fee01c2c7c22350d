"""The first line that a command writes: what its settings have come to."""

import os
from collections.abc import Mapping

import keras
from absl import logging

from dilated_affinity.affinity.geometry import format_rates
from dilated_affinity.config import Config
from dilated_affinity.runtime.distribution import gpu_names
from dilated_affinity.runtime.nvidia import NVIDIA_FILES, nvidia_gpu_wanted

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
    """Logs data, sizes, model, work, devices, precision, and where it writes, in one line.

    Args:
        config: The settings in force.
        model: What is trained or used.
        num_classes: Of the data set.
        images: Which images, such as `"100 images of val"`.
        work: What is done with them, such as `refinement_in_words` says it.
        output: The file or folder to write.
        devices: How many devices share the work. Defaults to 1.
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
    """How a trained network sees images.

    Example:

    >>> views_in_words(Config(eval_scales="0.5,1", eval_flip=True))
    'output stride 8, scales 0.5,1, mirrored, too'
    """
    return describe_views(
        config.eval_output_stride, config.scales, config.eval_flip, config.eval_window
    )


def describe_views(output_stride: int, scales, flip: bool, window: int) -> str:
    """What `views_in_words` says, from the values that an evaluation keeps of the settings."""
    words = [f"output stride {output_stride}"]
    if tuple(scales) != (1.0,):
        words.append(f"scales {','.join(f'{scale:g}' for scale in scales)}")
    if flip:
        words.append("mirrored, too")
    if window:
        words.append(f"windows of {window}")
    return ", ".join(words)


def refinement_in_words(config: Config, iterations=None) -> str:
    """How predictions are refined.

    Args:
        config: The settings in force.
        iterations: Numbers of iterations; those of the settings when None.

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
    """The settings of Eq. 6 and 7 in words; those that are the paper's by being absent are not
    named.

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
    """Says that there is an NVIDIA GPU that the backend does not see, and what to install.

    Args:
        nvidia_files: Paths of which one exists where there is such a GPU.
        environment: Variables that may keep GPUs from the backend on purpose.

    Returns:
        A few words; None where GPUs are seen, not wanted, or not there.
    """
    backend = keras.backend.backend()
    platforms = environment.get("JAX_PLATFORMS", "")
    if backend == "jax" and platforms and "cuda" not in platforms and "gpu" not in platforms:
        return None
    if backend not in _FOR_GPUS or not nvidia_gpu_wanted(environment, nvidia_files) or gpu_names():
        return None
    name = {"tensorflow": "TensorFlow", "jax": "JAX"}[backend]
    return f"WARNING: {name} does not see the NVIDIA GPU of this machine; {_FOR_GPUS[backend]}"


def _devices_in_words(count):
    kind = next(iter(gpu_names()), "CPU")
    if warning := unused_gpu(NVIDIA_FILES, os.environ):
        kind = f"{kind} ({warning})"
    return kind if count == 1 else f"{count} devices ({kind})"
