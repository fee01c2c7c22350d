"""The package's public names, and the classes that Keras knows once it is imported."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dilated_affinity

PACKAGE = Path(dilated_affinity.__file__).parent


def listed():
    """Module of each name in the imports that only type checkers see."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    return {name.name: line.module for line in block.body for name in line.names}


def test_type_checkers_see_what_there_is():
    assert sorted(listed()) == sorted(dilated_affinity.__all__)
    for name, module in listed().items():
        value = getattr(importlib.import_module(module), name)
        assert getattr(dilated_affinity, name) is value, name
    assert set(dilated_affinity.__all__) <= set(dir(dilated_affinity))


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = dilated_affinity.trian


def run(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_registers_every_class_with_keras():
    program = "import dilated_affinity, keras; print(*keras.saving.get_custom_objects())"
    decorated = re.compile(r'register_keras_serializable\("dilated_affinity"\)\nclass (\w+)')
    texts = [path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")]
    names = {name for text in texts for name in decorated.findall(text)}
    assert len(names) > 10
    assert {f"dilated_affinity>{name}" for name in names} <= set(run(program).split())


def test_a_command_imports_tensorflow_only_when_it_needs_it():
    program = (
        "import sys; sys.argv[0] = 'train_main'; import dilated_affinity as da;"
        "from dilated_affinity import __main__; assert 'tensorflow' not in sys.modules;"
        "print(da.Config.dataset, 'tensorflow' in sys.modules, da.MeanIoU.__name__)"
    )
    assert run(program) == "shapes False MeanIoU\n"
