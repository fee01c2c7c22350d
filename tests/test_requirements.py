"""The requirements in setup.py are those of the package's imports."""

import ast
import importlib.metadata
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
JAX_ONLY = "kernel_grid.py"
"""A module that is imported under JAX only, which is an extra."""


@pytest.fixture(scope="module")
def metadata():
    """The distribution that setup.py describes."""
    from setuptools import distutils

    return distutils.core.run_setup(str(ROOT / "setup.py"), stop_after="init")


def names(requirements):
    """Names of distributions, spelled as pip compares them."""
    found = (re.match(r"[A-Za-z0-9._-]+", text)[0] for text in requirements)
    return {re.sub(r"[-_.]+", "-", name).lower() for name in found}


def imported_at_start():
    """Top-level names of the modules that importing the package's modules needs."""
    for path in (ROOT / "dilated_affinity").rglob("*.py"):
        if path.name == JAX_ONLY:
            continue
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(statement, ast.Import):
                yield from (alias.name.split(".")[0] for alias in statement.names)
            elif isinstance(statement, ast.ImportFrom):
                yield statement.module.split(".")[0]


def test_modules_import_required_packages_only(metadata):
    known = importlib.metadata.packages_distributions()
    modules = set(imported_at_start()) - sys.stdlib_module_names - {"dilated_affinity"}
    required = names(metadata.install_requires)
    assert {"keras", "numpy", "tensorflow"} <= modules
    unknown = {module for module in modules if not names(known[module]) & required}
    assert not unknown


def test_no_requirement_is_listed_twice(metadata):
    extras = metadata.extras_require
    for requirements in (metadata.install_requires, *extras.values()):
        assert len(names(requirements)) == len(requirements)
    assert names(metadata.install_requires).isdisjoint(names(extras["test"]))
    assert names(extras["experiments"]) <= names(extras["test"])


def test_the_extra_gpu_adds_cuda_to_the_required_tensorflow(metadata):
    (required,) = [each for each in metadata.install_requires if names([each]) == {"tensorflow"}]
    (extra,) = metadata.extras_require["gpu"]
    assert extra.replace("[and-cuda]", "", 1) == required and "[and-cuda]" in extra
