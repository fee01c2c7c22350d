"""Commands in processes of their own without the seconds in which each would import TensorFlow.

A server, one for each process of tests, imports the package and all that it uses and computes
nothing. Every command runs in a fork of it: arguments, standard output and error, working folder
and exit status are its own, as with `python -m`. Tests of start-up itself start Python instead.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from helpers.processes import environment

NOT_IMPORTED = ("cli", "kernel_grid")
"""Commands define flags of the same names; the other module is for JAX."""


def run_forked(module, *arguments, cwd=None, timeout=300, **variables):
    """Calls `module.main()` with arguments on its command line, in a process of its own.

    Args:
        module: Name of the module, which is imported in that process.
        *arguments: What follows the command's name.
        cwd: Working folder; by default that of the tests.
        timeout: Seconds after which the process is ended.
        **variables: Environment variables.

    Returns:
        A `subprocess.CompletedProcess` with text.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, name) for name in ("stdout", "stderr")]
        request = {
            "module": module,
            "arguments": list(map(str, arguments)),
            "cwd": str(cwd or os.getcwd()),
            "timeout": timeout,
            "variables": variables,
            "paths": paths,
        }
        server = _server()
        print(json.dumps(request), file=server.stdin, flush=True)
        answer = server.stdout.readline()
        assert answer, "the server of forks has ended"
        stdout, stderr = (Path(path).read_text(encoding="utf-8") for path in paths)
    return subprocess.CompletedProcess(request["arguments"], int(answer), stdout, stderr)


@functools.cache
def _server():
    server = subprocess.Popen(
        [sys.executable, "-m", "helpers.forked"],
        env=environment(CUDA_VISIBLE_DEVICES="-1"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(server.stdin.close)
    return server


def _import_all():
    import dilated_affinity

    path, prefix = dilated_affinity.__path__, "dilated_affinity."
    for module in pkgutil.walk_packages(path, prefix):
        if not set(NOT_IMPORTED) & set(module.name.split(".")):
            importlib.import_module(module.name)
    # A network that a test can train, and what the package imports when it needs it.
    for name in ("helpers.tiny", "tensorflow_datasets", "dilated_affinity.cli.app"):
        importlib.import_module(name)


def _serve():
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        process = os.fork()
        if not process:
            answers.close()
            _become(request)
            return
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def _become(request):
    signal.alarm(request["timeout"])
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for number, path in enumerate(request["paths"], 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(request["cwd"])
    sys.path.insert(0, request["cwd"])
    os.environ.update(request["variables"])
    sys.argv = [request["module"].rpartition(".")[2], *request["arguments"]]
    importlib.import_module(request["module"]).main()


if __name__ == "__main__":
    _import_all()
    gc.freeze()  # or every fork would visit all of its objects at its end
    _serve()
