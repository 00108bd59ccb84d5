"""What one small write costs: 500 jobs, 4 writes each, side by side, as the throughput bar's jobs make them.

    .venv/bin/python benchmarks/store_writes.py [--url sqlite:///... | postgresql://...] [--rounds 5]

Each write updates a row and emits one event. Prints medians of CPU (all threads of this process) and wall time.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time

from sqlalchemy import Column, Integer, Table, Text, bindparam, insert, update

from penstock.base.reasons import Reason
from penstock.base.resource import Ref
from penstock.store import events
from penstock.store.store import Store, Tx
from penstock.store.tables import metadata

JOBS, WRITES = 500, 4
work = Table("bench_work", metadata, Column("id", Integer, primary_key=True), Column("phase", Text, nullable=False))
_MOVE = update(work).where(work.c.id == bindparam("of")).values(phase=bindparam("to"))


async def one_job(store: Store, job: int) -> None:
    for step in range(WRITES):

        def closure(tx: Tx, step: int = step) -> None:
            tx.conn.execute(_MOVE, {"of": job, "to": str(step)})
            data = {"attempt": 1, "nodes": ["node-0"], "cpus": 1.0}
            tx.emit(Ref("Job", f"job-{job}", "default", "01J"), Reason.Updated, "moved on", actor="system", data=data)

        await store.write(closure)


async def measure(url: str, rounds: int) -> None:
    store = Store.open(url, clock=time.time)
    groups: list[int] = []
    store.listen(lambda rows: groups.append(len(rows)))
    await store.write(lambda tx: tx.conn.execute(insert(work), [{"id": n, "phase": ""} for n in range(JOBS)]))
    cpu: list[float] = []
    wall: list[float] = []
    for _ in range(rounds):
        cpu_before, wall_before = time.process_time(), time.perf_counter()
        await asyncio.gather(*(one_job(store, job) for job in range(JOBS)))
        cpu.append(time.process_time() - cpu_before)
        wall.append(time.perf_counter() - wall_before)
    per_write = statistics.median(cpu) / (JOBS * WRITES) * 1000
    sys.stdout.write(
        f"{store.url.get_backend_name()}: {JOBS} jobs x {WRITES} writes, {rounds} rounds: "
        f"CPU {per_write:.3f} ms a write, {JOBS * WRITES / statistics.median(wall):.0f} writes/s, "
        f"{statistics.mean(groups):.0f} events a commit\n"
    )
    alone: list[float] = []
    for _ in range(200):
        started = time.perf_counter()
        await one_job(store, 0)
        alone.append((time.perf_counter() - started) / WRITES * 1000)
    sys.stdout.write(f"one write at a time: median {statistics.median(alone):.2f} ms until it is on disk\n")
    started = time.process_time()
    found = await store.read_long(events.verify)
    took = time.process_time() - started
    sys.stdout.write(f"verify: {found.rows} events, {took / found.rows * 1e6:.1f} us of CPU each, ok: {found.ok}\n")
    await store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(asked.url or f"sqlite:///{folder}/p.db", asked.rounds))


if __name__ == "__main__":
    main()
