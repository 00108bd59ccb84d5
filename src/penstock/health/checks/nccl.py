"""All GPUs of a node together: `all_reduce_perf` of nccl-tests. Pure.

busbw is the figure that does not depend on the number of ranks (nccl-tests, doc/PERFORMANCE.md). For eight H100 with NVSwitch Azure asks
for 460 GB/s (azurehpc-health-checks, ND H100 v5); where no least is known the result has to be right, and is told.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from penstock.base.text import one_line
from penstock.health.checks.spec import Outcome, Result, Subject, held_to, not_run

_GB = 1e9
_ROW = re.compile(r"^\s*(\d+)\s+\d+\s+\w+\s+\w+\s+-?\d+\s+(.*)$")
_OUT_OF_BOUNDS = re.compile(r"Out of bounds values\s*:\s*(\d+)")
_LEAST = {("H100", 8): 460e9, ("H200", 8): 460e9}


class AllReduce:
    name = "nccl-tests"
    program = "all_reduce_perf"
    busy = True
    seconds = 300.0

    def command(self, subject: Subject) -> Sequence[str]:
        return (self.program, "-b", "1G", "-e", "8G", "-f", "2", "-g", str(max(1, subject.gpus)))

    def judge(self, exit_code: int, output: str, subject: Subject) -> Outcome:
        best, wrong = 0.0, 0
        for line in output.splitlines():
            row = _ROW.match(line[:400])
            if row is None:
                continue
            cells = row[2].split()  # time, algbw, busbw, #wrong: out of place, then in place
            for at in range(0, len(cells) - 3, 4):
                try:
                    best = max(best, float(cells[at + 2]))
                    wrong += 0 if cells[at + 3] == "N/A" else int(float(cells[at + 3]))
                except ValueError:
                    continue
        beyond = _OUT_OF_BOUNDS.search(output)
        if beyond is not None:
            wrong = max(wrong, int(beyond[1]))
        if wrong:
            return Outcome(
                self.name, Result.FAILED, f"{wrong} values of the sum are wrong", figures={"wrong": float(wrong)}
            )
        if not best or exit_code:
            return not_run(self.name, one_line(output[-400:], 200) or f"it ended with {exit_code} and said nothing")
        usual = next(
            (least for (model, gpus), least in _LEAST.items() if model in subject.model and gpus == subject.gpus), None
        )
        least = subject.limits.get("busbw", usual)
        return held_to(self.name, {"busbw": best * _GB}, {"busbw": least} if least else {}, _GB, "GB/s")
