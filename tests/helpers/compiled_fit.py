"""All public losses, metrics and layers in one `fit`, on a model with known outputs.

Its only trained layer is initially the identity, so that channels of the input are logits and all
values of the first step can be computed by loops.
"""

import keras
import numpy as np
from keras import ops

from dilated_affinity import (
    AffinityAccuracy,
    AffinityLoss,
    AffinityPropagation,
    AffinityStatistics,
    BoundaryIoU,
    MeanIoU,
    PixelAccuracy,
    SemanticLoss,
)
from dilated_affinity.affinity.early_stopping import EarlyStoppingPropagation
from dilated_affinity.affinity.statistics import WEIGHTINGS
from dilated_affinity.baselines.aaf import AdaptiveAffinityFieldLoss, AdaptiveSizeWeights
from dilated_affinity.models.resize import AlignedResize
from helpers import reference

CLASSES = 3
RATES = ((1, 2),)
SIZE = (9, 13)
STRIDE = 4
ITERATIONS = 3
DISTANCE = 2
"""Width of boundary regions: `DILATION` times the diagonal of `SIZE`."""

DILATION = 0.1


def batch():
    """Labels with void, class scores, and affinity logits."""
    rng = np.random.default_rng(8)
    labels = reference.random_labels(2, (2, *SIZE), CLASSES)
    return (
        labels.astype(np.uint8),
        rng.normal(size=(2, *SIZE, CLASSES)).astype(np.float32),
        rng.normal(0, 2, (2, *SIZE, 8 * len(RATES))).astype(np.float32),
    )


def _statistics(labels):
    return AffinityStatistics.from_labels(labels, RATES)


def _model():
    inputs = keras.Input((*SIZE, CLASSES + 8 * len(RATES)))
    passed = keras.layers.DepthwiseConv2D(1, use_bias=False, depthwise_initializer="ones")(inputs)
    semantic, affinity = passed[..., :CLASSES], passed[..., CLASSES:]
    small = affinity[:, ::STRIDE, ::STRIDE]
    probabilities = keras.layers.Softmax()(semantic)
    refined = AffinityPropagation(RATES, ITERATIONS)([probabilities, affinity])
    stopped = EarlyStoppingPropagation(RATES, ITERATIONS, tolerance=0.0, patience=9)
    outputs = {
        "semantic": semantic,
        "aaf": AdaptiveSizeWeights(CLASSES, sizes=(1, 2))(semantic),
        "refined": refined,
        "stopped": stopped([probabilities, affinity]),
        "small": small,
        "resized": AlignedResize(STRIDE)([small, inputs]),
        **{weighting: affinity for weighting in WEIGHTINGS},
    }
    # Separate names for outputs that are the same tensor.
    outputs = {name: keras.layers.Identity(name=name)(each) for name, each in outputs.items()}
    return keras.Model(inputs, outputs)


def fit():
    """Logs of the first step of a compiled `fit`, and the weights after it."""
    labels, scores, logits = batch()
    statistics = _statistics(labels)
    targets = reference.batch_targets(labels, RATES)
    model = _model()
    size_weights = next(each for each in model.layers if isinstance(each, AdaptiveSizeWeights))
    affinity_losses = {each: AffinityLoss(statistics, each) for each in WEIGHTINGS}
    model.compile(
        keras.optimizers.SGD(0.1),
        loss={
            "semantic": SemanticLoss(),
            "refined": SemanticLoss(),
            "aaf": AdaptiveAffinityFieldLoss(size_weights, num_steps=9, stride=2),
            "small": AffinityLoss(statistics, logits_stride=STRIDE),
            "resized": AffinityLoss(statistics),
            **affinity_losses,
        },
        metrics={
            "semantic": [
                MeanIoU(CLASSES),
                PixelAccuracy(),
                BoundaryIoU(CLASSES, dilation_ratio=DILATION),
            ],
            "refined": [MeanIoU(CLASSES)],
            "stopped": [MeanIoU(CLASSES)],
            "none": [AffinityAccuracy(RATES)],
            "small": [AffinityAccuracy(RATES, logits_stride=STRIDE)],
        },
        jit_compile=True,
    )
    truth = {
        **dict.fromkeys(("semantic", "refined", "stopped", "aaf"), labels),
        **dict.fromkeys(("small", "resized", *WEIGHTINGS), targets),
    }
    inputs = np.concatenate([scores, logits], axis=-1)
    history = model.fit(inputs, truth, batch_size=2, shuffle=False, verbose=0).history
    logs = {name: value for name, (value,) in history.items()}
    return logs, [ops.convert_to_numpy(each) for each in model.trainable_weights]


def expected_logs():
    """Logs of the first step by loops, without those of AAF, which has its own tests."""
    labels, scores, logits = batch()
    pixels, pairs = reference.count_statistics(labels, RATES)
    exponentials = np.exp(scores)
    probabilities = exponentials / exponentials.sum(-1, keepdims=True)
    affinities = reference.steep_sigmoid(logits)
    refined = np.stack(
        [
            reference.propagate(*image, RATES, ITERATIONS)
            for image in zip(probabilities, affinities, strict=True)
        ]
    )

    def mean_iou(predicted):
        matrix = reference.confusion_matrix(labels, predicted.argmax(-1), CLASSES)
        return reference.mean(reference.class_iou(matrix))

    def accuracy(labels, logits):
        right, existing = reference.affinity_pairs(labels, logits, RATES)
        return right.sum() / existing.sum()

    matrix = reference.confusion_matrix(labels, scores.argmax(-1), CLASSES)
    return {
        "semantic_loss": reference.semantic_loss(labels, scores),
        "semantic_mean_iou": mean_iou(scores),
        "semantic_accuracy": np.trace(matrix) / matrix.sum(),
        "semantic_boundary_iou": reference.boundary_iou(
            labels, scores.argmax(-1), CLASSES, DISTANCE
        ),
        "refined_loss": reference.semantic_loss(labels, refined),
        "refined_mean_iou": mean_iou(refined),
        "stopped_mean_iou": mean_iou(refined),
        "none_accuracy": accuracy(labels, logits),
        **{
            f"{weighting}_loss": reference.affinity_loss(
                labels, logits, RATES, pixels, pairs, weighting, 2
            )
            for weighting in WEIGHTINGS
        },
    }
