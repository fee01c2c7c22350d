"""The JSON file of a benchmark: what was measured, with which settings, and where."""

import json

from absl import flags

from dilated_affinity.runtime.files import write_atomically
from dilated_affinity.runtime.system import environment
from dilated_affinity.version import __version__

OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")


def write_result(settings: dict, results: dict):
    """Writes the file that --output names, if it is given.

    Args:
        settings: Settings of the benchmark.
        results: Its numbers, by name.
    """
    if OUTPUT.value:
        content = {"package_version": __version__, **environment(), "settings": settings, **results}
        write_atomically(OUTPUT.value, (json.dumps(content, indent=1) + "\n").encode())


def flag_values(*names) -> dict:
    """Values of flags by name."""
    return {name: flags.FLAGS[name].value for name in names}
