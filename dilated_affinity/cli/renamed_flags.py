"""Flags of earlier versions by their names of today."""

import re

from absl import flags

from dilated_affinity.inference.refiners import RENAMED

_RENAMED = {
    "iterations": ("train_steps", "propagation_iterations"),
    "flip": ("random_flip", "eval_flip"),
    "scales": ("eval_scales",),
    "window": ("eval_window",),
    "structure": ("objective",),
    "postprocess": ("refine",),
    "refinement": ("refine",),
    "refine_with": ("affinity_source",),
}
"""New names of the flags of version 0.1.0; of several, the one that the command defines."""

_VALUES = {
    "postprocess": {"propagate": "propagation"},
    "refinement": RENAMED,
    "refine_with": {"prediction": "predicted"},
}
"""New values of renamed flags."""


def with_new_names(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Replaces the names of renamed flags on a command line.

    Args:
        arguments: The command line. What follows a lone `--` is left as it is.

    Returns:
        The command line with the names of this version, and one line for each name replaced.
    """
    replaced, notes = [], []
    end = arguments.index("--") if "--" in arguments else len(arguments)
    for argument in arguments[:end]:
        given = re.fullmatch(r"(--?)(\w+)(=.*)?", argument, re.DOTALL)
        new = _new_name(given[2]) if given else None
        if new is not None:
            notes.append(f"--{given[2]} is called --{new} since version 0.2.0")
            argument = f"--{new}"
            if given[3] is not None:
                value = given[3].removeprefix("=")
                argument += f"={_VALUES.get(given[2], {}).get(value, value)}"
        replaced.append(argument)
    return replaced + arguments[end:], notes


def _new_name(name):
    """The name of a renamed flag in the running command, or None; `no` may precede booleans."""
    for prefix in ("", "no"):
        for new in _RENAMED.get(name.removeprefix(prefix), ()):
            if new in flags.FLAGS and name not in flags.FLAGS:
                return prefix + new
    return None
