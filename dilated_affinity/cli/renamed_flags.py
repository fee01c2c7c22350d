"""Flags of earlier versions, which are refused with their names of today."""

from absl import flags

_RENAMED = {
    "iterations": ("train_steps", "propagation_iterations"),
    "flip": ("random_flip", "eval_flip"),
    "scales": ("eval_scales",),
    "window": ("eval_window",),
    "postprocess": ("refine",),
    "refinement": ("refine",),
    "refine_with": ("affinity_source",),
}
"""New names of the flags of version 0.1.0; of several, the one that the command defines."""


def new_name(name: str) -> str | None:
    """The name of a renamed flag in the running command, or None.

    Args:
        name: The flag without dashes, as given: that of a boolean may begin with `no`.
    """
    for prefix in ("", "no"):
        for new in _RENAMED.get(name.removeprefix(prefix), ()):
            if new in flags.FLAGS:
                return prefix + new
    return None
