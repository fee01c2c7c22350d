"""Processes that end while a pipeline of Python functions is in progress."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from dilated_affinity.runtime.python_function import python_function

PROGRAM = """
import time
import numpy as np
import tensorflow as tf
from dilated_affinity.runtime.python_function import python_function

def slow(index):
    time.sleep(0.02)
    return np.zeros((50, 50, 3), np.uint8)

dataset = tf.data.Dataset.range(10000).map(
    lambda index: python_function(slow, [index], tf.uint8), num_parallel_calls=4
)
iterator = iter(dataset.batch(4).prefetch(8))
for _ in range(3):
    next(iterator)
print("last line", flush=True)
{end}
"""


@pytest.mark.parametrize(("end", "status"), [("", 0), ("raise KeyboardInterrupt", 130)])
def test_process_ends_with_an_iterator_in_progress(end, status):
    """It hung, or was aborted by a signal, when its threads called Python too late."""
    program = PROGRAM.format(end=end)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "last line\n"
    assert done.returncode in (status, -2 if end else 0), done.stderr[-2000:]


def test_values_dtypes_and_errors_are_those_of_the_function():
    def halves(values):
        if values.size == 0:
            raise ValueError("nothing to halve")
        return values / 2, values.astype(np.int32)

    parts = python_function(halves, [tf.constant([1.0, 4.0])], (tf.float32, tf.int32))
    np.testing.assert_array_equal(parts[0], np.float32([0.5, 2.0]))
    np.testing.assert_array_equal(parts[1], np.int32([1, 4]))
    with pytest.raises(ValueError, match="nothing to halve"):
        python_function(halves, [tf.constant([])], (tf.float32, tf.int32))
