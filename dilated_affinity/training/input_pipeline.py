"""Input pipeline: read, scale, crop, flip, compute targets and batch the examples of a data set.

Everything random about example k of a run is drawn from (seed, k) alone: which image it is, its
scale, crop and flip. A run can therefore start at any step without replaying earlier ones, and
does not depend on the parallelism of the machine. Only indices are shuffled, not images.
"""

import functools

import cv2
import numpy as np
import tensorflow as tf

from dilated_affinity.config import Config
from dilated_affinity.datasets.classes import IGNORE_LABEL
from dilated_affinity.datasets.registry import Source, load_source, read_examples
from dilated_affinity.datasets.skipping import SkippingSource
from dilated_affinity.errors import ConfigError
from dilated_affinity.models.backbone import check_choice
from dilated_affinity.models.deeplab import BACKBONES
from dilated_affinity.runtime.python_function import python_function
from dilated_affinity.training.objectives.registry import objective_of


def training_dataset(
    config: Config, source: Source | None = None, first_step=0, steps=None, part=0, parts=1
):
    """Returns batches for `model.fit`, from any step of a run on.

    Args:
        config: The run's settings.
        source: The training examples; loaded from the config's data set when None.
        first_step: Step at which to begin, 0 for the start of the run.
        steps: Number of steps; all remaining steps of `config.train_steps` when None.
        part: Index of the part of every batch to read, where several processes share it.
        parts: Number of these parts, which have the same size.

    Returns:
        A finite `tf.data.Dataset` of `(images, targets)`: images float32 (B, S, S, 3) in
        [0, 255]; targets a dict of `"semantic"`, uint8 labels (B, S, S), and of what the run's
        objective adds, such as `"affinity"`, uint8 (B, S, S, 8|R|). S is `crop_size`, and B
        `batch_size` divided by `parts` and by `accumulation`, with that many batches to a step.
        With an objective that has sample weights, such as `"boundary"`, elements are
        `(images, targets, weights)`, where weights are a dict of float32 (B, S, S).

    Raises:
        ConfigError: If the batch cannot be divided into so many parts.
    """
    if source is None:
        source = load_source(config.dataset, config.train_split, config.data_dir)
        if config.on_bad_example == "skip":
            source = SkippingSource(source)
    if steps is None:
        steps = config.train_steps - first_step
    batch_size = config.batch_size // config.accumulation
    if batch_size % parts:
        raise ConfigError(
            "batch_size / accumulation must be a multiple of parts. "
            f"Received: batch_size={config.batch_size}, accumulation={config.accumulation}, "
            f"parts={parts}"
        )
    size = batch_size // parts
    per_step = size * config.accumulation
    positions = tf.data.Dataset.range(first_step * per_step, (first_step + steps) * per_step)
    numbers = positions.map(
        lambda position: position // size * batch_size + part * size + position % size
    )
    indices = numbers.map(lambda number: _example_index(number, len(source), config.seed))
    examples = tf.data.Dataset.zip(numbers, read_examples(source, indices))

    def crop(number, example):
        return augment(example["image"], example["label"], config, number)

    batches = examples.map(crop, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    batches = batches.batch(size, drop_remainder=True)
    return _with_targets(batches, config).prefetch(2)


def batch_ids(config: Config, source: Source, step: int) -> list[str]:
    """Returns the ids of the examples in the batch of a step, counted from 0."""
    numbers = tf.range(step * config.batch_size, (step + 1) * config.batch_size, dtype=tf.int64)
    indices = tf.map_fn(lambda n: _example_index(n, len(source), config.seed), numbers)
    return [source[int(index)]["id"] for index in indices]


def evaluation_dataset(config: Config, split=None):
    """Returns batches for `model.evaluate` and for the `validation_data` of `model.fit`.

    Every example of the split comes once, in order, as a batch of one image at its original size.
    Code that is compiled by XLA, such as the affinity targets, is compiled for each size of image;
    for data sets of many sizes, `dilated_affinity.evaluate` takes less time.

    Args:
        config: The run's settings.
        split: Name of the split; the config's `val_split` when None.

    Returns:
        A `tf.data.Dataset` of known cardinality with the elements of `training_dataset`, but
        without augmentation: images float32 (1, H, W, 3) in [0, 255], targets (1, H, W, ...).

    Raises:
        ConfigError: If there is no data set or split of that name.
        DataError: If the data set is missing or incomplete.

    Example:

    ```python
    model.fit(training_dataset(config), validation_data=evaluation_dataset(config))
    model.evaluate(evaluation_dataset(config, "train[:10]"), return_dict=True)
    ```
    """
    source = load_source(config.dataset, split or config.val_split, config.data_dir)
    examples = read_examples(source, tf.data.Dataset.range(len(source)))
    batches = examples.map(
        lambda example: (
            tf.cast(example["image"], tf.float32)[tf.newaxis],
            example["label"][tf.newaxis],
        )
    )
    batches = _with_targets(batches, config).prefetch(2)
    return batches.apply(tf.data.experimental.assert_cardinality(len(source)))


def _with_targets(batches, config):
    """Replaces the labels of `(images, labels)` by the targets of every output."""
    objective = objective_of(config)

    def with_targets(images, labels):
        targets = {"semantic": labels, **objective.targets(labels, config)}
        weights = objective.sample_weights(labels, config)
        return (images, targets) if weights is None else (images, targets, weights)

    return batches.map(with_targets, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def augment(image, label, config: Config, number):
    """Scales, crops and flips an example at random (section 4.1; DeepLab's augmentation).

    If an axis is longer than the crop once scaled, a window of whole pixels is cut out of it and
    scaled to the crop, so that only the crop is computed. A shorter axis is scaled as a whole, and
    the rest of the crop is the backbone's `padding_pixel`, labelled void. Images are interpolated
    bilinearly, labels by the nearest pixel.

    Args:
        image: uint8 (H, W, 3).
        label: uint8 (H, W).
        config: `backbone`, `crop_size`, `min_scale`, `max_scale`, `scale_step`, `random_flip` and
            `seed` are read.
        number: int64 scalar, the example's number k in the run.

    Returns:
        float32 (S, S, 3) in [0, 255] and uint8 (S, S), S the crop size.
    """
    check_choice("backbone", config.backbone, BACKBONES)
    side, padding = config.crop_size, BACKBONES[config.backbone].padding_pixel
    seed = tf.stack([tf.cast(config.seed, tf.int64), number])
    draws = tf.random.stateless_uniform([4], seed)
    scale = _random_scale(draws[0], config)
    mirrored = tf.constant(config.random_flip) & (draws[3] < 0.5)
    # OpenCV resizes ten times faster than TensorFlow's operations on CPU.
    image, label = python_function(
        functools.partial(_crop, side, padding),
        [image, label, scale, draws[1:3], mirrored],
        (tf.float32, tf.uint8),
        stateful=False,
    )
    return tf.ensure_shape(image, (side, side, 3)), tf.ensure_shape(label, (side, side))


def _crop(side, padding, image, label, scale, places, mirrored):
    """Returns the crop of a NumPy example at `places`, (vertical, horizontal) from 0 to 1."""
    sizes = label.shape
    windows = [_window(size, scale, side, place) for size, place in zip(sizes, places, strict=True)]
    (rows, height), (columns, width) = windows
    image, label = image[rows, columns], label[rows, columns]
    if mirrored:
        image, label = cv2.flip(image, 1), cv2.flip(label, 1)
    shown = np.s_[:height, side - width :] if mirrored else np.s_[:height, :width]
    pixels = np.full((side, side, 3), padding, np.float32)
    pixels[shown] = cv2.resize(
        image.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR
    )
    labels = np.full((side, side), IGNORE_LABEL, np.uint8)
    nearest = (_nearest(*sizes) for sizes in zip(label.shape, (height, width), strict=True))
    labels[shown] = label[np.ix_(*nearest)]
    return pixels, labels


def _window(size, scale, side, place):
    """Returns the slice of an axis that the crop shows, and its length in pixels of the crop."""
    scaled = max(round(float(size * scale)), 1)
    if scaled <= side:
        return slice(0, size), scaled
    count = min(max(round(float(side / scale)), 1), size)
    start = int(place * (size - count + 1))
    return slice(start, start + count), side


def _nearest(size, scaled):
    """Returns the indices of the pixels nearest to the centres of the scaled axis' pixels."""
    centers = (np.arange(scaled) + 0.5) * (size / scaled)
    return np.minimum(centers.astype(np.intp), size - 1)


def _random_scale(draw, config):
    low, high, step = config.min_scale, config.max_scale, config.scale_step
    if step == 0 or low == high:
        return low + draw * (high - low)
    # The small addend makes up for rounding, where the range is a whole number of steps.
    scales = (low + step * np.arange(int((high - low) / step + 1e-6) + 1)).astype(np.float32)
    return tf.gather(scales, tf.cast(draw * len(scales), tf.int32))


def _example_index(number, size, seed):
    """Returns the index of the run's example `number`; each epoch is another permutation."""
    epoch, position = number // size, number % size
    if size == 1:
        return tf.zeros_like(number)
    return tf.random.experimental.index_shuffle(
        position,
        seed=tf.cast(tf.stack([tf.cast(seed, tf.int64), epoch]), tf.uint32),
        max_index=size - 1,
    )
