"""Bars of the planners' properties, read from the last `make soak` (build/fuzz.json), which must be of this commit."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks import soak_report
from benchmarks.harness import Bar, alone

ROOT = Path(__file__).resolve().parent.parent
CASES = 10_000
ROOMS = {  # what a bar is named, and the tests that it counts
    "scheduling": "tests/scheduling/",
    "capacity": "tests/capacity/",
    "cost": "tests/cost/",
}


def measure() -> list[Bar]:
    report, note = soak_report.read(ROOT, soak_report.FUZZ_PATH)
    bars = [Bar("properties violated", float(report.failed) if report and not note else None, 0.0, "", note=note)]
    for room, tests in ROOMS.items():
        ran = {} if report is None or note else {k: v for k, v in report.measured.items() if k.startswith(tests)}
        least = min((float("inf") if v["all"] else v["cases"] for v in ran.values()), default=None)
        value = CASES if least == float("inf") else least
        why = note or f"the least of {len(ran)} properties"
        bars.append(Bar(f"cases per property, {room}", value, CASES, "", "at least", why))
    return bars


if __name__ == "__main__":
    sys.exit(alone(measure, __doc__))
