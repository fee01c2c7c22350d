"""Fixtures and settings of all tests."""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras  # noqa: E402
import pytest  # noqa: E402
from absl import logging  # noqa: E402

SHARED = Path(__file__).resolve().parents[2] / "shared"

LONGEST = ("test_kills.py", "test_trainer.py", "test_commands.py", "test_export.py")
"""Files that are run first, so that no process waits for another at the end."""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(autouse=True)
def _seed():
    """Sets the same seed before every test."""
    keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True)
def _verbosity():
    """Restores the verbosity of the log, which commands set, after every test."""
    before = logging.get_verbosity()
    yield
    logging.set_verbosity(before)


@pytest.fixture(scope="session")
def shared_file():
    """Returns the path of a file in `shared/` beside the repository, or skips the test."""

    def find(relative):
        path = SHARED / relative
        if not path.exists():
            pytest.skip(f"{path} does not exist")
        return path

    return find
