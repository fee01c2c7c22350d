"""Stopping between two steps on Ctrl-C and on SIGTERM, which preempted machines send."""

import contextlib
import signal
import threading

from absl import logging

from dilated_affinity.runtime.distribution import any_process

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_ASK_OTHERS_EVERY = 10
"""Steps after which processes tell each other whether one of them has been asked to stop."""


class StopRequest:
    """Context that handles signals to stop.

    Within `noted()` the first signal only sets `received`, so that the step can end and be saved;
    the second, and any signal outside, stops at once. In a thread other than the main one, where
    Python handles no signals, it does nothing.

    Attributes:
        received: The signal received within `noted()`, or None.
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
            # None means a handler that was not set from Python and cannot be set again.
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

    def agreed(self, done: int, steps: int, processes: int) -> bool:
        """Returns whether to stop after a step; all processes come to the same answer.

        Several processes ask each other every 10 steps and at the last one, where all of them must
        call this together.

        Args:
            done: Steps done, the same number in all processes.
            steps: Steps after which `done` ends.
            processes: Number of processes.
        """
        received = self.received is not None
        if processes == 1:
            return received
        now = done % _ASK_OTHERS_EVERY == 0 or done == steps
        return now and any_process(received)

    def stop(self):
        """Ends the program: by `KeyboardInterrupt` for Ctrl-C, else with exit status 128 + signal.

        If only another process received a signal, as SIGTERM does.
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
