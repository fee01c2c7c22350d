import io
import sys

import keras
import numpy as np

from dilated_affinity.progress import TrainingProgress, progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def look(monkeypatch, screen):
    """To be called in a test, not a fixture: between the two pytest puts its own stderr back."""
    monkeypatch.setattr(sys, "stderr", screen)
    return screen


def last_line(screen):
    return [line for line in screen.getvalue().split("\r") if line.strip()][-1]


def test_a_terminal_sees_count_rate_and_time_left(monkeypatch):
    terminal = look(monkeypatch, Terminal())
    assert list(progress(iter("abc"), "reading", total=3, unit="image")) == ["a", "b", "c"]
    last = last_line(terminal)
    assert last.startswith("reading: 100%") and "3/3 [00:00<00:00" in last
    assert " image/s]" in last


def test_nobody_watching_sees_nothing(monkeypatch):
    screen = look(monkeypatch, io.StringIO())
    assert list(progress([1, 2], "reading")) == [1, 2]
    TrainingProgress(3).on_train_batch_end(0, {"loss": 1.0})
    assert screen.getvalue() == ""


def test_training_is_one_bar_over_several_calls_of_fit(monkeypatch):
    terminal = look(monkeypatch, Terminal())
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    bar = TrainingProgress(total=10, initial=4, accumulation=2)
    for _ in range(2):
        model.fit(np.ones((6, 2)), np.ones((6, 1)), batch_size=1, callbacks=[bar], verbose=0)
    bar.close()
    last = last_line(terminal)
    assert last.startswith("training: 100%") and " 10/10 [" in last
    assert " step/s, loss=" in last or "s/ step, loss=" in last
