"""Bars of the long fault runs, read from the last `make soak` (build/soak.json), which must be of this commit."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks import soak_report
from benchmarks.harness import Bar, alone

ROOT = Path(__file__).resolve().parent.parent

# What tests/soak records while it kills the server under load, and what must hold of it (issue 2, "Faults").
BARS = (
    ("server kills under load", "kills", 100.0, "at least"),
    ("jobs lost by kills", "jobs_lost", 0.0, "at most"),
    ("jobs run twice by kills", "jobs_run_twice", 0.0, "at most"),
    ("wrong exit statuses after kills", "wrong_statuses", 0.0, "at most"),
    ("broken ledgers after kills", "broken_ledgers", 0.0, "at most"),
)


def measure() -> list[Bar]:
    return read(BARS)


def read(rows: Iterable[tuple[str, str, float, str]], within: str | None = None) -> list[Bar]:
    """Bars of what the last soak recorded: rows of (name, key, limit, direction). ``within``: of one test's own record."""
    report, note = soak_report.read(ROOT)
    found = report.measured if report is not None and not note else {}
    measured = found if within is None else found.get(within, {})
    bars = []
    for name, key, limit, direction in rows:
        value = float(measured[key]) if key in measured else None
        why = note or ("" if value is not None else f"the soak recorded no {key}")
        bars.append(Bar(name, value, limit, "", "at least" if direction == "at least" else "at most", why))
    return bars


if __name__ == "__main__":
    sys.exit(alone(measure, __doc__))
