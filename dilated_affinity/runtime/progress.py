"""Progress bars with rate and time left, quiet where nobody watches."""

import contextlib
import os
import sys
import threading
import time

import keras
from absl import logging
from tqdm.auto import tqdm


def watched() -> bool:
    """Whether somebody sees a bar move: in a terminal or a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def progress(iterable, description, total=None, unit="image"):
    """Iterates with a bar of rate and time left, or silently where nobody watches.

    Args:
        iterable: What to iterate over.
        description: What is going on, before the bar.
        total: Number of items, where `len(iterable)` does not tell.
        unit: What an item is. Defaults to `"image"`.
    """
    return _bar(iterable, description, unit, total=total)


@contextlib.contextmanager
def open_with_progress(path: str | os.PathLike):
    """Opens a binary file of which a bar tells how much has been read."""
    bar = {"desc": f"reading {os.path.basename(path)}", "disable": not watched()}
    with (
        open(path, "rb") as file,
        tqdm.wrapattr(file, "read", os.path.getsize(path), dynamic_ncols=True, **bar) as counted,
    ):
        yield counted


@contextlib.contextmanager
def stages(description, total):
    """Context with a bar over a few long stages, whose clock goes on while one of them lasts.

    Args:
        description: What is going on, before the bar.
        total: Number of stages.

    Yields:
        A function without arguments, to be called at the end of each stage.
    """
    bar = _bar(None, description, "stage", total=total, smoothing=0)
    over = threading.Event()

    def tick():
        while not over.wait(1):
            bar.refresh()

    clock = threading.Thread(target=tick, daemon=True)
    if not bar.disable:
        clock.start()
    try:
        yield bar.update
    finally:
        over.set()
        if clock.ident is not None:
            clock.join()
        bar.close()


class TrainingProgress(keras.callbacks.Callback):
    """A bar over all the steps of a run, however many calls of `fit` they take.

    Keras' own bar is of one epoch. This one shows steps done and to do, rate, time left and the
    epoch's mean losses. Where nobody watches, each epoch ends with one line of the log instead.
    Give `fit` `verbose=0` beside it.

    Args:
        total: Steps of the whole run.
        initial: Steps done before. Defaults to 0.
        accumulation: Batches to a step. Defaults to 1.
    """

    def __init__(self, total: int, initial=0, accumulation=1):
        super().__init__()
        self._accumulation = accumulation
        self._total = total
        self._step = initial
        self._began = None
        self._bar = _bar(None, "training", "step", total=total, initial=initial)

    def on_epoch_begin(self, epoch, logs=None):
        self._began = self._step, time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        if (batch + 1) % self._accumulation:
            return
        self._step += 1
        losses = {name: value for name, value in (logs or {}).items() if name.endswith("loss")}
        self._bar.set_postfix(losses, refresh=False)
        self._bar.update()

    def on_epoch_end(self, epoch, logs=None):
        if not self._bar.disable:
            return
        step, seconds = self._began
        done, seconds = self._step - step, time.monotonic() - seconds
        means = ", ".join(f"{name} {value:.4f}" for name, value in (logs or {}).items())
        rate = seconds / max(done, 1)
        logging.info("step %d of %d: %s; %.2f s a step", self._step, self._total, means, rate)

    def close(self):
        """Leaves the bar as it stands."""
        self._bar.close()


def _bar(iterable, description, unit, **options):
    return tqdm(
        iterable,
        desc=description,
        unit=unit,
        disable=not watched(),
        dynamic_ncols=True,
        **options,
    )
