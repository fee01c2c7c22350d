"""Runs a command: every error that a user can cause is one line and an exit status."""

import os
import sys

from absl import app, flags, logging

from dilated_affinity.errors import ConfigError, DilatedAffinityError

USAGE_ERROR = 2
RUN_ERROR = 1

_DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error.")


def run(main):
    """Parses the command line and calls `main()`; never returns.

    Exit status: 0 for success, 2 for a command line that makes no sense, 1 for data, files or a
    run that cannot be used, 130 after Ctrl-C.
    """
    logging.set_verbosity(logging.INFO)
    logging.use_absl_handler()
    logging.get_absl_handler().setFormatter(_Plain())
    app.run(lambda arguments: sys.exit(_status(main)), flags_parser=_parse)


def required(value, name):
    """The value of a flag that must be given."""
    if value is None or value == "":
        raise ConfigError(f"--{name} must be given.")
    return value


def _parse(arguments):
    try:
        extra = flags.FLAGS(arguments)[1:]
    except flags.Error as error:
        _complain(error)
        sys.exit(USAGE_ERROR)
    if extra:
        _complain(f"unexpected argument: {extra[0]!r}. Settings are given as --name=value.")
        sys.exit(USAGE_ERROR)
    return arguments


def _status(main):
    try:
        main()
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    except (DilatedAffinityError, OSError) as error:
        if _DEBUG.value:
            raise
        _complain(error)
        return USAGE_ERROR if isinstance(error, ConfigError) else RUN_ERROR
    return 0


def _complain(error):
    text = " ".join(str(error).split())
    print(f"{os.path.basename(sys.argv[0]).removesuffix('.py')}: {text}", file=sys.stderr)


class _Plain(logging.PythonFormatter):
    """Messages without time, thread and source position."""

    def format(self, record):
        return record.getMessage()
