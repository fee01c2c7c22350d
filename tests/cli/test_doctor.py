"""`python -m dilated_affinity doctor`."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver

from dilated_affinity.affinity import propagation
from dilated_affinity.cli import doctor_machine, doctor_main, doctor_self_test
from dilated_affinity.cli.doctor_finding import FAILED, MISSING, OK, Finding
from dilated_affinity.version import __version__

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def parsed():
    flags.FLAGS(["doctor"])


def write_package(folder, name, version, *lines):
    """Writes what pip leaves of an installed package."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    head = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines]
    (info / "METADATA").write_text("\n".join(head) + "\n")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package with requirements of which some are met."""
    write_package(
        tmp_path,
        "examined",
        "1.0",
        "Requires-Python: >=3.11",
        "Requires-Dist: present>=1,<2",
        "Requires-Dist: present[more]; extra == 'deep'",
        "Requires-Dist: absent; python_version < '3'",
        "Requires-Dist: absent>=1; extra == 'broken'",
        "Requires-Dist: present>=2; extra == 'broken'",
        "Requires-Dist: present; extra == 'whole'",
        "Provides-Extra: broken",
        "Provides-Extra: deep",
        "Provides-Extra: whole",
    )
    write_package(tmp_path, "present", "1.5", "Requires-Dist: inner; extra == 'more'")
    monkeypatch.syspath_prepend(tmp_path)


def test_requirements_that_are_not_met_are_named(installed):
    assert doctor_machine.unmet("examined") == []
    assert doctor_machine.unmet("examined", "broken") == ["absent", "present 1.5 is not >=2"]
    assert doctor_machine.unmet("examined", "deep") == ["inner"]
    assert doctor_machine.unmet("examined", "whole") == []


def test_the_installation_is_reported_with_what_to_do(installed):
    findings = {each.text: each for each in doctor_machine.installation("examined")}
    assert findings["examined 1.0"].status == OK
    assert findings["extra whole"].status == OK
    missing = findings["extra deep: inner"]
    assert (missing.status, missing.remedy) == (MISSING, "pip install -e '.[deep]'")


def test_a_missing_required_package_fails(installed, tmp_path):
    shutil.rmtree(tmp_path / "present-1.5.dist-info")
    failed = [each for each in doctor_machine.installation("examined") if each.status == FAILED]
    assert failed == [Finding(FAILED, "packages: present", "pip install -e .")]


def test_another_python_fails(installed, monkeypatch):
    monkeypatch.setattr(doctor_machine.platform, "python_version", lambda: "3.10.4")
    first = next(doctor_machine.installation("examined"))
    assert first.status == FAILED and "3.10.4" in first.text and ">=3.11" in first.text


def test_a_package_that_is_not_installed_fails():
    (finding,) = doctor_machine.installation("not_installed_at_all")
    assert finding.status == FAILED and "not_installed_at_all is not installed" in finding.text


def test_an_installation_of_another_version_is_named(monkeypatch):
    real = importlib.metadata.metadata

    def metadata(name):
        found = real(name)
        found.replace_header("Version", "0.0.1")
        return found

    monkeypatch.setattr(importlib.metadata, "metadata", metadata)
    (old,) = [each for each in doctor_machine.installation() if "0.0.1" in each.text]
    assert old.status == MISSING and __version__ in old.text and old.remedy == "pip install -e ."


def test_a_gpu_that_is_not_seen_is_reported(monkeypatch):
    monkeypatch.setattr(doctor_machine, "_tensorflow_devices", lambda: Finding(OK, "sees CPU"))
    monkeypatch.setattr(doctor_machine, "_jax_devices", lambda: Finding(OK, "sees cpu:cpu"))
    monkeypatch.setattr(doctor_machine.importlib.util, "find_spec", lambda name: name)
    for present in (True, False):
        monkeypatch.setattr(doctor_machine, "nvidia_gpu_wanted", lambda *_, there=present: there)
        unseen = [each for each in doctor_machine.devices() if "does not see it" in each.text]
        assert [each.remedy for each in unseen] == present * [
            "pip install -e '.[gpu]'",
            "pip install 'jax[cuda13]'",
        ]


def test_a_damaged_tensorflow_fails(monkeypatch):
    def broken(name):
        raise ImportError("libtensorflow: cannot open\nand more")

    monkeypatch.setattr(doctor_machine.importlib, "import_module", broken)
    finding = next(doctor_machine.devices())
    assert (finding.status, finding.text) == (FAILED, "TensorFlow: libtensorflow: cannot open")
    assert finding.remedy


def test_a_damaged_jax_fails(monkeypatch):
    monkeypatch.setattr(doctor_machine, "_JAX_DEVICES", "raise ImportError('no jaxlib')")
    finding = doctor_machine._jax_devices()
    assert (finding.status, finding.text) == (FAILED, "JAX: ImportError: no jaxlib")


def test_little_space_fails(monkeypatch, tmp_path):
    assert {each.status for each in doctor_machine.space(tmp_path)} <= {OK, FAILED}
    monkeypatch.setattr(doctor_machine, "_LEAST_DISK", 2**62)
    monkeypatch.setattr(doctor_machine, "_memory", lambda: (2**30, 2**34))
    disk, memory = doctor_machine.space(tmp_path)
    assert disk.status == memory.status == FAILED
    assert str(tmp_path) in disk.text and memory.text == "memory: 1.0 of 16.0 GiB available"


def test_the_self_test_passes():
    findings = list(doctor_self_test.self_test())
    assert not tf.config.functions_run_eagerly()
    assert [each.status for each in findings] == [OK] * 3, findings
    texts = [each.text for each in findings]
    assert texts[0].startswith("training: 2 steps on drawn shapes, validation mIoU ")
    assert texts[1].startswith("propagation: 3 iterations differ from Eq. 6 by at most ")
    assert texts[2].startswith("export: a SavedModel, read back, gives probabilities within ")


def test_a_wrong_propagation_fails(monkeypatch):
    monkeypatch.setattr(propagation, "propagate", lambda probabilities, *_: probabilities)
    finding = doctor_self_test._attempt("propagation", doctor_self_test._propagate)
    assert finding.status == FAILED and "differ from Eq. 6 by" in finding.text
    assert "report it" in finding.remedy
    with flagsaver.flagsaver(debug=True), pytest.raises(ArithmeticError):
        doctor_self_test._attempt("propagation", doctor_self_test._propagate)


@pytest.mark.parametrize(("status", "code"), [(OK, None), (MISSING, None), (FAILED, 1)])
def test_the_exit_status_tells_of_failures_only(monkeypatch, capsys, status, code):
    monkeypatch.setattr(doctor_main, "_findings", lambda: [Finding(status, "it", "this")])
    if code is None:
        doctor_main._doctor()
    else:
        with pytest.raises(SystemExit) as left:
            doctor_main._doctor()
        assert left.value.code == code
    assert capsys.readouterr().out.startswith(f"{status:<7}  it. To do: this\n")


def test_the_command_runs_under_its_short_name():
    done = subprocess.run(
        [sys.executable, "-m", "dilated_affinity", "doctor", "--noself_test"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=300,
    )
    failed = [line for line in done.stdout.splitlines() if line.startswith(FAILED)]
    assert done.returncode == bool(failed), done.stderr
    assert "\nok       TensorFlow " in done.stdout and "disk: " in done.stdout
