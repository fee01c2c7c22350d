"""Checks this machine and installation: versions, devices, space, and a short self-test.

    python -m dilated_affinity doctor

Every line begins with `ok`, `missing` for what only some uses need, or `FAILED`, and says what to
do. The exit status is 1 if anything FAILED.
"""

import sys

from absl import flags, logging

from dilated_affinity.cli import app, doctor_machine, doctor_self_test
from dilated_affinity.cli.doctor_finding import FAILED

_SELF_TEST = flags.DEFINE_bool(
    "self_test", True, "Train, propagate and export on drawn images, in a temporary folder."
)


def _findings():
    yield from doctor_machine.installation()
    yield from doctor_machine.devices()
    yield from doctor_machine.space()
    if _SELF_TEST.value:
        yield from doctor_self_test.self_test()


def _doctor():
    logging.set_verbosity(logging.ERROR)  # the lines of the self-test's own training
    failed = 0
    for finding in _findings():
        print(finding.line(), flush=True)
        failed += finding.status == FAILED
    if failed:
        print(f"{failed} of these checks failed.")
        sys.exit(app.RUN_ERROR)


def main():
    """Entry point of the console script."""
    app.run(_doctor)


if __name__ == "__main__":
    main()
