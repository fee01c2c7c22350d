"""Flags generated from the fields of `Config`, so that the two cannot drift."""

import dataclasses

from absl import flags

from dilated_affinity.config import Config
from dilated_affinity.recipes import RECIPES


def define(names=None):
    """Defines a flag for each setting, or for those named; none has a value until it is given.

    Returns:
        A function that returns the settings given on the command line, as a dict.
    """
    defined = []
    for field in dataclasses.fields(Config):
        if names is not None and field.name not in names:
            continue
        defined.append(field.name)
        choices = field.metadata["choices"]
        text = f"{field.metadata['help']} Default: {field.default!r} ({field.metadata['source']})."
        recipes = [
            f"{name} {recipe[field.name]!r}"
            for name, recipe in RECIPES.items()
            if field.name in recipe
        ]
        if recipes:
            text += f" For {', '.join(recipes)}."
        if field.type is bool:
            flags.DEFINE_bool(field.name, None, text)
        elif field.type is int:
            flags.DEFINE_integer(field.name, None, text)
        elif field.type is float:
            flags.DEFINE_float(field.name, None, text)
        elif choices:
            flags.DEFINE_enum(field.name, None, choices, text)
        else:
            flags.DEFINE_string(field.name, None, text)

    def given():
        values = {name: flags.FLAGS[name].value for name in defined}
        return {name: value for name, value in values.items() if value is not None}

    return given


def recipe_with(settings: dict) -> Config:
    """The recipe of `settings["dataset"]`, or of the default data set, with these settings."""
    return Config.for_dataset(settings.pop("dataset", Config.dataset), **settings)
