"""Freed memory is used again; in a process of its own, since it cannot be undone."""

import subprocess
import sys

import pytest

# Fills and frees 128 MiB again and again, and counts the pages that the kernel had to provide.
PROGRAM = """
import resource, numpy as np
from dilated_affinity.memory import keep_freed_memory
kept = {keep} and keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(2**27, np.uint8).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(int(kept), sum(faults() for _ in range(3)))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_large_arrays_do_not_fault_again():
    counts = {}
    for keep in (False, True):
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(keep=keep)],
            capture_output=True,
            text=True,
            check=True,
        )
        kept, counts[keep] = map(int, result.stdout.split())
        if keep and not kept:
            pytest.skip("not glibc")
    assert counts[True] < 0.1 * counts[False]
