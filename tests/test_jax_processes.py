"""Tests of two processes under JAX against one, and of what processes share.

The computations are functions of this file, see `jax_processes`.
"""

import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import jax_processes
from helpers.jax_processes import needs_jax
from helpers.tiny import tiny_config, write_camvid
from helpers.training_step import step

from dilated_affinity import training_dataset
from dilated_affinity.errors import ConfigError, RunError
from dilated_affinity.run_dir.checkpoints import Checkpoints
from dilated_affinity.run_dir.layout import CHECKPOINTS
from dilated_affinity.runtime.distribution import (
    PROCESS_VARIABLES,
    broadcast,
    find_replicas,
    join_processes,
)
from dilated_affinity.training.trainer import train


def fit(data_dir, *model_dirs):
    """A short run, stopped and resumed; each process has its own `model_dir`."""
    config = tiny_config(data_dir)
    model_dir = Path(model_dirs[find_replicas().process])
    stopped = train(config, model_dir, stop_after=1).step
    result = train(config, model_dir)
    try:
        train(config.replace(beta=1.0), model_dir)
    except RunError as error:
        refused = "beta=6.0 (now 1.0)" in str(error)
    return {
        "steps": [stopped, result.step],
        "mean_iou": result.best_mean_iou,
        "refused": refused,
    }


def failures(data_dir, model_dir):
    """The errors of every process for a fault in one of them."""
    process = find_replicas().process

    def fail():
        raise RunError("disk full")

    messages = []
    for attempt in (
        lambda: broadcast(fail),
        lambda: broadcast(fail, 1),
        lambda: train(tiny_config(data_dir, beta=1.0 + process), model_dir),
    ):
        try:
            attempt()
        except (ConfigError, RunError) as error:
            messages.append(str(error))
    return {"messages": messages}


def everything(data_dir, unused, *model_dirs):
    """All that is compared between one process and two."""
    parts = {"step": step(), "fit": fit(data_dir, *model_dirs)}
    if len(model_dirs) > 1:
        parts["failures"] = failures(data_dir, unused)
    return {f"{part}/{name}": v for part, values in parts.items() for name, v in values.items()}


def run_under_jax(folder, data_dir, *names):
    """Returns the results of as many processes as there are names of runs, and the runs."""
    model_dirs = [folder / name for name in names]
    given = "everything", folder, data_dir, folder / "unused", *model_dirs
    return jax_processes.run_under_jax(__file__, *given, processes=len(names)), *model_dirs


def part_of(results, part):
    """The results of one of the functions above by name."""
    prefix = f"{part}/"
    return {k.removeprefix(prefix): v for k, v in results.items() if k.startswith(prefix)}


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    return write_camvid(tmp_path_factory.mktemp("camvid"))


@pytest.fixture(scope="module")
def one_process(camvid, tmp_path_factory):
    (results,), model_dir = run_under_jax(tmp_path_factory.mktemp("one"), camvid, "run")
    return results, model_dir


@pytest.fixture(scope="module")
def two_processes(camvid, tmp_path_factory):
    return run_under_jax(tmp_path_factory.mktemp("two"), camvid, "run", "other")


def latest(model_dir):
    return Checkpoints(model_dir / CHECKPOINTS).latest()


@needs_jax
@pytest.mark.slow
def test_resumed_run_is_readable_by_tensorflow(one_process):
    results, model_dir = one_process
    results = part_of(results, "fit")
    assert results["steps"].tolist() == [1, 4]
    assert 0 <= results["mean_iou"] <= 1 and results["refused"]
    header, *rows = (model_dir / "log.csv").read_text().splitlines()
    losses = [float(row.split(",")[header.split(",").index("loss")]) for row in rows]
    assert len(losses) == 2 and np.isfinite(losses).all()
    model = keras.models.load_model(latest(model_dir), compile=False)
    assert np.isfinite(model(np.zeros((1, 33, 33, 3)))["semantic"]).all()


@needs_jax
@pytest.mark.slow
def test_step_of_two_processes_equals_one(one_process, two_processes):
    expected = part_of(one_process[0], "step")
    assert len(expected) > 80
    for results in (part_of(each, "step") for each in two_processes[0]):
        assert set(results) == set(expected)
        for name, value in expected.items():
            scale = max(np.abs(value).max(), 0.1)
            np.testing.assert_allclose(
                results[name], value, rtol=0, atol=1e-5 * scale, err_msg=name
            )


@needs_jax
@pytest.mark.slow
def test_run_of_two_processes_equals_one(one_process, two_processes):
    results, single = one_process
    expected = part_of(results, "fit")
    results, model_dir, other = two_processes
    for each in (part_of(each, "fit") for each in results):
        assert each["steps"].tolist() == [1, 4] and each["refused"]
        assert each["mean_iou"] == pytest.approx(expected["mean_iou"], abs=1e-3)
    assert not other.exists()
    names = {path.relative_to(single) for path in single.rglob("*")}
    assert {path.relative_to(model_dir) for path in model_dir.rglob("*")} == names
    final = [keras.models.load_model(latest(each), compile=False) for each in (model_dir, single)]
    for two, one in zip(*(model.weights for model in final), strict=True):
        scale = max(np.abs(one).max(), 0.1)
        np.testing.assert_allclose(two, one, rtol=0, atol=1e-4 * scale, err_msg=one.path)


@needs_jax
@pytest.mark.slow
def test_errors_of_one_process_are_raised_on_all(two_processes):
    for results in two_processes[0]:
        *failed, settings = results["failures/messages"]
        assert failed == ["disk full", "disk full"]
        assert settings.endswith("Received: beta=1.0 (in process 1 2.0)")


@pytest.mark.parametrize("accumulation", [1, 2])
def test_parts_of_a_batch(camvid, accumulation):
    config = tiny_config(camvid, batch_size=8, accumulation=accumulation)
    whole = list(training_dataset(config, first_step=1, steps=2))
    parts = [training_dataset(config, first_step=1, steps=2, part=k, parts=2) for k in range(2)]
    assert [len(part) for part in parts] == [2 * accumulation] * 2
    for (images, targets), *shares in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(images, np.concatenate([each[0] for each in shares]))
        for name, values in targets.items():
            together = np.concatenate([each[1][name] for each in shares])
            np.testing.assert_array_equal(values, together)


def test_indivisible_batch_is_refused(camvid):
    with pytest.raises(ConfigError, match="Received: batch_size=8, accumulation=2, parts=3"):
        training_dataset(tiny_config(camvid, batch_size=8, accumulation=2), parts=3)


def test_processes_need_jax(monkeypatch):
    monkeypatch.setenv("KERAS_DISTRIBUTION_NUM_PROCESSES", "2")
    with pytest.raises(ConfigError, match="needs KERAS_BACKEND=jax"):
        join_processes()


def test_join_processes_without_variables(monkeypatch):
    for name in PROCESS_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    join_processes()
    assert find_replicas().processes == 1 and find_replicas().is_first
    assert broadcast(lambda: 5, process=3) == 5


if __name__ == "__main__":
    jax_processes.main(globals(), *sys.argv[1:])
