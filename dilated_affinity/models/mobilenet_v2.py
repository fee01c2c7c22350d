"""Atrous MobileNetV2 (Sandler et al., CVPR 2018) from `keras.applications`."""

import functools

import keras

from dilated_affinity.models.backbone import Backbone


def _backbone(alpha):
    return Backbone(
        application=functools.partial(
            keras.applications.MobileNetV2, include_top=False, alpha=alpha
        ),
        preprocess=lambda: keras.layers.Rescaling(
            1 / 127.5, offset=-1.0, name="preprocess", dtype="float32"
        ),
        # The end points of DeepLab: the last expansion at stride 4, and the last projection
        # instead of the 1280 channels before the classifier.
        low_level="block_2_depthwise_relu",
        high_level="block_16_project_BN",
        padding="same",
    )


BACKBONES = {
    "mobilenet_v2": _backbone(alpha=1.0),
    "mobilenet_v2_0.35": _backbone(alpha=0.35),
}
