"""Commands in a process of their own, as a user types them, on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_module(module, *arguments, cwd=ROOT, timeout=900, **variables):
    """Runs `python -m module` on this checkout, with more environment variables if given.

    Returns:
        The finished process.
    """
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=cwd,
        env={
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "-1",
            "PYTHONPATH": str(ROOT),
            **variables,
        },
        capture_output=True,
        text=True,
        timeout=timeout,
    )
