"""Bars of the interruptions on a real Slurm, read from the last `make soak`, which must be of this commit."""

from __future__ import annotations

import sys

from benchmarks import soak
from benchmarks.harness import Bar, alone

BARS = (
    ("interruptions of submit and cancel on Slurm", "slurm_interruptions", 50.0, "at least"),
    ("jobs lost by interruptions on Slurm", "slurm_jobs_lost", 0.0, "at most"),
    ("jobs doubled by interruptions on Slurm", "slurm_jobs_doubled", 0.0, "at most"),
    ("wrong ends after interruptions on Slurm", "slurm_wrong_ends", 0.0, "at most"),
    ("allocations left by interruptions on Slurm", "slurm_allocations_left", 0.0, "at most"),
)


def measure() -> list[Bar]:
    return soak.read(BARS)


if __name__ == "__main__":
    sys.exit(alone(measure, __doc__))
