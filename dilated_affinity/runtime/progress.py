"""Progress with rate and time left: bars where somebody watches, lines of the log elsewhere."""

import contextlib
import math
import os
import sys
import threading
import time

import keras
import numpy as np
from absl import logging
from tqdm.auto import tqdm
from tqdm.utils import CallbackIOWrapper

LINE_SECONDS = 30
"""Longest time without a line of the log, where nobody watches."""

LINE_STEPS = 50
"""Most training steps from one line of the log to the next."""

_MEGABYTE = 10**6


def watched() -> bool:
    """Whether somebody sees a bar move: in a terminal or a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def progress(iterable, description, total=None, unit="image"):
    """Iterates with a bar of count, rate and time left.

    Where nobody watches, these go to the log every 30 seconds instead; shorter work is silent.

    Args:
        iterable: What to iterate over.
        description: What is going on, before the bar.
        total: Number of items, where `len(iterable)` does not tell.
        unit: What an item is. Defaults to `"image"`.

    Returns:
        An iterable over the same items.
    """
    if watched():
        return _bar(iterable, description, unit, total=total)
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)
    return _with_lines(iterable, _LogLines(description, total, f"{unit}s"))


@contextlib.contextmanager
def open_with_progress(path: str | os.PathLike):
    """Opens a binary file with a bar, or lines of the log, of how much of it has been read."""
    description, size = f"reading {os.path.basename(path)}", os.path.getsize(path)
    with open(path, "rb") as file:
        if watched():
            with tqdm.wrapattr(file, "read", size, desc=description, dynamic_ncols=True) as counted:
                yield counted
        else:
            with _LogLines(description, size, "MB", _MEGABYTE) as lines:
                yield CallbackIOWrapper(lines.update, file, "read")


@contextlib.contextmanager
def stages(description, total):
    """Context with a bar over a few long stages, whose clock goes on while one of them lasts.

    Where nobody watches, a line goes to the log every 30 seconds instead.

    Args:
        description: What is going on, before the bar.
        total: Number of stages.

    Yields:
        A function without arguments, to be called at the end of each stage.
    """
    if watched():
        with (
            _bar(None, description, "stage", total=total, smoothing=0) as bar,
            _Clock(1, bar.refresh),
        ):
            yield bar.update
    else:
        with _LogLines(description, total, "stages") as lines:
            yield lines.update


class TrainingProgress(keras.callbacks.Callback):
    """A bar over all the steps of a run, however many calls of `fit` they take.

    Keras' own bar is of one epoch. This one shows steps done and to do, rate, time left and the
    epoch's mean losses. Where nobody watches, lines of the log say the same and the learning rate:
    one at least every 50 steps or 30 seconds, and one with all metrics at the end of each epoch.
    Losses and learning rate are read only when they are shown. Give `fit` `verbose=0` beside it.

    Args:
        total: Steps of the whole run.
        initial: Steps done before. Defaults to 0.
        accumulation: Batches to a step. Defaults to 1.
        batch_size: Images to a step, for images per second; None to leave them out.
    """

    def __init__(self, total: int, initial=0, accumulation=1, batch_size: int | None = None):
        super().__init__()
        self._accumulation = accumulation
        self._batch_size = batch_size
        self._total = total
        self._step = initial
        self._compiled = False
        self._epoch_rate = self._line_rate = _Rate(initial)
        self._last_line = self._last_step = -math.inf
        self._line_step = initial
        self._clock = None
        self._bar = _bar(None, "training", "step", total=total, initial=initial)
        self._postfix_at = -math.inf

    def on_epoch_begin(self, epoch, logs=None):
        self._last_line = self._last_step = time.monotonic()
        self._line_step = self._step
        self._epoch_rate = self._line_rate = _Rate(self._step)
        if self._bar.disable:
            self._stop_clock()
            self._clock = _Clock(LINE_SECONDS, self._log_waiting)
            self._clock.start()

    def on_train_batch_end(self, batch, logs=None):
        if (batch + 1) % self._accumulation:
            return
        self._step += 1
        if not self._bar.disable:
            self._move_bar(logs)
        elif self._clock is not None:
            self._log_if_due(logs, last=batch + 1 == self.params.get("steps"))

    def on_epoch_end(self, epoch, logs=None):
        if self._bar.disable:
            self._stop_clock()
            self._log(logs, self._epoch_rate)

    def close(self):
        """Leaves the bar as it is, and ends the lines of the log."""
        self._stop_clock()
        self._bar.close()

    def _move_bar(self, logs):
        now = time.monotonic()
        if now - self._postfix_at >= self._bar.mininterval:
            self._postfix_at = now
            self._bar.set_postfix(_losses(logs), refresh=False)
        self._bar.update()

    def _log_if_due(self, logs, last):
        self._clock.restart()
        now = time.monotonic()
        took, self._last_step = now - self._last_step, now
        if not self._compiled:
            # The time of the first step tells nothing of those to come.
            self._compiled = True
            self._epoch_rate = self._line_rate = _Rate(self._step)
        # The next step may end too late for a line; that of the epoch follows its last step.
        due = now - self._last_line + took >= LINE_SECONDS
        if not last and (due or self._step - self._line_step >= LINE_STEPS):
            self._log(_losses(logs), self._line_rate)
            self._last_line, self._line_step = now, self._step
            self._line_rate = _Rate(self._step)

    def _log(self, values, rate):
        parts = [", ".join(f"{name} {float(value):.4f}" for name, value in (values or {}).items())]
        learning_rate = float(np.asarray(self.model.optimizer.learning_rate))
        parts.append(f"learning rate {learning_rate:.3g}")
        pace = rate.seconds_each(self._step)
        if pace is not None:
            parts.append(f"{pace:.2f} s a step")
            if self._batch_size:
                parts.append(f"{self._batch_size / pace:.1f} images/s")
            if self._step < self._total:
                parts.append(f"{tqdm.format_interval((self._total - self._step) * pace)} left")
        logging.info("step %d of %d: %s", self._step, self._total, "; ".join(filter(None, parts)))

    def _log_waiting(self):
        seconds = time.monotonic() - self._last_step
        reason = "" if self._compiled else " (the first step includes compilation)"
        logging.info(
            "step %d of %d: computing for %d s%s", self._step + 1, self._total, seconds, reason
        )

    def _stop_clock(self):
        if self._clock is not None:
            self._clock.stop()
            self._clock = None


class _Rate:
    """Time per item since this was made."""

    def __init__(self, done=0):
        self._began = time.monotonic()
        self._done = done

    def seconds_each(self, done):
        """Seconds per item, of which `done` are done by now; None before the first."""
        count = done - self._done
        return (time.monotonic() - self._began) / count if count else None


class _Clock:
    """Calls a function from a thread whenever some seconds have passed since `restart`."""

    def __init__(self, seconds, call):
        self._seconds, self._call = seconds, call
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def start(self):
        self.restart()
        self._thread.start()

    def restart(self):
        self._due = time.monotonic() + self._seconds

    def stop(self):
        self._over.set()
        self._thread.join()

    def _run(self):
        while not self._over.wait(max(self._due - time.monotonic(), 0)):
            if time.monotonic() >= self._due:
                self.restart()
                self._call()


class _LogLines:
    """Context in which a line of the log every 30 seconds says what is done, and what is left.

    Args:
        description: What is going on.
        total: Number of items; None where it is not known.
        units: What the items are.
        scale: What one of `units` counts. Defaults to 1.
    """

    def __init__(self, description, total, units, scale=1):
        self._description, self._units, self._scale = description, units, scale
        self._total = total
        self._done = 0
        self._clock = _Clock(LINE_SECONDS, self._log)

    def __enter__(self):
        self._rate = _Rate()
        self._clock.start()
        return self

    def __exit__(self, *_):
        self._clock.stop()

    def update(self, count=1):
        self._done += count

    def _log(self):
        done, total = self._done, self._total
        count = f"{done / self._scale:.0f}"
        if total is not None:
            count += f" of {total / self._scale:.0f}"
        parts = [f"{count} {self._units}"]
        each = self._rate.seconds_each(done)
        if each:
            rate = 1 / (each * self._scale)
            parts.append(f"{rate:.1f} {self._units}/s" if rate >= 1 else f"{1 / rate:.1f} s each")
            if total is not None:
                parts.append(f"{tqdm.format_interval((total - done) * each)} left")
        logging.info("%s: %s", self._description, ", ".join(parts))


def _with_lines(iterable, lines):
    with lines:
        for item in iterable:
            yield item
            lines.update()


def _losses(logs):
    return {name: value for name, value in (logs or {}).items() if name.endswith("loss")}


def _bar(iterable, description, unit, **options):
    return tqdm(
        iterable,
        desc=description,
        unit=unit,
        disable=not watched(),
        dynamic_ncols=True,
        **options,
    )
