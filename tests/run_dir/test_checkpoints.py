import resource
import zipfile

import keras
import numpy as np
import pytest

from dilated_affinity.errors import DataError, RunError
from dilated_affinity.run_dir.checkpoints import (
    Checkpoints,
    TrainingState,
    read_state,
    write_checkpoint,
)
from dilated_affinity.runtime.files import exclusive_lock, remove_unfinished

ROWS = [
    {"epoch": 0, "loss": 1.5, "step": 2, "val_mean_iou": 0.25},
    {"epoch": 1, "loss": float("nan"), "step": 4, "val_mean_iou": float("nan")},
    {"epoch": 2, "loss": 1.0, "step": 6},
]


@pytest.fixture(scope="module")
def model():
    inputs = keras.Input((3,))
    return keras.Model(inputs, keras.layers.Dense(2)(inputs))


@pytest.fixture
def checkpoints(model, tmp_path):
    """Steps 1 to 3, the last two kept."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        checkpoints.write(model, TrainingState(step=step))
    return checkpoints


def test_checkpoint_is_keras_file_with_state(model, tmp_path):
    state = TrainingState(6, 7, [1.1, [2.0, 3]], ROWS, 4, {"5": "a.png: damaged"})
    write_checkpoint(tmp_path / "a.keras", model, state)
    assert str(read_state(tmp_path / "a.keras")) == str(state)
    assert state.best == 0.25
    loaded = keras.models.load_model(tmp_path / "a.keras")
    for first, second in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(first, second)


def test_newest_are_kept(checkpoints, tmp_path):
    names = ["step-00000002.keras", "step-00000003.keras"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert checkpoints.latest().name == names[1]


def _flip(data, position):
    return data[:position] + bytes([data[position] ^ 16]) + data[position + 1 :]


DAMAGE = {
    "zero bytes": lambda data: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "last byte gone": lambda data: data[:-1],
    "byte too many": lambda data: data + b"0",
    "zeros at the end": lambda data: data[:-2000] + bytes(2000),
    "flipped bit": lambda data: _flip(data, len(data) // 3),
    "flipped bit of the checksum": lambda data: _flip(data, len(data) - 1),
    "flipped bit of the mark": lambda data: _flip(data, len(data) - 70),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_checkpoints_are_set_aside(checkpoints, tmp_path, damage, caplog):
    path = tmp_path / "step-00000003.keras"
    damaged = DAMAGE[damage](path.read_bytes())
    path.write_bytes(damaged)
    assert checkpoints.latest().name == "step-00000002.keras"
    assert str(path) in caplog.text and "Using step-00000002.keras" in caplog.text
    assert (tmp_path / "step-00000003.keras.damaged").read_bytes() == damaged
    assert [found.name for found in checkpoints.paths()] == ["step-00000002.keras"]


def test_flipped_bits(model, tmp_path):
    path = tmp_path / "a.keras"
    write_checkpoint(path, model, TrainingState())
    data = path.read_bytes()
    for position in np.random.default_rng(0).integers(0, len(data), 100):
        path.write_bytes(_flip(data, position))
        with pytest.raises(DataError, match=r"a\.keras: "):
            read_state(path)


def test_all_checkpoints_damaged(checkpoints, tmp_path):
    for path in checkpoints.paths():
        path.write_bytes(b"")
    with pytest.raises(RunError, match=r"step-00000003.keras.*nor any of the 1 before it"):
        checkpoints.latest()
    assert len(checkpoints.paths()) == 2


def test_folder_without_checkpoints(tmp_path):
    assert Checkpoints(tmp_path / "missing").latest() is None


def test_full_disk(checkpoints, model, tmp_path):
    """The limit on the size of files stands in for the end of the disk."""
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(RunError, match=r"step-00000004.keras: .* written: File too large"):
            checkpoints.write(model, TrainingState(step=4))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_folder_that_cannot_be_written(model, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="cannot be written"):
        Checkpoints(tmp_path / "file").write(model, TrainingState(step=1))


@pytest.mark.parametrize(
    "state",
    [
        [],
        {},
        {"step": 1},
        {**vars(TrainingState()), "step": True},
        {**vars(TrainingState()), "step": -1},
        {**vars(TrainingState()), "step": 1e300},
        {**vars(TrainingState()), "metrics": {}},
        {**vars(TrainingState()), "rows": [1]},
        {**vars(TrainingState()), "rows": [{"loss": "=cmd"}]},
        {**vars(TrainingState()), "skipped_examples": {"1": []}},
    ],
)
def test_invalid_state(state):
    with pytest.raises(ValueError):
        TrainingState.from_json(state)


def test_plain_keras_file_is_not_a_checkpoint(model, tmp_path):
    model.save(tmp_path / "a.keras")
    assert zipfile.is_zipfile(tmp_path / "a.keras")
    with pytest.raises(DataError, match="do not end in their checksum"):
        read_state(tmp_path / "a.keras")


def test_lock(tmp_path):
    with exclusive_lock(tmp_path / "lock"):
        with pytest.raises(BlockingIOError), exclusive_lock(tmp_path / "lock"):
            pass
    with exclusive_lock(tmp_path / "lock"):
        pass


def test_unfinished_files_are_removed(tmp_path):
    (tmp_path / "kept").write_text("")
    (tmp_path / ".writing-x").mkdir()
    (tmp_path / ".writing-x" / "file").write_text("")
    (tmp_path / ".writing-y").symlink_to(tmp_path / "kept")
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize(
    ("values", "since"),
    [
        ((), 0),
        ((0.1,), 0),
        ((0.1, 0.2), 0),
        ((0.2, 0.2), 1),
        ((0.2, 0.1, float("nan"), 0.2), 3),
        ((float("nan"), 0.1), 0),
        ((0.3, 0.1, 0.4, 0.2), 1),
    ],
)
def test_validations_since_best(values, since):
    rows = [{"val_mean_iou": value} for value in values]
    assert TrainingState(rows=[*rows, {"step": 9}]).validations_since_best == since
