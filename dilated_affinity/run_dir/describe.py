"""Descriptions of a run for people: the first line that a command logs, and its parts."""

import keras
from absl import logging

from dilated_affinity.affinity.geometry import format_rates
from dilated_affinity.config import Config
from dilated_affinity.inference.refiners import METHODS
from dilated_affinity.inference.views import Views
from dilated_affinity.runtime.distribution import gpu_names
from dilated_affinity.runtime.unused_gpu import warn_of_unused_gpu


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

    A warning comes before it where a GPU is there that the backend does not see.

    Args:
        config: The settings in force.
        model: The model that is trained or used.
        num_classes: Number of classes of the data set.
        images: The images, such as `"100 images of val"`.
        work: The work, such as `refinement_in_words` describes it.
        output: The file or folder to write.
        devices: Number of devices that share the work. Defaults to 1.
    """
    warn_of_unused_gpu()
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
    """Describes the views of an image that a trained network predicts.

    Example:

    >>> views_in_words(Config(eval_scales="0.5,1", eval_flip=True))
    'output stride 8, scales 0.5,1, with mirror image'
    """
    return describe_views(config.eval_output_stride, config.views)


def describe_views(output_stride: int, views: Views) -> str:
    """Describes views as `views_in_words` does, from what an evaluation records of the settings."""
    words = [f"output stride {output_stride}"]
    if views.scales != (1.0,):
        words.append(f"scales {','.join(f'{scale:g}' for scale in views.scales)}")
    if views.flip:
        words.append("with mirror image")
    if views.window:
        words.append(f"windows of {views.window}")
    return ", ".join(words)


def refinement_in_words(config: Config, iterations=None) -> str:
    """Describes how predictions are refined.

    Args:
        config: The settings in force.
        iterations: Numbers of iterations. Defaults to None: that of the settings.

    Example:

    >>> refinement_in_words(Config())
    '10 iterations of propagation with lambda 6, mu 7'
    >>> refinement_in_words(Config(mu=50.0, affinity_threshold=1.0, symmetric_affinity=True))
    '10 iterations of propagation with lambda 6, mu 50, tau 1, symmetric'
    >>> refinement_in_words(Config(refine="propagation_decoder_stride"), (0, 3))
    "0, 3 iterations of propagation at the decoder's stride with lambda 6, mu 7"
    >>> refinement_in_words(Config(refine="crf"))
    '10 iterations of a dense CRF'
    >>> refinement_in_words(Config(rates="none"))
    'no refinement'
    """
    method = METHODS[config.refine]
    counts = (config.refinement_iterations,) if iterations is None else tuple(iterations)
    if counts == (0,) or (method.propagates and config.affinity_rates is None):
        return "no refinement"
    words = f"{', '.join(map(str, counts))} iterations of {method.title}"
    if not method.propagates:
        return words
    settings = describe_affinity(
        config.self_weight, config.mu, config.affinity_threshold, config.symmetric_affinity
    )
    return f"{words} with {settings}"


def describe_affinity(self_weight, mu, threshold=0.0, symmetric=False) -> str:
    """Describes the settings of Eq. 6 and 7; settings that the paper does not have are left out
    where they have no effect.

    >>> describe_affinity(6.0, 50.0, 1.0)
    'lambda 6, mu 50, tau 1'
    """
    words = [f"lambda {self_weight:g}", f"mu {mu:g}"]
    if threshold:
        words.append(f"tau {threshold:g}")
    if symmetric:
        words.append("symmetric")
    return ", ".join(words)


def _devices_in_words(count):
    kind = next(iter(gpu_names()), "CPU")
    return kind if count == 1 else f"{count} devices ({kind})"
