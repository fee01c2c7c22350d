"""Estimates the memory of a training step from XLA's own analysis. Needs JAX, but no GPU.

    KERAS_BACKEND=jax python -m benchmarks.step_memory --output=result.json

XLA plans all buffers of a compiled step: weights, optimizer and metrics (`arguments`), the batch
among them, and what the step needs beside them at its peak (`temporary`). Workspaces of
convolutions on GPUs, and memory that JAX reserves but does not use (three quarters of a GPU,
unless XLA_PYTHON_CLIENT_PREALLOCATE=false), come on top. The reference is the same step without the
affinity branch.
"""

import time

import keras
from absl import app, flags

from benchmarks.recording import flag_values, write_result
from benchmarks.steps import training_setup
from dilated_affinity.config import Config
from dilated_affinity.errors import ConfigError

_STEPS = flags.DEFINE_list(
    "steps",
    ["mobilenet_v2:321:8", "mobilenet_v2:513:8", "resnet101:513:4"],
    "Steps of training: backbone:crop:batch.",
)
_PRECISION = flags.DEFINE_string("mixed_precision", "none", "Mixed precision of the steps.")


def memory(config) -> dict:
    """Bytes of a step as XLA plans them, and the seconds of its compilation."""
    import jax

    trained, images, targets = training_setup(config)
    trained._symbolic_build(data_batch=(images, targets))
    # As Keras' JAX trainer gathers what a step changes.
    state = trained._get_jax_state(
        trainable_variables=True,
        non_trainable_variables=True,
        optimizer_variables=True,
        metrics_variables=True,
    )
    lowered = jax.jit(trained.train_step, donate_argnums=0).lower(state, (images, targets))
    start = time.perf_counter()
    found = lowered.compile().memory_analysis()
    return {
        "arguments": found.argument_size_in_bytes,
        "temporary": found.temp_size_in_bytes,
        "compilation_seconds": time.perf_counter() - start,
    }


def main(_):
    if keras.backend.backend() != "jax":
        raise ConfigError(
            f"KERAS_BACKEND=jax must be set. Received: backend={keras.backend.backend()!r}"
        )
    results = []
    for step in _STEPS.value:
        backbone, crop, batch = step.split(":")
        config = Config(
            backbone=backbone,
            backbone_weights="none",
            crop_size=int(crop),
            batch_size=int(batch),
            mixed_precision=_PRECISION.value,
        )
        with_affinity = memory(config)
        without = memory(config.replace(objective="none"))
        ratio = with_affinity["temporary"] / without["temporary"]
        results.append(
            {"step": step, "with": with_affinity, "without": without, "with_over_without": ratio}
        )
        needed, plain = (each["temporary"] / 1e9 for each in (with_affinity, without))
        print(f"{step}: {needed:.2f} GB, {plain:.2f} without affinity: {ratio:.2f} times")
    write_result(flag_values("steps", "mixed_precision"), {"steps": results})


if __name__ == "__main__":
    app.run(main)
