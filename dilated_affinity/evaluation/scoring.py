"""One pass over the examples of a split: each is predicted once, and counted by counters."""

import collections
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from keras import ops

from dilated_affinity.datasets.registry import Source
from dilated_affinity.evaluation.counters import LabelMap
from dilated_affinity.inference.network import ImageOutputs, Network
from dilated_affinity.inference.refiners.base import Refiner
from dilated_affinity.runtime.progress import progress
from dilated_affinity.runtime.xla import on_gpu

_PIECE = 2**13
"""Number of pixels whose largest class NumPy finds at once, in the processor's cache."""


def score(
    source: Source,
    predict: Callable[[Iterator[dict]], Iterable[Iterable]],
    counters: Sequence[Sequence],
    description: str,
    limit: int | None = None,
):
    """Predicts examples and counts predictions by their labels.

    Args:
        source: The examples.
        predict: Function from an iterator of examples to an iterable that has for each of them, in
            order, an iterable of predictions: classes, integer arrays (1, H, W), in as many columns
            as there are in `counters`. It may read some examples ahead.
        counters: For each column the counters, such as `ClassCounter`, that count it: their
            `update_state` takes a `LabelMap` and a prediction.
        description: Name of the work, for the progress bar.
        limit: How many examples to take, from the first. Defaults to None: all.
    """
    labels = collections.deque()

    def examples():
        for index in progress(range(len(source))[:limit], description):
            example = source[index]
            labels.append(example["label"][np.newaxis])
            yield example

    table = source.classes
    for columns in predict(examples()):
        label = LabelMap(labels.popleft(), table.num_classes, table.ignore_label)
        for predicted, column in zip(columns, counters, strict=True):
            for counter in column:
                counter.update_state(label, predicted)


class RefinedClasses:
    """Predicts the classes of examples by a network, whose output is refined in several ways.

    Call it as `predict` of `score`. Few predictions are in memory.

    Args:
        network: Predicts the images.
        refinements: Pairs of a `Refiner` and its numbers of iterations; the columns are the numbers
            of the first, then those of the next.
        prepare: Optional function of an example and its `ImageOutputs` that returns the outputs to
            refine, one for each refinement.
    """

    def __init__(
        self,
        network: Network,
        refinements: Sequence[tuple[Refiner, Sequence[int]]],
        prepare: Callable[[dict, ImageOutputs], Sequence[ImageOutputs]] | None = None,
    ):
        self._network = network
        self._refinements = refinements
        self._prepare = prepare or (lambda example, outputs: [outputs] * len(refinements))

    def __call__(self, examples):
        outputs = (self._prepare(example, self._network(example["image"])) for example in examples)
        streams = enumerate(itertools.tee(outputs, len(self._refinements)))
        refined = [
            refiner.map(map(operator.itemgetter(index), stream), iterations)
            for (index, stream), (refiner, iterations) in zip(
                streams, self._refinements, strict=True
            )
        ]
        for each in zip(*refined, strict=True):
            yield map(classes, itertools.chain.from_iterable(each))


def classes(probabilities) -> np.ndarray:
    """The classes of largest probability, integers (B, H, W) on the host, of (B, H, W, C)."""
    if on_gpu() and not isinstance(probabilities, np.ndarray):
        return ops.convert_to_numpy(ops.argmax(probabilities, axis=-1))
    # Unlike `convert_to_numpy`, this does not copy the tensor.
    return _largest(np.asarray(probabilities))


def _largest(probabilities):
    """As `np.argmax`, which like TensorFlow's takes several times as long for a few classes."""
    *shape, num_classes = probabilities.shape
    flat = probabilities.reshape(-1, num_classes)
    found = np.zeros(len(flat), np.min_scalar_type(num_classes - 1))
    for start in range(0, len(flat), _PIECE):
        rows = flat[start : start + _PIECE].T.copy()
        largest, piece = rows[0], found[start : start + _PIECE]
        for index, row in enumerate(rows[1:], 1):
            # A larger value is followed by a larger index.
            np.maximum(piece, (row > largest).view(np.uint8) * piece.dtype.type(index), out=piece)
            np.maximum(largest, row, out=largest)
    return found.reshape(shape)
