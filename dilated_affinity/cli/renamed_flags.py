"""Flags of earlier versions by their names of today."""

import re

from absl import flags

from dilated_affinity.inference.refiners import renamed_refine

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

_OF_OTHER_VALUES = ("postprocess", "refinement", "refine_with")
"""Renamed flags whose values have new names as well."""


def with_new_names(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Replaces the names of renamed flags on a command line.

    Args:
        arguments: The command line. What follows a lone `--` is left as it is.

    Returns:
        The command line with the names of this version, and one line for each name replaced.
    """
    replaced, notes, refine = [], [], {}
    end = arguments.index("--") if "--" in arguments else len(arguments)
    remaining = iter(arguments[:end])
    for argument in remaining:
        given = re.fullmatch(r"--?(\w+)(=.*)?", argument, re.DOTALL)
        name, value = given.groups() if given else (None, None)
        new = _new_name(name) if given else None
        if new is None:
            replaced.append(argument)
            continue
        notes.append(f"--{name} is called --{new} since version 0.2.0")
        if name in _OF_OTHER_VALUES:
            value = next(remaining, "") if value is None else value[1:]
        if name in ("postprocess", "refinement"):
            refine[name] = value
        elif name == "refine_with":
            replaced.append(f"--{new}={'predicted' if value == 'prediction' else value}")
        else:
            replaced.append(f"--{new}{value or ''}")
    if refine:
        replaced.append(f"--refine={renamed_refine(**refine)}")
    return replaced + arguments[end:], notes


def _new_name(name):
    """The name of a renamed flag in the running command, or None; `no` may precede booleans."""
    for prefix in ("", "no"):
        for new in _RENAMED.get(name.removeprefix(prefix), ()):
            if new in flags.FLAGS and name not in flags.FLAGS:
                return prefix + new
    return None
