"""Python functions in TensorFlow's graphs, which do not keep the interpreter from exiting.

The threads of a `tf.data` pipeline read ahead. If they call Python while the interpreter is being
torn down, the process hangs or aborts: a script that ends, or is stopped, with an iterator in a
variable would.
"""

import atexit
import functools
import threading
import time

import tensorflow as tf

_QUIET_SECONDS = 0.2
_PATIENCE_SECONDS = 10.0


class _Calls:
    """Counts the calls in progress, and refuses calls once the interpreter exits."""

    def __init__(self):
        self._lock = threading.Lock()
        self._running = 0
        self._last = 0.0
        self._exiting = False

    def __enter__(self):
        with self._lock:
            self._last = time.monotonic()
            if self._exiting:
                raise StopIteration  # the end of the data set, for TensorFlow
            self._running += 1

    def __exit__(self, *_):
        with self._lock:
            self._running -= 1

    def stop(self):
        """Waits until no call is in progress and none has come for a moment."""
        with self._lock:
            self._exiting = True
            start = self._last = max(self._last, time.monotonic() - _QUIET_SECONDS)
        while time.monotonic() < start + _PATIENCE_SECONDS:
            with self._lock:
                if not self._running and time.monotonic() > self._last + _QUIET_SECONDS:
                    return
            time.sleep(0.01)


_calls = _Calls()
atexit.register(_calls.stop)


def python_function(function, inputs, types, stateful=True):
    """`tf.numpy_function`, whose calls end before the interpreter does.

    Args:
        function: Takes NumPy arrays and returns them.
        inputs: Tensors.
        types: Dtype of the result, or those of its parts.
        stateful: Whether equal inputs may give different results. Defaults to True.

    Returns:
        Tensors of those dtypes, without static shapes.
    """

    @functools.wraps(function)
    def call(*arguments):
        with _calls:
            return function(*arguments)

    return tf.numpy_function(call, inputs, types, stateful=stateful)
