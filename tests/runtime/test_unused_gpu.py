"""The warning where a GPU is there that nothing computes on."""

import logging

import pytest
from absl import logging as absl_logging
from helpers.tiny import tiny_config

from dilated_affinity.cli import app
from dilated_affinity.run_dir.describe import log_run_summary
from dilated_affinity.run_dir.model import build_model
from dilated_affinity.runtime import unused_gpu as module
from dilated_affinity.runtime.unused_gpu import unused_gpu, warn_of_unused_gpu


@pytest.fixture
def device(tmp_path):
    path = tmp_path / "nvidia0"
    path.touch()
    return path


def test_unused_gpu(device, tmp_path):
    words = unused_gpu((tmp_path / "other", device), environment={})
    assert words.startswith("TensorFlow does not see the NVIDIA GPU")
    assert words.endswith("pip install -e '.[gpu]'")


def test_no_warning_without_or_with_hidden_gpu(device, tmp_path, monkeypatch):
    assert unused_gpu((tmp_path / "other",), environment={}) is None
    for hidden in ("", "-1"):
        assert unused_gpu((device,), environment={"CUDA_VISIBLE_DEVICES": hidden}) is None
    assert unused_gpu((device,), environment={"CUDA_VISIBLE_DEVICES": "0"}) is not None
    monkeypatch.setattr(module, "gpu_names", lambda: ["NVIDIA H100"])
    assert unused_gpu((device,), environment={}) is None


def test_unused_gpu_under_jax(device, monkeypatch):
    monkeypatch.setattr(module.keras.backend, "backend", lambda: "jax")
    monkeypatch.setattr(module, "gpu_names", list)
    assert "jax[cuda13]" in unused_gpu((device,), environment={})
    assert unused_gpu((device,), environment={"JAX_PLATFORMS": "cpu"}) is None
    assert unused_gpu((device,), environment={"JAX_PLATFORMS": "cuda,cpu"}) is not None


@pytest.fixture
def warned(device, monkeypatch, caplog):
    """Log of a process in which nothing was logged before."""
    monkeypatch.setattr(module, "NVIDIA_FILES", (device,))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    caplog.set_level(logging.INFO, logger="absl")
    warn_of_unused_gpu.cache_clear()
    yield caplog
    warn_of_unused_gpu.cache_clear()


def test_a_command_warns_in_its_first_line(warned):
    assert app._status(lambda: absl_logging.warning("the best of 4")) == 0
    assert "does not see the NVIDIA GPU" in warned.messages[0]
    assert warned.messages[1:] == ["the best of 4"]


def test_training_in_a_notebook_warns_once_before_its_summary(warned):
    config = tiny_config("unused")
    model = build_model(config, 11)
    for _ in range(2):
        log_run_summary(config, model, 11, "3 images", "steps 0 to 4", "runs/mine")
    first, *others = warned.messages
    assert "does not see the NVIDIA GPU" in first
    assert len(others) == 2 and all("; on CPU, float32;" in line for line in others)
