"""Runs a command: every error is one line and an exit status; --help and --version are ours."""

import importlib.metadata
import os
import sys
from logging import WARNING, getLogger

from absl import app, flags, logging

from dilated_affinity.cli.renamed_flags import with_new_names
from dilated_affinity.errors import ConfigError, DilatedAffinityError, first_line, printable
from dilated_affinity.runtime.quiet import show_all_messages
from dilated_affinity.version import __version__

USAGE_ERROR = 2
RUN_ERROR = 1
INTERRUPTED = 130

_TALKATIVE = ("tensorflow_datasets", "jax")

_DEBUG = flags.DEFINE_bool(
    "debug",
    False,
    "Show the traceback of an error, and all messages of TensorFlow's libraries.",
)


def define_calibrated():
    """Defines the flag of commands that use a run: whether to refine as calibration found."""
    return flags.DEFINE_bool(
        "calibrated",
        True,
        "Refine with the settings that calibration or a saved search left in the run; no for those "
        "that it was trained with. Flags such as --mu come before both.",
    )


def run(main, description=None):
    """Parses the command line and calls `main()`; never returns.

    --help begins with `description`, by default the docstring of the module of `main`.

    Exit status: 0 for success, 2 for a command line that makes no sense, 1 for data, files or a
    run that cannot be used and for every other error, 130 after Ctrl-C, 143 after SIGTERM. A
    traceback is shown with `--debug` only.
    """
    logging.set_verbosity(logging.INFO)
    logging.use_absl_handler()
    logging.get_absl_handler().setFormatter(_Plain())
    for place in (logging.get_absl_handler(), getLogger("tensorflow")):  # which has its own handler
        place.addFilter(_concerns_the_user)
    app.run(
        lambda arguments: sys.exit(_status(main)),
        flags_parser=lambda arguments: _parse(arguments, main.__module__, description),
    )


def find_devices():
    """Has TensorFlow look for its devices, if it is imported, and shows all messages from then on.

    Its libraries write their last start-up messages as they first look, see `runtime.quiet`.
    """
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is not None:
        tensorflow.config.list_physical_devices()
        show_all_messages()


def required(value, name):
    """The value of a flag that must be given."""
    if value is None or value == "":
        raise ConfigError(f"--{name} must be given.")
    return value


def command_name() -> str:
    """The command as the user knows it."""
    return os.path.basename(sys.argv[0]).removesuffix(".py")


def versions() -> str:
    """The package's version and those of what it runs on, without importing them."""
    found = (f"{name} {importlib.metadata.version(name)}" for name in ("keras", "numpy"))
    return f"dilated_affinity {__version__} ({', '.join(found)}, Python {sys.version.split()[0]})"


def complain(error):
    """Writes one line on standard error, the command's name before it."""
    print(f"{command_name()}: {printable(' '.join(str(error).split()))}", file=sys.stderr)


def _parse(arguments, module, description=None):
    asked = {argument.lstrip("-") for argument in _before_separator(arguments[1:])}
    if asked & {"help", "helpshort", "h"}:
        # Only here, since it takes TensorFlow.
        from dilated_affinity.cli.help_page import help_page

        print(help_page(command_name(), module, description))
        sys.exit(0)
    if "version" in asked:
        print(versions())
        sys.exit(0)
    try:
        arguments, notes = with_new_names(arguments)
        for note in notes:
            complain(note)
        extra = flags.FLAGS(arguments)[1:]
    except flags.Error as error:
        _refuse(error)
    if extra:
        _refuse(f"unexpected argument: {extra[0]!r}. Settings are given as --name=value.")
    return arguments


def _before_separator(arguments):
    """The flags, without what stands behind a lone `--`."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return [argument for argument in arguments[:end] if argument.startswith("-")]


def _refuse(error):
    complain(f"{error} See {command_name()} --help.")
    sys.exit(USAGE_ERROR)


def _status(main):
    try:
        find_devices()
        _warn_of_unused_gpu()
        main()
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    except Exception as error:
        if _DEBUG.value:
            raise
        complain(_explained(error))
        return USAGE_ERROR if isinstance(error, ConfigError) else RUN_ERROR
    return 0


def _warn_of_unused_gpu():
    """Before everything else that a command says, if it computes."""
    if "keras" in sys.modules:
        from dilated_affinity.runtime.unused_gpu import warn_of_unused_gpu

        warn_of_unused_gpu()


def _explained(error):
    if isinstance(error, DilatedAffinityError | OSError):
        return error
    kind = type(error).__name__
    message = first_line(error)
    text = kind if message == kind else f"{kind}: {message}"
    return f"unexpected {text} (--debug shows where it came from)"


def _concerns_the_user(record):
    """Leaves out where TensorFlow Datasets looks for its files, and JAX for its devices.

    Neither are warnings of retracing shown: functions are traced once for each of a few padded
    shapes, see `PaddedShapes`.
    """
    if "triggered tf.function retracing" in record.getMessage():
        return False
    others = (f"{os.sep}{package}{os.sep}" in record.pathname for package in _TALKATIVE)
    return record.levelno >= WARNING or not any(others)


class _Plain(logging.PythonFormatter):
    """Messages without time, thread and source position."""

    def format(self, record):
        return record.getMessage()
