"""Runs a check's program on this node, bounded in time and output, and without a shell."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile

from penstock.health.checks.spec import Check, Outcome, Subject, not_run

MOST = 4 << 20  # bytes of output that are looked at


def run(check: Check, subject: Subject) -> Outcome:
    """Takes as long as the program, ``check.seconds`` at the most; then it is killed with all that it started."""
    if shutil.which(check.program) is None:
        return not_run(check.name, f"{check.program} is not installed on this node")
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                check.command(subject),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            return not_run(check.name, f"{check.program} could not be started: {error.strerror}")
        try:
            code = process.wait(check.seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return not_run(check.name, f"{check.program} was given up after {check.seconds:.0f} s")
        output.seek(0)
        return check.judge(code, output.read(MOST).decode("utf-8", "replace"), subject)
