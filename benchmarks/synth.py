"""Made-up work against the published five-cluster table, on seeds that nothing was tuned with."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from random import Random

from benchmarks.harness import Bar, alone
from penstock.capacity.synth import synthesize

TABLE = Path(__file__).resolve().parent.parent / "data/traces/acme_five_cluster_summary.csv"
SEEDS = (7001, 7002, 7003)
JOBS = 50_000


def measure() -> list[Bar]:
    with TABLE.open() as file:
        table = list(csv.DictReader(file))
    bars = []
    for row in table:
        worst = 0.0
        for seed in SEEDS:
            made = list(synthesize(row["id"].lower(), JOBS, Random(seed)))
            for key, column in (("duration_s", "run_time_gpu"), ("gpus", "gpu_num")):
                values = sorted(float(str(one[key])) for one in made)
                for name, value in (("avg", sum(values) / JOBS), ("med", values[JOBS // 2])):
                    want = float(row[f"{name}_{column}"])
                    worst = max(worst, 100 * abs(value - want) / want)
        bars.append(Bar(f"synth {row['id']}: worst mean or median off", worst, 10.0, "%", note=f"seeds {SEEDS}"))
    return bars


if __name__ == "__main__":
    sys.exit(alone(measure, __doc__))
