"""Being asked to stop: Ctrl-C and SIGTERM, which preempted machines send, between two steps."""

import contextlib
import signal
import threading

from absl import logging

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Context in which a signal to stop is noted where it would interrupt a step.

    Within `noted()` the first signal only sets `received`, so that the step can end and be saved;
    the second, and any signal outside, stops at once. In another thread than the main one, where
    Python has no signals, nothing changes.

    Attributes:
        received: The signal noted, or None.
    """

    def __init__(self):
        self.received = None
        self._noting = False
        self._earlier = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self._earlier = {each: signal.signal(each, self._handle) for each in _SIGNALS}
        return self

    def __exit__(self, *_):
        for each, handler in self._earlier.items():
            # None is a handler that no Python code has set, and none can set again.
            if handler is not None:
                signal.signal(each, handler)

    @contextlib.contextmanager
    def noted(self):
        """Context in which the first signal only sets `received`."""
        self._noting = True
        try:
            yield
        finally:
            self._noting = False

    def stop(self):
        """Stops as the signal received asks: `KeyboardInterrupt`, or exit status 128 + signal.

        Where another process received it, as SIGTERM asks.
        """
        _stop(self.received or signal.SIGTERM)

    def _handle(self, number, _):
        if not self._noting or self.received is not None:
            _stop(number)
        self.received = signal.Signals(number)


def _stop(number):
    logging.warning("ended by %s", signal.Signals(number).name)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
