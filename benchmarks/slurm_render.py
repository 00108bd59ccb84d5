"""From a fleet file to a working Slurm: rendered, started, eight nodes idle.

The bar counts from the start of slurmctld and slurmd; the note has the whole, with munged, a new MariaDB, slurmdbd and the
accounts before them. Three starts, the median.
"""

from __future__ import annotations

import statistics
import sys
import time

from benchmarks.harness import Bar, alone
from tests.slurm_cluster import cluster

ROUNDS, LIMIT_S = 3, 15.0


def measure() -> list[Bar]:
    idle: list[float] = []
    whole: list[float] = []
    for _ in range(ROUNDS):
        began = time.monotonic()
        with cluster() as slurm:
            whole.append(time.monotonic() - began)
            idle.append(slurm.idle_after_s)
    note = f"of {ROUNDS}: {', '.join(f'{one:.1f}' for one in idle)} s; with database and accounts {statistics.median(whole):.1f} s"
    return [Bar("rendered Slurm: 8 nodes idle after start", statistics.median(idle), LIMIT_S, "s", note=note)]


if __name__ == "__main__":
    sys.exit(alone(measure, __doc__))
