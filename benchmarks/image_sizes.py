"""Compilations and time of predicting images of many sizes under JAX.

    KERAS_BACKEND=jax python -m benchmarks.image_sizes --output=result.json

Three ways, each with its compilations: the network as prediction runs it, padded to few shapes; the
same network compiled for each size; and called as Keras does by itself, each operation compiled for
each size. The network is not refined.
"""

import time

import keras
import numpy as np
from absl import app, flags
from keras import ops

from benchmarks.recording import flag_values, write_result
from benchmarks.steps import CLASSES
from dilated_affinity.errors import ConfigError
from dilated_affinity.inference.network import Network, logits_fn
from dilated_affinity.models.deeplab import DeepLabV3Plus
from dilated_affinity.runtime.xla import trace_once

_BACKBONE = flags.DEFINE_string("backbone", "mobilenet_v2", "Backbone of the network.")
_IMAGES = flags.DEFINE_integer("images", 12, "Number of images, each of another size.")
_SIDES = flags.DEFINE_list("sides", ["200", "500"], "Smallest and largest side in pixels.")


def counted_compilations() -> list:
    """A list that grows by the seconds of each compilation of XLA."""
    from jax import monitoring

    seconds = []

    def listen(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            seconds.append(duration)

    monitoring.register_event_duration_secs_listener(listen)
    return seconds


def main(_):
    if keras.backend.backend() != "jax":
        raise ConfigError(
            f"KERAS_BACKEND=jax must be set. Received: backend={keras.backend.backend()!r}"
        )
    rng = np.random.default_rng(0)
    low, high = map(int, _SIDES.value)
    sizes = rng.integers(low, high + 1, (_IMAGES.value, 2)).tolist()
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    model = DeepLabV3Plus(CLASSES, backbone=_BACKBONE.value, output_stride=8, weights=None)

    def network(image):
        return model(ops.cast(image, "float32"), training=False)

    ways = {
        "padded": Network(logits_fn(model)),
        "each_size": Network(trace_once(model, network)),
        "each_operation": Network(network),
    }
    compilations, results = counted_compilations(), {}
    for way, predict in ways.items():
        compilations.clear()
        start = time.perf_counter()
        for image in images:
            np.asarray(predict(image).probabilities)
        results[way] = {
            "compilations": len(compilations),
            "compilation_seconds": sum(compilations),
            "seconds": time.perf_counter() - start,
        }
        print(f"{way}: {results[way]}")
    for each in results.values():
        each["over_padded"] = each["seconds"] / results["padded"]["seconds"]
    write_result(flag_values("backbone", "images", "sides"), {"sizes": sizes, "ways": results})


if __name__ == "__main__":
    app.run(main)
