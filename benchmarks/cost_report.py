"""CPU time of reports and bills over many usage intervals: ``python -m benchmarks.cost_report 100000``."""

from __future__ import annotations

import asyncio
import random
import resource
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import penstock.server  # noqa: F401 - every room's tables
from penstock.base.resource import Actor
from penstock.base.routes import Call
from penstock.cost import prices
from penstock.cost.bill_routes import BillRoutes, SumQuery
from penstock.cost.routes import CostRoutes, ReportQuery
from penstock.cost.tables import capacity, usage
from penstock.store.store import Store, Tx

NOVEMBER, DAY = 1793491200.0, 86400.0
GPU = "gpus:NVIDIA H100 80GB HBM3"
AT_ONCE = 10_000


def jobs(count: int) -> Iterator[list[dict[str, Any]]]:
    """Three intervals each: cores, memory, one GPU; 40 projects, 300 users, 10 queues, 2,000 nodes."""
    rng = random.Random(1)
    for job in range(count):
        start = NOVEMBER + rng.random() * 20 * DAY
        common = {
            "job_id": f"01JD{job:022d}",
            "attempt": 1,
            "node": f"node-{rng.randrange(2000)}",
            "project": f"p{rng.randrange(40)}",
            "user": f"u{rng.randrange(300)}",
            "queue": f"q{rng.randrange(10)}",
            "job": f"job-{job}",
            "started_at": start,
            "ended_at": start + rng.expovariate(1 / 3600),
        }
        held = (("cpus", 4.0), ("memory_bytes", float(16 << 30)), (GPU, 1.0))
        yield [common | {"resource": name, "quantity": much} for name, much in held]


def fill(tx: Tx, count: int) -> None:
    rows: list[dict[str, Any]] = []
    for made in jobs(count // 3):
        rows += made
        if len(rows) >= AT_ONCE:
            tx.conn.execute(usage.insert(), rows)
            rows = []
    if rows:
        tx.conn.execute(usage.insert(), rows)
    offers = (("cpus", 192.0), ("memory_bytes", float(2048 << 30)), (GPU, 8.0))
    up = [
        {"node": f"node-{n}", "resource": name, "started_at": NOVEMBER, "quantity": much}
        for n in range(2000)
        for name, much in offers
    ]
    tx.conn.execute(capacity.insert(), up)


async def measure(count: int, folder: str) -> None:
    store = Store.open(f"sqlite:///{folder}/p.db", clock=lambda: NOVEMBER + 21 * DAY)
    try:
        await store.write(lambda tx: fill(tx, count))
        rates, terms = prices.load_both(None)
        report, bill, actor = CostRoutes(store, rates), BillRoutes(store, rates, terms), Actor("root", "admin")
        asked: list[tuple[str, Callable[[], Awaitable[Any]]]] = [
            (
                "report --by project",
                lambda: report.report(Call(actor, {}, ReportQuery.model_validate({"by": "project"}))),
            ),
            ("report --by job", lambda: report.report(Call(actor, {}, ReportQuery.model_validate({"by": "job"})))),
            ("bill --by project", lambda: bill.bill(Call(actor, {}, SumQuery(by="project")))),
        ]
        for name, ask in asked:
            before = time.process_time()
            await ask()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            print(f"{name:22} {time.process_time() - before:7.2f} s of CPU, peak so far {peak} MB")
    finally:
        await store.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as where:
        asyncio.run(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000, where))
