"""The answer to --help: flags in groups, with meaning, default and where the default is from."""

import inspect
import re
import shutil
import sys
import textwrap

from absl import flags

from dilated_affinity.cli import config_flags

_WIDEST = 100


def help_page(command: str, module: str, description: str | None = None) -> str:
    """The help of a command.

    Args:
        command: Name of the command.
        module: Name of its module, whose flags come first.
        description: Text to begin with; the docstring of the module when None.

    Returns:
        Text of lines no wider than the terminal, and no wider than 100 columns.
    """
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    own = flags.FLAGS.flags_by_module_id_dict().get(id(sys.modules[module]), [])
    own = sorted(own, key=lambda flag: flag.help.startswith("Alias for"))  # else as defined
    settings = config_flags.groups()
    parts = [f"{command}: {description or inspect.getdoc(sys.modules[module])}"]
    parts.append(_section("command", {flag.name: _own_default(flag) for flag in own}, width))
    parts += [_section(group, defaults, width) for group, defaults in settings.items()]
    general = {"debug": "no", "version": "", "help": ""}
    parts.append(_section("general", general, width))
    parts.append("A flag is given as --name=value; --flagfile=FILE reads flags from a file.")
    return "\n\n".join(parts)


def _section(title, defaults, width):
    lines = [title.upper()]
    for name, default in defaults.items():
        usage, text = f"  {_usage(name)}", _meaning(name)
        if len(usage) > width:  # too many values to choose from
            values = usage.partition("=")[2].replace("|", ", ")
            usage, text = f"  --{name}=TEXT", f"{text} One of {values}."
        lines.append(usage)
        if default:
            text = f"{text} Default: {default}."
        lines += textwrap.wrap(
            text, width, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False
        )
    return "\n".join(lines)


def _usage(name):
    if name in ("help", "version"):
        return f"--{name}"
    flag = flags.FLAGS[name]
    if flag.boolean:
        return f"--[no]{name}"
    values = getattr(flag.parser, "enum_values", None)
    if values:
        return f"--{name}=" + "|".join(values)
    kind = {"int": "INTEGER", "float": "NUMBER", "string": "TEXT"}
    return f"--{name}={kind.get(flag.flag_type(), 'LIST')}"


def _meaning(name):
    fixed = {"help": "Show this page.", "version": "Show the versions in use."}
    if name in fixed:
        return fixed[name]
    # absl puts an enum's values before its help; here they stand beside its name.
    return re.sub(r"^<[^>]*>: ", "", " ".join(flags.FLAGS[name].help.split()))


def _own_default(flag):
    if flag.default is None or flag.default == "":
        return ""
    if flag.boolean:
        return "yes" if flag.default else "no"
    return ",".join(flag.default) if isinstance(flag.default, list) else str(flag.default)
