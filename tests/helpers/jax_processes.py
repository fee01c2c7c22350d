"""Processes under the JAX backend, since the backend of the tests' process is TensorFlow.

A test file that compares the two backends is also the script of these processes, through `main`:
`test_x.py <function> <output.npz> <arguments>`.
"""

import importlib.util
import socket
import subprocess
import sys

import numpy as np
import pytest

from dilated_affinity.runtime.distribution import PROCESS_VARIABLES, join_processes
from helpers.processes import environment

QUICK_COMPILATION = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"

needs_jax = pytest.mark.skipif(
    importlib.util.find_spec("jax") is None,
    reason="JAX is not installed: pip install -e '.[test,jax]'",
)


def run_under_jax(script, function, folder, *arguments, processes=1, flags=""):
    """Calls a function of a script in connected JAX processes.

    Returns:
        Its results in each process.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    running = []
    for process in range(processes):
        variables = environment(
            KERAS_BACKEND="jax",
            JAX_PLATFORMS="cpu",
            XLA_FLAGS=f"{QUICK_COMPILATION} {flags}",
        )
        if processes > 1:
            values = (address, str(processes), str(process))
            variables.update(zip(PROCESS_VARIABLES, values, strict=True))
        command = [sys.executable, script, function, folder / f"{process}.npz", *arguments]
        with open(folder / f"{process}.log", "w") as log:
            running.append(
                subprocess.Popen(
                    list(map(str, command)), env=variables, stdout=log, stderr=subprocess.STDOUT
                )
            )
    try:
        statuses = [process.wait(timeout=600) for process in running]
    finally:
        for process in running:
            process.kill()
    logs = [(folder / f"{process}.log").read_text()[-3000:] for process in range(processes)]
    assert statuses == [0] * processes, "\n".join(logs)
    return [dict(np.load(folder / f"{process}.npz")) for process in range(processes)]


def main(functions, name, output, *arguments):
    """Calls one of some functions, given by name, and saves its result, a dict of arrays."""
    join_processes()
    results = functions[name](*arguments)
    np.savez(output, **{name: np.asarray(value) for name, value in results.items()})
