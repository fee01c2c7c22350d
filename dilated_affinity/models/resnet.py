"""Atrous ResNet-50 and ResNet-101 (He et al., CVPR 2016) from `keras.applications`."""

import functools

import keras
from keras import ops

from dilated_affinity.models.backbone import Backbone

MEAN_BGR = (103.939, 116.779, 123.68)
"""Mean of ImageNet's pixels that Caffe's models subtract."""


@keras.saving.register_keras_serializable("dilated_affinity")
class CaffePreprocessing(keras.layers.Layer):
    """Converts RGB in [0, 255] to BGR and subtracts ImageNet's mean, as these weights expect.

    It computes the same as `keras.applications.resnet.preprocess_input`, but takes any integer or
    float type, and is saved with the model.

    Call arguments:
        images: (B, H, W, 3), RGB in [0, 255].

    Returns:
        (B, H, W, 3) in the layer's compute dtype.

    Example:

    >>> red = ops.convert_to_tensor([[[[255, 0, 0]]]])
    >>> CaffePreprocessing()(red).numpy().round()
    array([[[[-104., -117.,  131.]]]], dtype=float32)
    """

    def call(self, images):
        images = ops.cast(images, self.compute_dtype)
        return ops.flip(images, axis=-1) - ops.convert_to_tensor(MEAN_BGR, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return input_shape


def _backbone(application):
    return Backbone(
        application=functools.partial(application, include_top=False),
        # In float32, since bfloat16 with its 8 bits would round the mean.
        preprocess=lambda: CaffePreprocessing(name="preprocess", dtype="float32"),
        # DeepLab's end point block1/unit_2/bottleneck_v1/conv3: the residual, before its addition,
        # of the last unit that slim has at stride 4.
        low_level="conv2_block2_3_bn",
        high_level="conv5_block3_out",
        padding="symmetric",
        padding_pixel=tuple(reversed(MEAN_BGR)),
    )


BACKBONES = {
    "resnet50": _backbone(keras.applications.ResNet50),
    "resnet101": _backbone(keras.applications.ResNet101),
}
