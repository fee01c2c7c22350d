"""One pass over the examples of a split: each is predicted once, and counted by metrics."""

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from keras import ops

from dilated_affinity.datasets.registry import Source
from dilated_affinity.inference.network import ImageOutputs, Network
from dilated_affinity.inference.refiners.base import Refiner
from dilated_affinity.runtime.progress import progress


def score(
    source: Source,
    predict: Callable[[Iterator[dict]], Iterable[Iterable]],
    metrics: Sequence[Sequence],
    description: str,
    limit: int | None = None,
):
    """Predicts examples and updates metrics with labels and predictions.

    Args:
        source: The examples.
        predict: Function from an iterator of examples to an iterable that has for each of them, in
            order, an iterable of predictions: classes, integers (1, H, W), in as many columns as
            there are in `metrics`. It may read some examples ahead.
        metrics: For each column the metrics, such as `MeanIoU`, that count it.
        description: Name of the work, for the progress bar.
        limit: How many examples to take, from the first. Defaults to None: all.
    """
    labels = collections.deque()

    def examples():
        for index in progress(range(len(source))[:limit], description):
            example = source[index]
            labels.append(example["label"][np.newaxis])
            yield example

    for columns in predict(examples()):
        label = labels.popleft()
        for predicted, column in zip(columns, metrics, strict=True):
            for metric in column:
                metric.update_state(label, predicted)


class RefinedClasses:
    """Predicts the classes of examples by a network, whose output is refined in several ways.

    Call it as `predict` of `score`. Predictions stay on the device; few of them are in memory.

    Args:
        network: Predicts the images.
        refinements: Pairs of a `Refiner` and its numbers of iterations; the columns are the numbers
            of the first, then those of the next.
        prepare: Optional function of an example and its `ImageOutputs` that returns the outputs to
            refine.
    """

    def __init__(
        self,
        network: Network,
        refinements: Sequence[tuple[Refiner, Sequence[int]]],
        prepare: Callable[[dict, ImageOutputs], ImageOutputs] | None = None,
    ):
        self._network = network
        self._refinements = refinements
        self._prepare = prepare or (lambda example, outputs: outputs)

    def __call__(self, examples):
        outputs = (self._prepare(example, self._network(example["image"])) for example in examples)
        streams = itertools.tee(outputs, len(self._refinements))
        refined = [
            refiner.map(stream, iterations)
            for stream, (refiner, iterations) in zip(streams, self._refinements, strict=True)
        ]
        for each in zip(*refined, strict=True):
            yield map(classes, itertools.chain.from_iterable(each))


def classes(probabilities):
    """The classes of largest probability, integers (B, H, W), of (B, H, W, C).

    Those of an array are an array: under JAX a tensor's would be compiled for each size.
    """
    if isinstance(probabilities, np.ndarray):
        return probabilities.argmax(axis=-1)
    return ops.argmax(probabilities, axis=-1)
