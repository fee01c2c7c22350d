"""Flags of version 0.1.0: refused by their old names, with the new ones."""

import re

from absl import flags

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

_TAKEN = "train_steps"
"""The one whose old name is still taken, in 0.2: every training script has it."""


def with_new_names(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Replaces `--iterations` of training by its new name.

    Args:
        arguments: The command line. What follows a lone `--` is left as it is.

    Returns:
        The command line with the names of this version, and one line for each name replaced.

    Raises:
        absl.flags.Error: For any other flag of version 0.1.0, with its new name.
    """
    replaced, notes = [], []
    end = arguments.index("--") if "--" in arguments else len(arguments)
    for argument in arguments[:end]:
        given = re.fullmatch(r"--?(\w+)(=.*)?", argument, re.DOTALL)
        new = _new_name(given[1]) if given else None
        if new is None:
            replaced.append(argument)
            continue
        note = f"--{given[1]} is called --{new} since version 0.2.0"
        if new != _TAKEN:
            raise flags.Error(f"{note}; CHANGELOG.md has its values.")
        notes.append(note)
        replaced.append(f"--{new}{given[2] or ''}")
    return replaced + arguments[end:], notes


def _new_name(name):
    """The name of a renamed flag in the running command, or None; `no` may precede booleans."""
    for prefix in ("", "no"):
        for new in _RENAMED.get(name.removeprefix(prefix), ()):
            if new in flags.FLAGS and name not in flags.FLAGS:
                return prefix + new
    return None
