"""What `doctor` asks of the machine: packages, devices, disk and memory. Imports no TensorFlow
before it checks that it can.
"""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from dilated_affinity.cli import app
from dilated_affinity.cli.doctor_finding import FAILED, MISSING, OK, Finding
from dilated_affinity.config import Config
from dilated_affinity.errors import first_line
from dilated_affinity.runtime.nvidia import nvidia_gpu_wanted
from dilated_affinity.version import __version__

_PACKAGE = "dilated_affinity"
_INSTALL = "pip install -e ."
_SHOWN = ("tensorflow", "keras", "numpy")
_GIB = 2**30
_LEAST_DISK, _LEAST_MEMORY = 1 * _GIB, 2 * _GIB

_JAX_DEVICES = (
    "import jax; print(*(f'{d.platform}:{d.device_kind}' for d in jax.devices()), sep=';')"
)
_JAX_SECONDS = 120


def installation(package: str = _PACKAGE) -> Iterator[Finding]:
    """Checks Python's version, the packages that are required, and those of each extra."""
    try:
        metadata = importlib.metadata.metadata(package)
    except importlib.metadata.PackageNotFoundError:
        yield Finding(FAILED, f"{package} is not installed", f"{_INSTALL} in its folder")
        return
    version = platform.python_version()
    python = f"Python {version} on {platform.system()} {platform.machine()}"
    needed = metadata["Requires-Python"] or ""
    if version in SpecifierSet(needed):
        yield Finding(OK, python)
    else:
        yield Finding(FAILED, f"{python} is not {needed}", "install another Python")
    if package == _PACKAGE and metadata["Version"] != __version__:
        text = f"{package} {__version__}, installed as {metadata['Version']}"
        yield Finding(MISSING, f"{text}; its requirements may have changed", _INSTALL)
    else:
        yield Finding(OK, f"{package} {metadata['Version']}")
    if wrong := unmet(package):
        yield Finding(FAILED, f"packages: {', '.join(wrong)}", _INSTALL)
    else:
        yield Finding(OK, f"packages: {', '.join(_versions(_SHOWN))}")
    for extra in metadata.get_all("Provides-Extra") or ():
        if wrong := unmet(package, extra):
            text = f"extra {extra}: {', '.join(wrong)}"
            yield Finding(MISSING, text, f"pip install -e '.[{extra}]'")
        else:
            yield Finding(OK, f"extra {extra}")


def unmet(package: str, extra: str = "") -> list[str]:
    """The requirements of an installed package that are not installed, or in another version.

    Args:
        package: Name of the package.
        extra: Name of the extra to check; empty for what is required without any.

    Returns:
        The name of each, and, where it is installed, its version and the one required.
    """
    wrong = []
    for text in importlib.metadata.requires(package) or ():
        requirement = Requirement(text)
        if not _belongs(requirement, extra):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(requirement.name)
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
        for inner in requirement.extras:
            wrong += unmet(requirement.name, inner)
    return wrong


def devices() -> Iterator[Finding]:
    """Checks what TensorFlow and JAX compute on, and whether they see an NVIDIA GPU."""
    gpu = nvidia_gpu_wanted(os.environ)
    seen = _tensorflow_devices()
    yield seen
    if seen.status == OK:
        if gpu and " GPU" not in seen.text:
            text = "NVIDIA GPU: TensorFlow does not see it"
            yield Finding(MISSING, text, "pip install -e '.[gpu]'")
        yield _keras_backend()
    if importlib.util.find_spec("jax") is not None:
        seen = _jax_devices()
        yield seen
        if gpu and seen.status == OK and "gpu:" not in seen.text:
            text = "NVIDIA GPU: JAX does not see it"
            yield Finding(MISSING, text, "pip install 'jax[cuda13]'")


def space(folder: Path | None = None) -> Iterator[Finding]:
    """Checks free disk space in the current folder and that of the data, and free memory."""
    folders = [Path.cwd() if folder is None else folder]
    data = folders[0] / Config.data_dir
    if data.is_dir() and data.stat().st_dev != folders[0].stat().st_dev:
        folders.append(data)
    for each in folders:
        free = shutil.disk_usage(each).free
        text = f"disk: {free / _GIB:.1f} GiB free in {each}"
        if free < _LEAST_DISK:
            yield Finding(FAILED, text, "free at least 1 GiB")
        else:
            yield Finding(OK, text)
    if (memory := _memory()) is not None:
        available, total = memory
        text = f"memory: {available / _GIB:.1f} of {total / _GIB:.1f} GiB available"
        if available < _LEAST_MEMORY:
            yield Finding(FAILED, text, "close other programs; training takes 2 GiB and more")
        else:
            yield Finding(OK, text)


def _belongs(requirement, extra):
    """Whether a requirement is one of the extra, and not one without any."""
    if requirement.marker is None:
        return not extra
    without = requirement.marker.evaluate({"extra": ""})
    return without if not extra else requirement.marker.evaluate({"extra": extra}) and not without


def _versions(names):
    for name in names:
        try:
            yield f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            yield f"{name} is not installed"


def _tensorflow_devices():
    try:
        tensorflow = importlib.import_module("tensorflow")
        app.find_devices()
        found = tensorflow.config.list_physical_devices()
        kinds = ", ".join(_name(tensorflow, device) for device in found)
    except Exception as error:  # whatever a damaged installation raises
        return Finding(
            FAILED, f"TensorFlow: {first_line(error)}", f"{_INSTALL} in a new environment"
        )
    return Finding(OK, f"TensorFlow {tensorflow.__version__} sees {kinds}")


def _name(tensorflow, device):
    if device.device_type != "GPU":
        return device.device_type
    details = tensorflow.config.experimental.get_device_details(device)
    return f"the GPU {details.get('device_name', device.name)}"


def _keras_backend():
    try:
        keras = importlib.import_module("keras")
    except Exception as error:  # whatever a damaged installation or an unknown backend raises
        return Finding(FAILED, f"Keras: {first_line(error)}", f"{_INSTALL} in a new environment")
    return Finding(OK, f"Keras {keras.__version__} computes with {keras.backend.backend()}")


def _jax_devices():
    # In another process: here JAX would take most of a GPU's memory.
    command = [sys.executable, "-c", _JAX_DEVICES]
    remedy = "pip install -e '.[jax]' in a new environment"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_JAX_SECONDS)
    except subprocess.TimeoutExpired:
        return Finding(FAILED, f"JAX: no answer within {_JAX_SECONDS} s", remedy)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return Finding(FAILED, f"JAX: {last}", remedy)
    (version,) = _versions(["jax"])
    return Finding(OK, f"JAX ({version}) sees {done.stdout.strip()}")


def _memory():
    """Available and total memory in bytes; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        return sizes["MemAvailable"], sizes["MemTotal"]
    except (OSError, KeyError):
        return None
