"""10,000 finished and 200 running jobs, all of them really run: P99 of list, get and describe over HTTP."""

from __future__ import annotations

import os
import statistics
import sys
import time

from benchmarks.harness import Bar, alone, say
from benchmarks.measure import until
from benchmarks.ours import server
from benchmarks.probe import apart, p99_ms
from benchmarks.throughput import run_jobs

FINISHED = 10_000
RUNNING = 200
CALLS = 400
BATCH = 1000
LIMIT_MS = 50.0


def measure() -> list[Bar]:
    with server("listing") as running, running.client() as client:
        began = time.monotonic()
        for number in range(FINISHED // BATCH):
            run_jobs(client, BATCH, prefix=f"r{number}")
            say(f"   {(number + 1) * BATCH} jobs finished after {time.monotonic() - began:.0f} s")
        share = (os.cpu_count() or 1) / RUNNING / 2
        sleeper = {"command": ["sleep", "3600"], "resources": {"cpus": share, "memory": "4Mi"}, "grace_period": "1s"}
        for number in range(RUNNING):
            client.jobs.create(sleeper, name=f"sleeper-{number}")
        until(
            lambda: len(client.jobs.page(limit=500, phase="Running").items) == RUNNING,
            f"{RUNNING} running jobs",
            timeout=300,
            every=0.5,
        )
        found = apart(running.folder, calls=CALLS)
    bars = []
    for kind, values in found.items():
        note = f"median {statistics.median(values) * 1000:.1f} ms, n={len(values)}"
        bars.append(Bar(f"{FINISHED} + {RUNNING} jobs: {kind} P99", p99_ms(values), LIMIT_MS, "ms", note=note))
    return bars


if __name__ == "__main__":
    sys.exit(alone(measure, __doc__))
