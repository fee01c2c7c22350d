"""Tests that freed memory is reused, in a separate process, since that cannot be undone."""

import subprocess
import sys

import pytest

# Repeatedly fills and frees 128 MiB, and counts the pages that the kernel had to provide.
PROGRAM = """
import resource, numpy as np
from dilated_affinity.runtime.system import configure_malloc
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        np.empty(2**27, np.uint8).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
before = faults()
kept = configure_malloc()
faults()
print(int(kept), before, faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_configure_malloc_reuses_memory():
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    kept, before, after = map(int, result.stdout.split())
    if not kept:
        pytest.skip("not glibc")
    assert after < 0.1 * before
