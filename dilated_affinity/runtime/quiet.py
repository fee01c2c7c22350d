"""Keeps the start-up messages of TensorFlow's libraries off the terminal of a command.

Log levels are set in the environment before TensorFlow is imported. Some messages ignore them: they
are written while the libraries are loaded and while they first look for GPUs. Only for that time,
standard error passes through a process that leaves them out.
"""

import atexit
import os
import re
import select
import signal
import sys
from collections.abc import MutableMapping, Sequence
from pathlib import Path

from dilated_affinity.runtime.nvidia import nvidia_gpu_wanted

LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
"""The variable that sets the log level of TensorFlow's and JAX's C++ libraries."""

_ONLY_ERRORS = "2"

_SET_BY_US = "DILATED_AFFINITY_QUIET"
"""Tells processes that a command starts that the user has not chosen the log level."""

_CLI = Path(__file__).parents[1] / "cli"

_INFORMATION = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog\(\) is called are written to STDERR"
    # Severity, date, time, thread and source position, as Abseil and TensorFlow write them.
    rb"|[IW]\d{4} \d\d:\d\d:\d+\.\d+\s+\d+ \S+:\d+\] "
    rb"|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [IW] \S+:\d+\] "
    rb"|To enable the following instructions: .* rebuild TensorFlow with the appropriate compiler"
    # Logged as an error by libraries that two packages bring along, and harmless.
    rb"|.*Unable to register cu\w+ factory: .* when one has already been registered"
)

_NO_GPU = re.compile(rb"E.* failed call to cuInit: ")

_CLOSING_SECONDS = 5

_filter = None


def runs_command(
    arguments: Sequence[str] | None = None, original: Sequence[str] | None = None
) -> bool:
    """Whether this process is one of the package's commands, not a program that uses the package.

    Args:
        arguments: Defaults to `sys.argv`.
        original: The command line of the interpreter. Defaults to `sys.orig_argv`.
    """
    arguments = sys.argv if arguments is None else arguments
    original = sys.orig_argv if original is None else original
    if not arguments:
        return False
    if arguments[0] == "-m":  # so it is while Python imports the packages around the module
        name = original[original.index("-m") + 1] if "-m" in original[:-1] else ""
        return name == "dilated_affinity" or name.startswith("dilated_affinity.cli.")
    program = Path(arguments[0])
    if program.suffix == ".py":
        return program.resolve() in (_CLI.parent / "__main__.py", *_CLI.glob("*_main.py"))
    name = program.name.removesuffix(".exe")
    return name.endswith("_main") and (_CLI / f"{name}.py").is_file()


def hide_startup_messages(arguments=None, environment: MutableMapping[str, str] | None = None):
    """Hides what TensorFlow's libraries log below errors, and what they say as they start.

    To be called before TensorFlow is imported. Does nothing if the user has set the log level or
    given `--debug`. Errors, crashes and all that is not recognised are shown, in order.

    Args:
        arguments: Defaults to `sys.argv`.
        environment: Defaults to `os.environ`.
    """
    global _filter
    arguments = sys.argv if arguments is None else arguments
    environment = os.environ if environment is None else environment
    chosen = LOG_LEVEL in environment and _SET_BY_US not in environment
    if chosen or _debugging(arguments) or _filter is not None:
        return
    environment[LOG_LEVEL] = _ONLY_ERRORS
    environment[_SET_BY_US] = "1"
    if hasattr(os, "fork") and _is_open(2):
        _filter = _Filter(gpu_wanted=nvidia_gpu_wanted(environment))
        atexit.register(show_all_messages)


def show_all_messages():
    """Ends the filter of `hide_startup_messages`; log levels stay. Does nothing without one."""
    global _filter
    if _filter is not None:
        _filter.close()
        _filter = None


def is_startup_message(line: bytes, gpu_wanted: bool) -> bool:
    """Whether a line on standard error tells the user nothing.

    Args:
        line: Without the line break.
        gpu_wanted: Whether there is a GPU that should be found, so that failing to is an error.
    """
    return bool(_INFORMATION.match(line) or (not gpu_wanted and _NO_GPU.match(line)))


class _Filter:
    """A process between this one's standard error and the terminal.

    It is another process because what this one writes as it crashes must still arrive. It is forked
    before there are threads, and ends when no process writes into the pipe any more.
    """

    def __init__(self, gpu_wanted):
        self._owner = os.getpid()
        sys.stderr.flush()
        source, sink = os.pipe()
        self._done, done = os.pipe()
        self._child = os.fork()
        if not self._child:
            try:
                os.close(sink)
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
                    signal.signal(number, signal.SIG_IGN)  # there may still be something to show
                _copy(source, 2, gpu_wanted)
            finally:
                os._exit(0)
        os.close(source)
        os.close(done)
        self._stderr = os.dup(2)
        os.dup2(sink, 2)
        os.close(sink)

    def close(self):
        """Puts standard error back once everything written so far is shown."""
        if os.getpid() != self._owner:
            return
        sys.stderr.flush()
        os.dup2(self._stderr, 2)
        os.close(self._stderr)
        # A process started meanwhile may hold the pipe; the filter then goes on for that one.
        ended, _, _ = select.select([self._done], [], [], _CLOSING_SECONDS)
        os.close(self._done)
        if ended:
            os.waitpid(self._child, 0)


def _copy(source, target, gpu_wanted):
    rest = b""
    while chunk := os.read(source, 1 << 16):
        *lines, rest = (rest + chunk).split(b"\n")
        _write(target, (line + b"\n" for line in lines if not is_startup_message(line, gpu_wanted)))
    if not is_startup_message(rest, gpu_wanted):
        _write(target, (rest,))


def _write(target, parts):
    content = memoryview(b"".join(parts))
    while content:
        content = content[os.write(target, content) :]


def _debugging(arguments):
    given = [each.lstrip("-").partition("=") for each in arguments[1:] if each.startswith("-")]
    return any(
        name == "debug" and value.lower() not in ("false", "0", "no", "f", "n")
        for name, _, value in given
    )


def _is_open(descriptor):
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
