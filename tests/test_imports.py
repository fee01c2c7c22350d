"""Imports between the packages run one way, and modules stay small."""

import ast

import pytest
from helpers.commands import ROOT

PACKAGE = ROOT / "dilated_affinity"

ORDER = (
    *("version", "errors", "recipes", "runtime", "affinity", "datasets", "baselines", "models"),
    *("visualization", "inference", "config", "evaluation", "run_dir", "training", "export"),
    *("report", "cli"),
)
"""Modules and packages at the top; each imports only itself and those before it (WORKSPACE.md)."""

LARGEST = 400
"""Lines of a module; `config`, the list of all settings, may have more."""

MODULES = sorted(PACKAGE.rglob("*.py"))


def part_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(path):
    """Yields the top-level parts of the package that a module imports, in functions as well."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module == "dilated_affinity":
            names = [f"{node.module}.{each.name}" for each in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [each.name for each in node.names]
        for name in names:
            package, *parts = name.split(".")
            if package == "dilated_affinity" and parts:
                yield parts[0]


def test_order_names_every_part():
    parts = {part_of(path) for path in MODULES} - {"__init__", "__main__"}
    assert parts == set(ORDER)


@pytest.mark.parametrize("part", ORDER)
def test_imports_run_one_way(part):
    earlier = ORDER[: ORDER.index(part) + 1]
    upward = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in MODULES
        if part_of(path) == part
        for name in imported_parts(path)
        if name not in earlier
    ]
    assert not upward


def test_modules_are_small():
    lines = {
        str(path.relative_to(PACKAGE)): len(path.read_text(encoding="utf-8").splitlines())
        for path in MODULES
    }
    assert [name for name, count in lines.items() if count > LARGEST] == ["config.py"]
