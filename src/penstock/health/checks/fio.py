"""The node's own disk: fio reads and writes a file past the page cache. Pure.

No error, and the rate of a single spinning disk, is little to ask of a node's drive.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from penstock.base.text import one_line
from penstock.health.checks.spec import Outcome, Result, Subject, held_to, not_run

_MB = 1e6
_LEAST = {"read": 200e6, "write": 100e6}


class Fio:
    name = "fio"
    program = "fio"
    busy = False
    seconds = 120.0

    def command(self, subject: Subject) -> Sequence[str]:
        shared = ("--size=256M", "--bs=1M", "--direct=1", "--ioengine=psync", "--end_fsync=1", "--unlink=1")
        return (
            self.program,
            "--output-format=json",
            f"--directory={subject.folder}",
            *shared,
            "--name=write",
            "--rw=write",
            "--name=read",
            "--stonewall",
            "--rw=read",
        )

    def judge(self, exit_code: int, output: str, subject: Subject) -> Outcome:
        try:
            jobs = json.loads(output[output.index("{") :])["jobs"]
            errors = [f"{job['jobname']}: error {job['error']}" for job in jobs if int(job["error"])]
            figures = {way: float(job[way]["bw_bytes"]) for job in jobs for way in _LEAST if job["jobname"] == way}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return not_run(self.name, one_line(output, 200) or f"fio ended with {exit_code} and said nothing")
        if errors:
            return Outcome(self.name, Result.FAILED, "; ".join(errors))
        if exit_code or not figures:
            return not_run(self.name, f"fio ended with {exit_code}")
        least = {way: subject.limits.get(way, usual) for way, usual in _LEAST.items()}
        return held_to(self.name, figures, least, _MB, "MB/s")
