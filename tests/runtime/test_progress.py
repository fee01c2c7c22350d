import io
import sys
import time

import keras
import numpy as np

from dilated_affinity.runtime.progress import TrainingProgress, open_with_progress, progress, stages


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
    assert list(progress(iter("abc"), "reading", total=3)) == ["a", "b", "c"]
    last = last_line(terminal)
    assert last.startswith("reading: 100%") and "3/3 [00:00<00:00" in last
    assert "image/s]" in last


def test_nobody_watching_sees_nothing(monkeypatch):
    screen = look(monkeypatch, io.StringIO())
    assert list(progress([1, 2], "reading")) == [1, 2]
    TrainingProgress(3).on_train_batch_end(0, {"loss": 1.0})
    with stages("export", 2) as done:
        done()
    assert screen.getvalue() == ""


def test_nobody_watching_reads_one_line_for_each_epoch(monkeypatch, caplog):
    look(monkeypatch, io.StringIO())
    caplog.set_level("INFO", logger="absl")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics={"dense": "mae"})
    progress = TrainingProgress(total=10, initial=4, accumulation=2)
    losses = []
    for _ in range(2):
        ones = np.ones((6, 2)), np.ones((6, 1))
        history = model.fit(*ones, batch_size=1, callbacks=[progress], verbose=0).history
        losses += history["loss"]
    progress.close()
    first, second = caplog.messages
    assert first.startswith(f"step 7 of 10: loss {losses[0]:.4f}, mae ")
    assert second.startswith(f"step 10 of 10: loss {losses[1]:.4f}, mae ")
    assert first.endswith(" s a step")


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
    assert "step/s, loss=" in last or "s/step, loss=" in last


def test_reading_a_file_shows_how_much_of_it_is_read(monkeypatch, tmp_path):
    (tmp_path / "archive.tgz").write_bytes(bytes(2048))
    terminal = look(monkeypatch, Terminal())
    with open_with_progress(tmp_path / "archive.tgz") as file:
        assert len(file.read(1024)) == 1024
    last = last_line(terminal)
    assert last.startswith("reading archive.tgz:  50%") and "1.00k/2.00k [" in last


def test_the_clock_of_a_long_stage_goes_on(monkeypatch):
    terminal = look(monkeypatch, Terminal())
    with stages("export", 2) as done:
        while "[00:01<" not in terminal.getvalue():
            time.sleep(0.05)
        done()
        done()
    assert last_line(terminal).startswith("export: 100%") and " 2/2 [" in last_line(terminal)
