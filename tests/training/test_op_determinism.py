"""The operations of a training step have deterministic kernels on GPUs.

With `config.deterministic` TensorFlow refuses an operation without one when it runs on a GPU, which
no test here has. So the operations are listed from the graph of a step.
"""

import numpy as np
import pytest
import tensorflow as tf
from helpers.tiny import NUM_CLASSES, tiny_config

from dilated_affinity.affinity.statistics import AffinityStatistics
from dilated_affinity.run_dir.model import build_model
from dilated_affinity.training.compile import add_objective, compile_model
from dilated_affinity.training.objectives.registry import objective_of

REFUSED = {
    "AdjustContrast",
    "AdjustContrastv2",
    "Bincount",
    "CropAndResizeGradBoxes",
    "CropAndResizeGradImage",
    "DebugNumericSummaryV2",
    "DenseBincount",
    "Dilation2DBackpropFilter",
    "Dilation2DBackpropInput",
    "FakeQuantWithMinMaxVarsGradient",
    "FakeQuantWithMinMaxVarsPerChannelGradient",
    # These two only where batch norm is not training; Keras' batch norm uses neither.
    "FusedBatchNormGradV2",
    "FusedBatchNormGradV3",
    "MaxPoolGradWithArgmax",
    "ResizeNearestNeighborGrad",
    "ScatterAdd",
    "ScatterSub",
    "ScatterUpdate",
    "SoftmaxCrossEntropyWithLogits",
    "SparseTensorDenseMatMul",
    "Svd",
    # Run on the CPU instead, which is slow.
    "ScatterNd",
    "TensorScatterAdd",
    "TensorScatterUpdate",
    # Stateful random operations, refused without a global seed.
    "Multinomial",
    "RandomStandardNormal",
    "RandomUniform",
    "TruncatedNormal",
}
"""Operations that TensorFlow 2.21 refuses on GPUs under determinism, by its library's messages.

`DepthwiseConv2dNativeBackpropFilter` is refused below cuDNN 7.6.3 only, and `MaxPoolGrad` under XLA
only, which compiles no convolution here.
"""


def operations_of_a_step(config):
    statistics = None
    if config.affinity_rates:
        labels = np.random.default_rng(0).integers(0, NUM_CLASSES, (2, 40, 40)).astype(np.uint8)
        statistics = AffinityStatistics.from_labels(labels, config.affinity_rates)
    model = add_objective(build_model(config, NUM_CLASSES, statistics), config)
    fitted = compile_model(model, config, statistics)

    def step(images, labels):
        objective = objective_of(config)
        targets = {"semantic": labels, **objective.targets(labels, config)}
        weights = objective.sample_weights(labels, config)
        return fitted.train_step((images, targets, *([] if weights is None else [weights])))

    size = config.batch_size, config.crop_size, config.crop_size
    images, labels = tf.TensorSpec((*size, 3)), tf.TensorSpec(size, tf.uint8)
    graph = tf.function(step).get_concrete_function(images, labels).graph.as_graph_def()
    functions = (node.op for each in graph.library.function for node in each.node_def)
    return {node.op for node in graph.node} | set(functions)


@pytest.mark.parametrize(
    "settings",
    [
        {"train_propagation": 2, "rates": "4,8"},
        {"objective": "aaf"},
        {"objective": "boundary", "batch_norm": "frozen"},
        pytest.param({"backbone": "mobilenet_v2_0.35"}, marks=pytest.mark.slow),
        pytest.param({"backbone": "resnet50", "batch_norm": "frozen"}, marks=pytest.mark.slow),
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_every_operation_has_a_deterministic_kernel(settings):
    operations = operations_of_a_step(tiny_config("unused", **settings))
    assert {"Conv2DBackpropFilter", "SparseSoftmaxCrossEntropyWithLogits"} <= operations
    assert not operations & REFUSED
