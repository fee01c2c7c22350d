import io
import re
import sys
import time

import keras
import numpy as np

from dilated_affinity.runtime import progress as module
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


def logged(caplog):
    """Our lines; TensorFlow warns in the same log when earlier tests have traced the same code."""
    return [record.getMessage() for record in caplog.records if record.name == "absl"]


def unwatched(monkeypatch, caplog, seconds=module.LINE_SECONDS, steps=module.LINE_STEPS):
    look(monkeypatch, io.StringIO())
    monkeypatch.setattr(module, "LINE_SECONDS", seconds)
    monkeypatch.setattr(module, "LINE_STEPS", steps)
    caplog.set_level("INFO", logger="absl")


def test_short_work_that_nobody_watches_is_silent(monkeypatch, caplog, tmp_path):
    unwatched(monkeypatch, caplog)
    assert list(progress([1, 2], "reading")) == [1, 2]
    with stages("export", 2) as done:
        done()
    (tmp_path / "file").write_bytes(b"content")
    with open_with_progress(tmp_path / "file") as file:
        assert file.read() == b"content"
    assert logged(caplog) == [] and sys.stderr.getvalue() == ""


def wait_for(caplog, pattern):
    """Waits until a line of the log matches, for 30 s at most."""
    end = time.monotonic() + 30
    while not (found := [line for line in logged(caplog) if re.fullmatch(pattern, line)]):
        assert time.monotonic() < end, logged(caplog)
        time.sleep(0.01)
    return found


def test_long_work_that_nobody_watches_logs_count_rate_and_time_left(monkeypatch, caplog):
    unwatched(monkeypatch, caplog, seconds=0.05)
    items = progress(range(4), "evaluation")
    assert next(items) == 0
    wait_for(caplog, "evaluation: 0 of 4 images")
    assert next(items) == 1
    wait_for(caplog, r"evaluation: 1 of 4 images, [\d.]+ (images/s|s each), \d\d:\d\d left")
    items.close()
    count = len(logged(caplog))
    time.sleep(0.2)
    assert len(logged(caplog)) == count


def test_work_of_unknown_length_logs_count_and_rate(monkeypatch, caplog):
    unwatched(monkeypatch, caplog, seconds=0.05)
    items = progress(iter(range(4)), "reading", unit="mask")
    next(items), next(items)
    wait_for(caplog, r"reading: 1 masks, [\d.]+ (masks/s|s each)")
    items.close()


def test_a_stage_and_a_file_that_nobody_watches_log_lines(monkeypatch, caplog, tmp_path):
    unwatched(monkeypatch, caplog, seconds=0.05)
    with stages("export", 3) as done:
        done()
        wait_for(caplog, r"export: 1 of 3 stages, .* left")
    (tmp_path / "archive.tgz").write_bytes(bytes(4_000_000))
    with open_with_progress(tmp_path / "archive.tgz") as file:
        file.read(2_000_000)
        wait_for(caplog, r"reading archive.tgz: 2 of 4 MB, .* left")


def small_model():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.125), "mse", metrics={"dense": "mae"})
    return model


def fit(model, steps, *callbacks):
    data = np.ones((steps, 2)), np.ones((steps, 1))
    return model.fit(*data, batch_size=1, callbacks=callbacks, verbose=0).history


def test_nobody_watching_reads_one_line_for_each_epoch(monkeypatch, caplog):
    unwatched(monkeypatch, caplog)
    model = small_model()
    progress = TrainingProgress(total=10, initial=4, accumulation=2, batch_size=8)
    losses = [fit(model, 6, progress)["loss"][0] for _ in range(2)]
    progress.close()
    first, second = logged(caplog)
    assert first.startswith(f"step 7 of 10: loss {losses[0]:.4f}, mae ")
    assert re.search(
        r"; learning rate 0.125; \d+\.\d\d s a step; [\d.]+ images/s; 00:00 left$", first
    )
    assert second.startswith(f"step 10 of 10: loss {losses[1]:.4f}, mae ")
    assert second.endswith(" images/s")


def test_nobody_watching_reads_a_line_after_some_steps(monkeypatch, caplog):
    unwatched(monkeypatch, caplog, steps=4)
    progress = TrainingProgress(total=100)
    fit(small_model(), 12, progress)
    progress.close()
    lines = [line.partition(":")[0] for line in logged(caplog)]
    assert lines == [f"step {step} of 100" for step in (4, 8, 12)]
    assert re.match(r"step 4 of 100: loss [\d.]+; learning rate 0.125; .* left$", logged(caplog)[0])


class Reads:
    """A loss that notes when it is read, as one that waits for the device would."""

    def __init__(self):
        self.count = 0

    def __float__(self):
        self.count += 1
        return 1.0


def test_losses_are_read_only_for_a_line(monkeypatch, caplog):
    unwatched(monkeypatch, caplog, steps=4)
    progress, loss = TrainingProgress(total=100), Reads()
    progress.set_model(small_model())
    progress.set_params({"steps": 10})
    progress.on_epoch_begin(0)
    for batch in range(10):
        progress.on_train_batch_end(batch, {"loss": loss})
    assert loss.count == len(logged(caplog)) == 2
    progress.close()


def test_a_long_step_logs_that_it_is_computed(monkeypatch, caplog):
    unwatched(monkeypatch, caplog, seconds=0.05)
    progress = TrainingProgress(total=100)
    progress.set_model(small_model())
    progress.set_params({"steps": 10})
    progress.on_epoch_begin(0)
    wait_for(caplog, r"step 1 of 100: computing for \d+ s \(the first step includes compilation\)")
    time.sleep(0.05)
    progress.on_train_batch_end(0, {"loss": 1.0})
    wait_for(caplog, "step 1 of 100: loss 1.0000; learning rate 0.125")
    wait_for(caplog, r"step 2 of 100: computing for \d+ s")
    progress.close()
    count = len(logged(caplog))
    time.sleep(0.2)
    assert len(logged(caplog)) == count


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
