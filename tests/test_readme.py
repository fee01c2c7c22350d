"""README's code does what it says."""

import re
from pathlib import Path

import numpy as np
import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
def test_the_notebook_lines_train_and_predict(tmp_path, monkeypatch):
    """As printed, but for the number of steps."""
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(import keras.*?)```", README.read_text(), re.S).group(1)
    shortened = code.replace('for_dataset("shapes")', 'for_dataset("shapes", iterations=3)')
    assert shortened != code
    names = {}
    exec(shortened, names)
    refined = np.asarray(names["refined"])
    assert refined.shape == (1, *names["example"]["label"].shape)
    assert refined.dtype == np.uint8
    assert refined.max() < 7
