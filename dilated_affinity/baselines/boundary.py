"""Boundary reweighting (Ronneberger et al., MICCAI 2015), the boundary row of Table 5.

U-Net weights a pixel's cross entropy by `w_c + w0 exp(-(d1 + d2)^2 / (2 sigma^2))`, d1 and d2 its
distances to the nearest two cells. Since a semantic label map has no instances, the weight is, as
usual, `1 + w0 exp(-d^2 / (2 sigma^2))`, with d the distance to the nearest pixel of another class.
Training divides the weights by their mean over an image, so that the scale of the loss does not
change: most pixels of a small image would have weights several times larger than 1.
"""

import cv2
import numpy as np
import tensorflow as tf

from dilated_affinity.errors import ConfigError
from dilated_affinity.runtime.python_function import python_function

AMPLITUDE = 10.0
SIGMA = 5.0


def boundary_distances(labels, ignore_label=255) -> np.ndarray:
    """Computes the distance of every pixel to the nearest pixel of another class.

    Void is not a class: distances to void pixels do not count, and the distance is measured across
    a void contour between two classes. Distances are Euclidean, between the centres of pixels, so
    that they are at least 1.

    Args:
        labels: Integer array (H, W).
        ignore_label: The void label. Defaults to 255.

    Returns:
        float32 (H, W): infinite if the image has no other class; 0 at void pixels.

    Example:

    >>> boundary_distances(np.array([[2, 2, 2, 255, 7]])).tolist()
    [[4.0, 3.0, 2.0, 0.0, 2.0]]
    """
    labels = np.asarray(labels)
    distances = np.zeros(labels.shape, np.float32)
    void = labels == ignore_label
    classes = np.unique(labels[~void])
    if len(classes) == 1:
        distances[~void] = np.inf
        return distances
    for each in classes:
        inside = labels == each
        others_are_zero = (inside | void).astype(np.uint8)
        transform = cv2.distanceTransform(others_are_zero, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        distances[inside] = transform[inside]
    return distances


def boundary_weights(labels, amplitude=AMPLITUDE, sigma=SIGMA, ignore_label=255, normalize=False):
    """Computes weights of the pixels' cross entropy, which are 1 far from boundaries.

    It can be used in graphs, such as those of `tf.data`. Pass the weights as `sample_weight` to
    `SemanticLoss`, whose divisor remains the number of non-void pixels.

    Args:
        labels: Integer tensor or array (B, H, W).
        amplitude: w0, at least 0. Defaults to 10.
        sigma: Width in pixels, above 0. Defaults to 5.
        ignore_label: The void label, whose pixels have weight 0. Defaults to 255.
        normalize: Divide by the mean over the non-void pixels of each image. Defaults to False.

    Returns:
        float32 tensor (B, H, W).

    Raises:
        ConfigError: If the amplitude or sigma is out of range.

    Example:

    >>> weights = boundary_weights(np.array([[[2, 2, 255, 7]]]), amplitude=1.0)
    >>> (100 * weights.numpy()).round().tolist()
    [[[184.0, 192.0, 0.0, 192.0]]]
    """
    if not amplitude >= 0 or not sigma > 0:
        raise ConfigError(
            "amplitude must be at least 0 and sigma above 0. "
            f"Received: amplitude={amplitude}, sigma={sigma}"
        )

    def weigh(batch):
        distances = np.stack([boundary_distances(each, ignore_label) for each in batch])
        valid = batch != ignore_label
        weights = valid * (1.0 + amplitude * np.exp(-(distances**2) / (2.0 * sigma**2)))
        if normalize:
            counts = np.sum(valid, axis=(1, 2), keepdims=True)
            weights *= counts / np.maximum(np.sum(weights, axis=(1, 2), keepdims=True), 1.0)
        return weights.astype(np.float32)

    labels = tf.convert_to_tensor(labels)
    return tf.ensure_shape(
        python_function(weigh, [labels], tf.float32, stateful=False), labels.shape
    )
