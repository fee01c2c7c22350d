"""The first line where a GPU is there that nothing computes on."""

import logging

import pytest
from helpers.tiny import tiny_config

from dilated_affinity.run_dir import describe
from dilated_affinity.run_dir.describe import log_run_summary, unused_gpu
from dilated_affinity.run_dir.model import build_model


@pytest.fixture
def device(tmp_path):
    path = tmp_path / "nvidia0"
    path.touch()
    return path


def test_unused_gpu(device, tmp_path):
    words = unused_gpu((tmp_path / "other", device), environment={})
    assert words.startswith("WARNING: TensorFlow does not see the NVIDIA GPU")
    assert words.endswith("pip install -e '.[gpu]'")


def test_no_warning_without_or_with_hidden_gpu(device, tmp_path, monkeypatch):
    assert unused_gpu((tmp_path / "other",), environment={}) is None
    for hidden in ("", "-1"):
        assert unused_gpu((device,), environment={"CUDA_VISIBLE_DEVICES": hidden}) is None
    assert unused_gpu((device,), environment={"CUDA_VISIBLE_DEVICES": "0"}) is not None
    monkeypatch.setattr(describe, "gpu_names", lambda: ["NVIDIA H100"])
    assert unused_gpu((device,), environment={}) is None


def test_unused_gpu_under_jax(device, monkeypatch):
    monkeypatch.setattr(describe.keras.backend, "backend", lambda: "jax")
    monkeypatch.setattr(describe, "gpu_names", list)
    assert "jax[cuda13]" in unused_gpu((device,), environment={})
    assert unused_gpu((device,), environment={"JAX_PLATFORMS": "cpu"}) is None
    assert unused_gpu((device,), environment={"JAX_PLATFORMS": "cuda,cpu"}) is not None


def test_summary_warns_of_unused_gpu(device, monkeypatch, caplog):
    monkeypatch.setattr(describe, "NVIDIA_FILES", (device,))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    config = tiny_config("unused")
    model = build_model(config, 11)
    with caplog.at_level(logging.INFO, logger="absl"):
        log_run_summary(config, model, 11, "3 images", "steps 0 to 4", "runs/mine")
    assert "on CPU (WARNING: TensorFlow does not see the NVIDIA GPU" in caplog.text
