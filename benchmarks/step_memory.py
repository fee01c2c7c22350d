"""Estimates the memory of a training step from XLA's own plan. Needs JAX, but no GPU.

    KERAS_BACKEND=jax python -m benchmarks.step_memory --output=result.json

XLA plans all buffers of a compiled step: weights, optimizer, metrics and the batch (`arguments`),
and what the step needs beside them at its peak (`temporary`), the numbers of JAX's
`memory_analysis()`. The plan is for a CPU. It precedes the generation of code, which takes minutes
and gigabytes for ResNets: each step is compiled in a process of its own, which is ended once it has
written the plan.

Workspaces of convolutions on GPUs, and memory that JAX reserves but does not use (three quarters of
a GPU, unless XLA_PYTHON_CLIENT_PREALLOCATE=false), come on top. The reference of the steps in
`--compared` is the same step without the affinity branch.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
from absl import app, flags

from benchmarks.recording import flag_values, write_result
from dilated_affinity.errors import ConfigError

_STEPS = flags.DEFINE_list(
    "steps",
    [
        "mobilenet_v2:321:8",
        "mobilenet_v2:513:8",
        "mobilenet_v2:513:16",
        *(f"resnet101:513:{batch}" for batch in (2, 4, 8)),
        *(f"resnet101:513:{batch}:bfloat16" for batch in (4, 8)),
    ],
    "Steps of training: backbone:crop:batch, and :mixed_precision unless it is none.",
)
_COMPARED = flags.DEFINE_list("compared", ["mobilenet_v2:321:8"], "Steps to compare.")
_COMPILED = flags.DEFINE_string("compiled", None, "Used by the benchmark's own processes.")
_OBJECTIVE = flags.DEFINE_string("objective", "affinity", "Likewise.")


def plan(step: str, objective: str) -> dict:
    """Bytes of a step as XLA plans them."""
    with tempfile.TemporaryDirectory() as folder:
        dump = f"--xla_dump_to={folder} --xla_dump_hlo_as_text"
        dump += " --xla_dump_hlo_module_re=.*train_step.*"
        variables = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": dump}
        command = [sys.executable, "-m", "benchmarks.step_memory"]
        arguments = [f"--compiled={step}", f"--objective={objective}"]
        compiling = subprocess.Popen(command + arguments, env={**os.environ, **variables})
        try:
            # Code is written after the plan.
            while compiling.poll() is None and not list(Path(folder).glob("*train_step*.ll")):
                time.sleep(0.5)
        finally:
            compiling.kill()
            compiling.wait()
        (text,) = (path.read_text() for path in Path(folder).glob("*-buffer-assignment.txt"))
    allocations = re.findall(r"^allocation \d+: size (\d+), (\S+)", text, re.M)
    return {
        "arguments": sum(int(size) for size, kind in allocations if kind == "parameter"),
        "temporary": sum(int(size) for size, kind in allocations if kind == "preallocated-temp:"),
    }


def compile_step(step: str, objective: str):
    """Compiles a step under JAX."""
    import jax

    from benchmarks.steps import training_setup
    from dilated_affinity.config import Config

    backbone, crop, batch, *precision = step.split(":")
    config = Config(
        backbone=backbone,
        backbone_weights="none",
        crop_size=int(crop),
        batch_size=int(batch),
        mixed_precision=precision[0] if precision else "none",
        objective=objective,
    )
    trained, images, targets = training_setup(config)
    trained._symbolic_build(data_batch=(images, targets))
    # As Keras' JAX trainer gathers what a step changes.
    state = trained._get_jax_state(
        trainable_variables=True,
        non_trainable_variables=True,
        optimizer_variables=True,
        metrics_variables=True,
    )
    jax.jit(trained.train_step, donate_argnums=0).lower(state, (images, targets)).compile()


def main(_):
    if keras.backend.backend() != "jax":
        raise ConfigError(
            f"KERAS_BACKEND=jax must be set. Received: backend={keras.backend.backend()!r}"
        )
    if _COMPILED.value:
        compile_step(_COMPILED.value, _OBJECTIVE.value)
        return
    results = []
    for step in _STEPS.value:
        result = {"step": step, "with": plan(step, "affinity")}
        if step in _COMPARED.value:
            without = plan(step, "none")
            ratio = result["with"]["temporary"] / without["temporary"]
            result.update({"without": without, "with_over_without": ratio})
        results.append(result)
        print(result, flush=True)
        write_result(flag_values("steps", "compared"), {"steps": results})


if __name__ == "__main__":
    app.run(main)
