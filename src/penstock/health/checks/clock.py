"""Whether the clock is kept: chrony's `chronyc -c tracking` (comma-separated, chronyc(1)). Pure.

10 ms is far more than NTP leaves in a data centre and less than what spoils leases and joined logs.
"""

from __future__ import annotations

from collections.abc import Sequence

from penstock.base.text import one_line
from penstock.health.checks.spec import Outcome, Result, Subject, not_run

MOST_S = 0.010
_OFFSET, _LEAP = 4, 13  # fields: "System time" in seconds, and "Leap status"
_FIELDS = 14


class Clock:
    name = "clock"
    program = "chronyc"
    busy = False
    seconds = 10.0

    def command(self, subject: Subject) -> Sequence[str]:
        return (self.program, "-c", "tracking")

    def judge(self, exit_code: int, output: str, subject: Subject) -> Outcome:
        fields = output.strip().split(",")
        try:
            off = abs(float(fields[_OFFSET]))
        except (ValueError, IndexError):
            return not_run(self.name, one_line(output, 200) or f"chronyc ended with {exit_code} and said nothing")
        if exit_code or len(fields) < _FIELDS:
            return not_run(self.name, one_line(output, 200))
        figures, most = {"offset_s": off}, subject.limits.get("offset_s", MOST_S)
        if fields[_LEAP] == "Not synchronised":
            return Outcome(self.name, Result.FAILED, "the clock is not synchronised", figures=figures)
        word = f"{off * 1000:.3g} ms off, at most {most * 1000:.3g} ms may be"
        return Outcome(self.name, Result.FAILED if off > most else Result.PASSED, word, figures=figures)
