"""Adaptive affinity fields (Ke et al., ECCV 2018), the AAF row of Table 5.

Settings and details are those of the authors' code (twke18/Adaptive_Affinity_Fields), except that
it ignores not only pairs with a void pixel, but also the pair in the opposite direction, which
counts here.
"""

import keras
from keras import ops

from dilated_affinity.affinity.geometry import NEIGHBORS, neighbor_offsets
from dilated_affinity.errors import ConfigError
from dilated_affinity.runtime.distribution import mean_over_counted

SIZES = (1, 2, 3)
"""Distances of the paired pixels, windows of 3, 5 and 7."""

MARGIN = 3.0
STRIDE = 8

_SMALLEST = 1e-4


@keras.saving.register_keras_serializable("dilated_affinity")
class AdaptiveSizeWeights(keras.layers.Layer):
    """The weights of AAF's window sizes, trained adversarially to the network.

    The layer is an identity that may be anywhere in the model, so that the optimizer trains its
    variables and checkpoints contain them. Their gradients have the opposite sign: they ascend
    where the network descends. The layer also counts the training steps for the loss' decay.

    Args:
        num_classes: C; each class has its own weights.
        sizes: Distances of the paired pixels. Defaults to 1, 2, 3.

    Example:

    >>> layer = AdaptiveSizeWeights(num_classes=4)
    >>> outputs = layer(ops.zeros((1, 5, 5, 4)))
    >>> edge, not_edge = layer.shares()
    >>> edge.shape, round(float(edge[0, 0]), 3)
    (TensorShape([4, 3]), 0.333)
    """

    def __init__(self, num_classes, sizes=SIZES, **kwargs):
        super().__init__(autocast=False, **{"dtype": "float32", **kwargs})
        sizes = tuple(sizes)
        if num_classes < 2 or not sizes or min(sizes) < 1:
            raise ConfigError(
                "AAF needs at least 2 classes and one size, and sizes of at least 1. "
                f"Received: num_classes={num_classes}, sizes={sizes}"
            )
        self.num_classes = int(num_classes)
        self.sizes = sizes
        shape = (self.num_classes, len(self.sizes))
        self.edge = self.add_weight(shape=shape, initializer="zeros", name="edge")
        self.not_edge = self.add_weight(shape=shape, initializer="zeros", name="not_edge")
        self.passes = self.add_weight(
            shape=(),
            initializer="zeros",
            dtype="int32",
            trainable=False,
            aggregation="only_first_replica",
            name="passes",
        )

    def call(self, inputs, training=False):
        if training:
            self.passes.assign_add(1)
        return inputs

    def compute_output_shape(self, input_shape):
        return input_shape

    def shares(self):
        """Weights of the sizes for edge and other entries, each (C, sizes); rows sum to 1."""
        return [ops.softmax(_reversed(weights)) for weights in (self.edge, self.not_edge)]

    def finished_steps(self):
        """Number of training steps before the current one, a float32 scalar."""
        return ops.cast(ops.maximum(self.passes - 1, 0), "float32")

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "sizes": list(self.sizes),
        }


@keras.saving.register_keras_serializable("dilated_affinity")
class AdaptiveAffinityFieldLoss(keras.losses.Loss):
    """AAF loss: similar probabilities of neighbours inside segments, different ones across edges.

    For a pixel i, its neighbour j in one of 8 directions at distance s, and a class c,

        KL = q log(q / p) + (1 - q) log((1 - q) / (1 - p)),    p = P_i(c), q = P_j(c),

    with all four numbers clipped to [1e-4, 1]. If exactly one of the two pixels is of class c, an
    edge entry, the loss is `max(0, margin - KL)`, otherwise `KL`, times the weight of (class of i,
    s). Pairs with a void pixel or one outside the image do not exist. The loss is the mean over
    edge entries plus the mean over the others (0 if there are none), summed over sizes, times
    `10 ** (-step / num_steps)`. Means are over the batch on all replicas.

    With the default reduction the loss is that scalar; `reduction="none"` gives a value for each
    image, whose mean it is. A `sample_weight` of shape (B,) multiplies the images' values.

    Args:
        size_weights: An `AdaptiveSizeWeights` layer of the trained model. A loss that Keras loads
            with a model has a new one; compile the model again to continue training.
        num_steps: Training steps over which the loss decays to a tenth.
        margin: Divergence above which the loss of an edge entry is 0. Defaults to 3.
        stride: Stride at which labels and logits are sampled. Defaults to 8, the output stride at
            which the authors apply the loss, so that sizes of 1, 2, 3 are 8, 16, 24 pixels of the
            image.
        ignore_label: The void label. Defaults to 255.
        reduction: See `keras.losses.Loss`.
        name: Name of the loss.

    Call arguments:
        y_true: Labels, shape (B, H, W): classes 0 to C-1 and `ignore_label`.
        y_pred: Logits, shape (B, H, W, C).

    Raises:
        ConfigError: If a setting is out of range.

    Example:

    >>> import numpy as np
    >>> layer = AdaptiveSizeWeights(num_classes=2)
    >>> loss = AdaptiveAffinityFieldLoss(layer, num_steps=100, stride=1)
    >>> logits = layer(np.zeros((1, 4, 4, 2), "float32"))
    >>> [float(loss(np.full((1, 4, 4), label), logits)) for label in (0, 255)]
    [0.0, 0.0]
    """

    def __init__(
        self,
        size_weights,
        num_steps,
        margin=MARGIN,
        stride=STRIDE,
        ignore_label=255,
        reduction="sum_over_batch_size",
        name="aaf_loss",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        if num_steps < 1 or stride < 1 or not margin > 0:
            raise ConfigError(
                "num_steps and stride must be at least 1 and margin above 0. "
                f"Received: num_steps={num_steps}, stride={stride}, margin={margin}"
            )
        # Wrapped in a function to hide it from Keras' saving: the model saves the layer.
        self._size_weights = lambda: size_weights
        self.num_steps = int(num_steps)
        self.margin = float(margin)
        self.stride = int(stride)
        self.ignore_label = int(ignore_label)

    def call(self, y_true, y_pred):
        size_weights = self._size_weights()
        sampled = (slice(None), slice(None, None, self.stride), slice(None, None, self.stride))
        labels = ops.cast(y_true[sampled], "int32")
        entries = _entries(
            ops.softmax(y_pred[sampled]),
            labels,
            labels != self.ignore_label,
            size_weights,
            self.margin,
        )
        losses = sum(mean_over_counted(sums, ops.sum(counts)) for sums, counts in entries)
        return losses * 10.0 ** (-size_weights.finished_steps() / self.num_steps)

    def get_config(self):
        return {
            **super().get_config(),
            "size_weights": keras.saving.serialize_keras_object(self._size_weights()),
            "num_steps": self.num_steps,
            "margin": self.margin,
            "stride": self.stride,
            "ignore_label": self.ignore_label,
        }

    @classmethod
    def from_config(cls, config):
        layer = keras.saving.deserialize_keras_object(config["size_weights"])
        return cls(**{**config, "size_weights": layer})


def _reversed(weights):
    """The values of some variables, with a gradient of the opposite sign."""
    weights = ops.convert_to_tensor(weights)
    return 2.0 * ops.stop_gradient(weights) - weights


def _entries(probabilities, labels, not_void, size_weights, margin):
    """Loss sums (B,) and numbers of entries (B,) of each size, of edges and of the others."""
    one_hot = ops.one_hot(ops.where(not_void, labels, 0), size_weights.num_classes)
    edge_shares, other_shares = (ops.matmul(one_hot, each) for each in size_weights.shares())
    yes = ops.clip(probabilities, _SMALLEST, 1.0)
    no = ops.clip(1.0 - probabilities, _SMALLEST, 1.0)
    log_yes, log_no = ops.log(yes), ops.log(no)
    own = yes * log_yes + no * log_no
    rates = [(size, size) for size in size_weights.sizes]
    offsets = neighbor_offsets(rates).reshape(len(rates), NEIGHBORS, 2)
    found = []
    for index, neighbors in enumerate(offsets):
        edges, others = [], []
        for dy, dx in neighbors:
            here, there = _overlap(dy), _overlap(-dy)
            here, there = (slice(None), here, _overlap(dx)), (slice(None), there, _overlap(-dx))
            divergence = own[there] - yes[there] * log_yes[here] - no[there] * log_no[here]
            pairs = ops.cast(not_void[here] & not_void[there], "float32")[..., None]
            edge = ops.abs(one_hot[here] - one_hot[there]) * pairs
            other = pairs - edge
            edge_losses = edge * ops.relu(margin - divergence)
            edges.append(_sums(edge_losses * edge_shares[here][..., index, None], edge))
            others.append(_sums(other * divergence * other_shares[here][..., index, None], other))
        found += [[sum(parts) for parts in zip(*each, strict=True)] for each in (edges, others)]
    return found


def _overlap(offset):
    """The slice of an axis whose pixels have a neighbour at the offset."""
    return slice(max(-int(offset), 0), min(-int(offset), 0) or None)


def _sums(losses, counted):
    return ops.sum(losses, axis=(1, 2, 3)), ops.sum(counted, axis=(1, 2, 3))
