"""Lists or runs the commands: `python -m dilated_affinity train --dataset=shapes`.

The `_main` of a command's name may be left out here.
"""

import ast
import importlib
import sys
from pathlib import Path

from dilated_affinity import cli
from dilated_affinity.cli import app
from dilated_affinity.errors import did_you_mean


def commands() -> dict[str, str]:
    """Returns the name and the docstring's first line of every command, without importing them."""
    paths = sorted(Path(cli.__file__).parent.glob("*_main.py"))
    return {
        path.stem: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).splitlines()[0]
        for path in paths
    }


def overview() -> str:
    """Returns the list of the commands to print."""
    known = commands()
    width = max(map(len, known))
    lines = [f"  {name:<{width}}  {text}" for name, text in known.items()]
    first = "Sharper semantic segmentation by dilated affinity. The commands:"
    last = "Each has its --help. A first run: train_main --dataset=shapes --model_dir=runs/shapes"
    return "\n".join([first, "", *lines, "", last])


def main(arguments=None):
    """Entry point of `python -m dilated_affinity`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    known = commands()
    if not arguments or arguments[0] in ("--help", "-h", "-help"):
        print(overview())
    elif arguments[0] in ("--version", "-version"):
        print(app.versions())
    elif (name := f"{arguments[0].removesuffix('_main')}_main") in known:
        sys.argv = arguments
        importlib.import_module(f"dilated_affinity.cli.{name}").main()
    else:
        sys.argv = ["dilated_affinity"]
        app.complain(
            f"no such command: {arguments[0]!r}.{did_you_mean(arguments[0], known)} "
            "Without one it lists them."
        )
        sys.exit(app.USAGE_ERROR)


if __name__ == "__main__":
    main()
