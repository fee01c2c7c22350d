"""References and inputs that benchmarks share: Eq. 6 written plainly, and a training step."""

import keras
import numpy as np
from keras import ops

from dilated_affinity.affinity.geometry import neighbor_offsets, reach
from dilated_affinity.affinity.statistics import AffinityStatistics
from dilated_affinity.affinity.targets import affinity_targets
from dilated_affinity.run_dir.model import build_model
from dilated_affinity.training.compile import compile_model

CLASSES = 21


def in_graph(function):
    """The function in a `tf.function`, under JAX in `jax.jit`."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    import tensorflow as tf

    return tf.function(function, autograph=False)


def plain_propagation(rates, iterations):
    """Eq. 6 written plainly, as a function of probabilities and affinities."""
    offsets = neighbor_offsets(rates).tolist()
    vertical, horizontal = reach(rates)

    @in_graph
    def refine(probabilities, affinities):
        height, width = probabilities.shape[1:3]
        for _ in range(iterations):
            padded = ops.pad(
                probabilities, [[0, 0], [vertical, vertical], [horizontal, horizontal], [0, 0]]
            )
            mixed = 6.0 * probabilities * ops.max(probabilities, -1, keepdims=True)
            for channel, (dy, dx) in enumerate(offsets):
                top, left = vertical + dy, horizontal + dx
                neighbor = padded[:, top : top + height, left : left + width]
                mixed += affinities[..., channel : channel + 1] * neighbor
            probabilities = mixed / ops.sum(mixed, -1, keepdims=True)
        return probabilities

    return refine


def propagation_inputs(size, rates):
    """Random probabilities and affinities of a size such as `"513x513x21"`."""
    height, width, classes = map(int, size.split("x"))
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((1, height, width, classes), np.float32)
    affinities = rng.random((1, height, width, 8 * len(rates)), np.float32)
    return ops.softmax(ops.convert_to_tensor(3 * logits)), ops.convert_to_tensor(affinities)


def training_setup(config):
    """The compiled model of these settings, with images and targets of labels of random blocks."""
    rng = np.random.default_rng(0)
    side = config.crop_size
    blocks = rng.integers(0, CLASSES, (config.batch_size, 6, 6))
    labels = blocks.repeat(-(-side // 6), 1).repeat(-(-side // 6), 2)[:, :side, :side]
    labels = labels.astype(np.uint8)
    images = ops.convert_to_tensor(rng.uniform(0, 255, (*labels.shape, 3)), "float32")
    targets, counted = {"semantic": ops.convert_to_tensor(labels)}, None
    if config.affinity_rates:
        counted = AffinityStatistics.from_labels(labels, config.affinity_rates)
        targets["affinity"] = ops.convert_to_tensor(
            np.asarray(affinity_targets(labels, config.affinity_rates))
        )
    return compile_model(build_model(config, CLASSES, counted), config, counted), images, targets


def training_step(config):
    """A function that trains one step with these settings."""
    trained, images, targets = training_setup(config)
    return lambda: trained.train_on_batch(images, targets)
