"""The contract of engines, run on the local engine and on a real Slurm: the same clauses, all of them, none left out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from benchmarks.harness import Bar, alone
from tests.engines.contract import CONTRACT

ROOT = Path(__file__).resolve().parent.parent
# Engine -> the tests that are its run of the contract; each is parametrized by the clauses' names.
RUNS = {
    "local": "tests/engines/test_contract.py::test_local",
    "Slurm": "tests/engines/test_slurm.py::test_slurm",
}


def passed(node: str) -> tuple[int, str]:
    """How many of its clauses passed, and pytest's closing line."""
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "", "--timeout", "600", node]
    done = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "CI": "true"}
    )
    last = next((line for line in reversed(done.stdout.splitlines()) if line.strip()), done.stderr[-200:])
    found = re.search(r"(\d+) passed", last)
    return int(found[1]) if found else 0, last.strip("= ")


def measure() -> list[Bar]:
    bars = []
    for engine, node in RUNS.items():
        count, line = passed(node)
        bars.append(Bar(f"contract clauses that hold on {engine}", count, len(CONTRACT), "", "at least", line))
    return bars


if __name__ == "__main__":
    sys.exit(alone(measure, __doc__))
