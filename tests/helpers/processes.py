"""Environment of the processes that tests start."""

import os
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def environment(**variables):
    """Variables with which a process imports `helpers` and the package of this checkout."""
    path = os.pathsep.join(map(str, (TESTS, TESTS.parent)))
    return {**os.environ, "PYTHONPATH": path, **variables}
