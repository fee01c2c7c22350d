"""The start-up messages that commands hide, and all else, which they show."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dilated_affinity.runtime.quiet import is_startup_message, runs_command

ROOT = Path(__file__).parents[2]
CHATTER = (
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
    "I0000 00:00:1795737333.739004   12507 port.cc:153] oneDNN custom operations are on.",
    "W0000 00:00:1795737333.739600   12507 cudart_stub.cc:31] Could not find cuda drivers.",
    "2026-01-02 03:04:05.678901: I tensorflow/core/util/port.cc:153] oneDNN custom operations",
    "To enable the following instructions: AVX2 FMA, in other operations, rebuild TensorFlow with "
    "the appropriate compiler flags.",
    "E0000 00:00:1795737333.739600   12 cuda_dnn.cc:8579] Unable to register cuDNN factory: "
    "Attempting to register factory for plugin cuDNN when one has already been registered",
)
SHOWN = (
    "E0000 00:00:1795737333.739600   12507 bfc_allocator.cc:1] out of memory",
    "F0000 00:00:1795737333.739600   12507 cpu_feature_guard.cc:1] This library needs AVX2",
    "2026-01-02 03:04:05.678901: E tensorflow/core/x.cc:1] not found",
    "Traceback (most recent call last):",
    "WARNING: something else",
    "I0000 ours",
    "",
)
NO_GPU = (
    "E0000 00:00:1795737355.377461   12507 cuda_platform.cc:52] failed call to cuInit: INTERNAL"
)


@pytest.mark.parametrize("line", CHATTER)
def test_start_up_messages_are_recognised(line):
    assert is_startup_message(line.encode(), gpu_wanted=True)


@pytest.mark.parametrize("line", SHOWN)
def test_errors_and_all_else_are_not(line):
    assert not is_startup_message(line.encode(), gpu_wanted=False)


def test_no_gpu_is_an_error_only_where_there_is_one():
    assert is_startup_message(NO_GPU.encode(), gpu_wanted=False)
    assert not is_startup_message(NO_GPU.encode(), gpu_wanted=True)


@pytest.mark.parametrize(
    ("arguments", "original", "expected"),
    [
        (["/venv/bin/train_main", "--dataset=shapes"], [], True),
        ([r"train_main.exe"], [], True),
        (["train_main.py"], [], False),
        ([str(ROOT / "dilated_affinity/cli/train_main.py")], [], True),
        ([str(ROOT / "dilated_affinity/__main__.py"), "train_main"], [], True),
        (["/venv/bin/app"], [], False),
        (["/venv/bin/pytest", "train_main"], [], False),
        (["-m", "x"], ["python", "-m", "dilated_affinity.cli.eval_main", "x"], True),
        (["-m", "x"], ["python", "-X", "dev", "-m", "dilated_affinity", "x"], True),
        (["-m", "x"], ["python", "-m", "pytest", "dilated_affinity"], False),
        (["-c"], ["python", "-c", "import dilated_affinity"], False),
        ([""], ["python"], False),
        ([], [], False),
    ],
)
def test_commands_are_told_from_programs_that_import_the_package(arguments, original, expected):
    assert runs_command(arguments, original) == expected


PROLOGUE = f"""
import os, signal, subprocess, sys, time
from dilated_affinity.runtime import quiet
def write(text):
    os.write(2, text.encode())
quiet.hide_startup_messages(sys.argv)
write({CHATTER[0]!r} + chr(10) + "first" + chr(10) + {CHATTER[1]!r}[:20])
time.sleep(0.1)
write({CHATTER[1]!r}[20:] + chr(10))
"""


def program(body, *arguments, **variables):
    """Runs `body` within a filter; returns exit status and standard error."""
    names = ("TF_CPP_MIN_LOG_LEVEL", "DILATED_AFFINITY_QUIET")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    # The package itself imports TensorFlow in programs that are no command.
    stub = "import sys; sys.argv[0] = 'train_main'"
    done = subprocess.run(
        [sys.executable, "-c", f"{stub}\n{PROLOGUE}\n{body}", *arguments],
        capture_output=True,
        text=True,
        env={**kept, "PYTHONPATH": str(ROOT), **variables},
        timeout=120,
    )
    return done.returncode, done.stderr


# Tests that run in the background of a shell inherit that SIGINT is ignored.
INTERRUPT = """
signal.signal(signal.SIGINT, signal.default_int_handler)
os.setpgid(0, 0)
os.killpg(0, signal.SIGINT)
time.sleep(9)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the filter needs fork")
@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ("", 0),
        ("sys.exit(3)", 3),
        ("os._exit(4)", 4),
        ("os.abort()", -6),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9),
        (INTERRUPT, -2),
    ],
)
def test_what_is_written_before_any_end_arrives(ending, status):
    ended, shown = program(f"write('last line' + chr(10) + 'and half')\n{ending}")
    assert ended == status
    assert shown.startswith("first\nlast line\nand half")
    if status == -2:
        assert shown.rstrip().endswith("KeyboardInterrupt")
    else:
        assert shown == "first\nlast line\nand half"


def test_a_traceback_arrives():
    status, shown = program("write('before' + chr(10)); raise KeyError('x')")
    assert status == 1
    assert shown.startswith("first\nbefore\nTraceback") and shown.endswith("KeyError: 'x'\n")


def test_messages_of_processes_that_it_starts_are_filtered():
    body = f"""
subprocess.run(["sh", "-c", "echo from a shell >&2; echo '{CHATTER[2]}' >&2"])
if not os.fork():
    write("from a fork" + chr(10))
    os._exit(0)
os.wait()
"""
    assert program(body) == (0, "first\nfrom a shell\nfrom a fork\n")


def test_nothing_is_filtered_afterwards_and_the_order_is_kept():
    body = f"""
write("within" + chr(10))
quiet.show_all_messages()
write({CHATTER[1]!r} + chr(10) + "after" + chr(10))
print(os.environ["TF_CPP_MIN_LOG_LEVEL"], file=sys.stderr)
"""
    assert program(body) == (0, f"first\nwithin\n{CHATTER[1]}\nafter\n2\n")


def test_a_process_that_lives_on_keeps_its_filter_and_nobody_waits_for_it():
    body = f"""
quiet._CLOSING_SECONDS = 0.2
child = subprocess.Popen(["sh", "-c", "read line; echo '{CHATTER[2]}' >&2; echo late >&2"],
                         stdin=subprocess.PIPE)
quiet.show_all_messages()
write("meanwhile" + chr(10))
child.communicate(b"go" + bytes([10]))
"""
    status, shown = program(body)
    assert status == 0 and shown == "first\nmeanwhile\nlate\n"


@pytest.mark.parametrize(
    ("arguments", "variables", "hidden"),
    [
        (("--debug",), {}, False),
        (("--debug=true",), {}, False),
        (("--nodebug",), {}, True),
        (("--debug=false",), {}, True),
        ((), {"TF_CPP_MIN_LOG_LEVEL": "0"}, False),
        ((), {"TF_CPP_MIN_LOG_LEVEL": "2", "DILATED_AFFINITY_QUIET": "1"}, True),
    ],
)
def test_the_user_decides(arguments, variables, hidden):
    _, shown = program(
        "write(str(os.environ.get('TF_CPP_MIN_LOG_LEVEL')))", *arguments, **variables
    )
    assert (CHATTER[0] not in shown) == hidden
    level = "2" if hidden else variables.get("TF_CPP_MIN_LOG_LEVEL", "None")
    assert shown.endswith(level)


def test_a_program_that_imports_the_package_keeps_its_standard_error():
    program = (
        "import os; before = os.fstat(2); import dilated_affinity; after = os.fstat(2);"
        "assert 'DILATED_AFFINITY_QUIET' not in os.environ;"
        "print((before.st_dev, before.st_ino) == (after.st_dev, after.st_ino))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr
