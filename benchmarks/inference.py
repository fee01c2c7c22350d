"""Measures whole-image inference: network, refinement and both, against other networks.

    pip install -e '.[benchmarks]'
    python -m benchmarks.inference --output=benchmarks/results/inference.json

For each backbone and image size, on the same random image and in turns:

- `total`: `inference_model` with the paper's 10 iterations, uint8 image to labels;
- `network`: the same with 0 iterations;
- `refinement`: the propagation alone, from logits in memory;
- `decoder_stride`: as `total`, refined at the decoder's stride;
- `backbone`: `keras.applications`' own backbone alone, at its own output stride of 32;
- `keras_hub`: DeepLabv3+ of keras-hub, where it is installed: a ResNet-101 at output stride 32,
  since it has no dilation, on the image padded to multiples of 32, with logits resized to it.

All have random weights and run as graphs by `tf.function`; only what the package itself compiles by
XLA is compiled. Times are medians. The exit status is 1 if, for a backbone in `--limited`, the
share of `refinement` in the sum of `network` and `refinement` exceeds `--limit`.
"""

import os
import statistics
import sys
import time

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

from benchmarks.recording import flag_values, write_result
from dilated_affinity.affinity.geometry import parse_rates
from dilated_affinity.affinity.propagation import AffinityPropagation
from dilated_affinity.inference.model import inference_model
from dilated_affinity.models.deeplab import DeepLabV3Plus

_BACKBONES = flags.DEFINE_list("backbones", ["mobilenet_v2", "resnet101"], "Backbones.")
_SIZES = flags.DEFINE_list("sizes", ["513x513", "1024x2048"], "Height x width of the image.")
_RATES = flags.DEFINE_string("rates", "8,(12,24),16", "Dilation rates.")
_CLASSES = flags.DEFINE_integer("classes", 19, "Number of classes.", lower_bound=2)
_OUTPUT_STRIDE = flags.DEFINE_integer("output_stride", 8, "Output stride of our network.")
_ITERATIONS = flags.DEFINE_integer("iterations", 10, "Iterations of propagation.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Measurements of each.", lower_bound=1)
_LIMIT = flags.DEFINE_float("limit", 0.15, "Largest share of refinement in the sum.")
_LIMITED = flags.DEFINE_list("limited", ["resnet101"], "Backbones for which --limit holds.")

_APPLICATIONS = {
    "mobilenet_v2": keras.applications.MobileNetV2,
    "resnet50": keras.applications.ResNet50,
    "resnet101": keras.applications.ResNet101,
}


def _graph(function, size=(None, None)):
    signature = [tf.TensorSpec((None, *size, 3), tf.uint8)]
    return tf.function(function, input_signature=signature, autograph=False)


def _labels(model, iterations, refinement="propagation"):
    whole = inference_model(model, iterations, refinement=refinement)
    return _graph(lambda images: whole(images, training=False)["labels"])


def _refinement(model, image):
    """Propagation on logits of the image, as a function that ignores its argument."""
    # As a graph: called eagerly, a functional model keeps what all its layers put out.
    network = _graph(lambda images: model(tf.cast(images, "float32"), training=False))
    logits = network(image)
    inputs = [tf.nn.softmax(logits["semantic"]), logits["affinity"]]
    propagation = AffinityPropagation(parse_rates(_RATES.value), _ITERATIONS.value)
    refine = tf.function(lambda: propagation(inputs)[:, 0, 0, 0], autograph=False)
    return lambda _: refine()


def _backbone(name):
    application = _APPLICATIONS[name](weights=None, include_top=False, input_shape=(None, None, 3))
    return _graph(lambda images: application(tf.cast(images, "float32"), training=False))


def _keras_hub(size):
    """keras-hub's DeepLabv3+ with a ResNet-101, or None where it is not installed."""
    try:
        from keras_hub.models import DeepLabV3Backbone, ResNetBackbone
    except ImportError:
        return None
    encoder = ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=[3, 4, 23, 3],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="bottleneck_block",
        image_shape=(*size, 3),
    )
    features = DeepLabV3Backbone(
        image_encoder=encoder,
        low_level_feature_key="P2",
        spatial_pyramid_pooling_key="P5",
        upsampling_size=8,
        dilation_rates=[6, 12, 18],
        image_shape=(*size, 3),
    )
    head = keras.layers.Conv2D(_CLASSES.value, 1)

    def labels(images):
        logits = head(features(tf.cast(images, "float32") / 255.0, training=False))
        logits = tf.image.resize(logits, tf.shape(images)[1:3])
        return tf.cast(tf.argmax(logits, axis=-1), "uint8")

    return _graph(labels, size)


def _multiple_of_32(size):
    """The size that keras-hub needs so that its features of different strides fit."""
    return tuple(-(-side // 32) * 32 for side in size)


def _measure(functions, image):
    """Seconds of alternating calls, after one of each that traces and compiles."""
    for function in functions.values():
        function(image)
    seconds = {name: [] for name in functions}
    for _ in range(_ROUNDS.value):
        for name, function in functions.items():
            start = time.perf_counter()
            function(image).numpy()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def _compare(backbone, size):
    keras.utils.set_random_seed(0)
    model = DeepLabV3Plus(
        _CLASSES.value, parse_rates(_RATES.value), backbone, _OUTPUT_STRIDE.value, weights=None
    )
    image = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
    functions = {
        "total": _labels(model, _ITERATIONS.value),
        "network": _labels(model, 0),
        "refinement": _refinement(model, image),
        "decoder_stride": _labels(model, _ITERATIONS.value, "propagation_decoder_stride"),
        "backbone": _backbone(backbone),
    }
    if backbone == "resnet101":
        hub, hub_size = _keras_hub(_multiple_of_32(size)), _multiple_of_32(size)
        if hub is not None:
            padding = [(0, 0), *((0, b - a) for a, b in zip(size, hub_size, strict=True)), (0, 0)]
            padded = tf.constant(np.pad(image, padding))
            functions["keras_hub"] = lambda _: hub(padded)
    seconds = _measure(functions, tf.constant(image))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "backbone": backbone,
        "size": list(size),
        "seconds": seconds,
        "median_seconds": median,
        "images_per_second": {name: 1 / value for name, value in median.items()},
        "refinement_share": median["refinement"] / (median["network"] + median["refinement"]),
        "load_average": os.getloadavg()[0],
        "total_over": {
            name: median["total"] / median[name]
            for name in ("network", "backbone", "keras_hub")
            if name in median
        },
    }


def _print(result):
    height, width = result["size"]
    print(f"{result['backbone']}, {height}x{width}", flush=True)
    for name, seconds in result["median_seconds"].items():
        print(f"  {name:<16}{seconds:9.3f} s{1 / seconds:9.3f} images/s")
    share = 100 * result["refinement_share"]
    print(f"  refinement is {share:.1f} % of network and refinement together")


def main(_):
    results = []
    settings = flag_values("rates", "classes", "output_stride", "iterations", "rounds", "limit")
    for backbone in _BACKBONES.value:
        for size in _SIZES.value:
            results.append(_compare(backbone, tuple(map(int, size.split("x")))))
            _print(results[-1])
            keras.backend.clear_session()
            # Each time, since the large ones take long.
            write_result(settings, {"results": results})
    shares = [each["refinement_share"] for each in results if each["backbone"] in _LIMITED.value]
    if any(share > _LIMIT.value for share in shares):
        sys.exit(1)


if __name__ == "__main__":
    app.run(main)
