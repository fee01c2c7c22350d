"""Tests that `train` restores the global state of the process."""

import random

import numpy as np
import pytest
import tensorflow as tf
from helpers.tiny import tiny_config, write_camvid
from tensorflow.python.framework.config import disable_op_determinism, is_op_determinism_enabled

from dilated_affinity.errors import RunError
from dilated_affinity.runtime.reproducibility import deterministic_operations
from dilated_affinity.training import trainer
from dilated_affinity.training.trainer import train


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    return write_camvid(tmp_path_factory.mktemp("camvid"))


@pytest.fixture(autouse=True)
def _not_deterministic():
    disable_op_determinism()
    yield
    disable_op_determinism()


def draws():
    return random.random(), np.random.random(), float(tf.random.uniform(()))


def seed(number):
    random.seed(number)
    np.random.seed(number)
    tf.random.set_seed(number)


def test_train_restores_generators_and_determinism(camvid, tmp_path, monkeypatch):
    during = []
    compiled = trainer.compile_model

    def compile_model(*arguments):
        during.append(is_op_determinism_enabled())
        return compiled(*arguments)

    monkeypatch.setattr(trainer, "compile_model", compile_model)
    seed(5)
    first, expected = draws(), draws()
    seed(5)
    assert draws() == first
    train(tiny_config(camvid, train_steps=1), tmp_path)
    assert during == [True] and not is_op_determinism_enabled()
    assert draws() == expected


def test_train_restores_generators_after_an_error(camvid, tmp_path):
    seed(6)
    expected = draws()
    seed(6)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError):
        train(tiny_config(camvid), tmp_path / "file" / "run")
    assert not is_op_determinism_enabled()
    assert draws() == expected


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("wanted", [False, True])
def test_deterministic_operations(before, wanted):
    if before:
        tf.config.experimental.enable_op_determinism()
    with deterministic_operations(wanted):
        assert is_op_determinism_enabled() == (wanted or before)
    assert is_op_determinism_enabled() == before


def test_train_without_determinism(camvid, tmp_path, monkeypatch):
    during = []
    monkeypatch.setattr(
        trainer,
        "load_sources",
        lambda *_: during.append(is_op_determinism_enabled()) or 1 / 0,
    )
    for deterministic in (True, False):
        with pytest.raises(ZeroDivisionError):
            train(tiny_config(camvid, deterministic=deterministic), tmp_path / "run")
    assert during == [True, False]
