"""One live scheduling cycle over a real SQLite store, P99: 8-GPU nodes, 5,000 queued, 1% of nodes changed before each.

    .venv/bin/python -m benchmarks.live_cycle

What happens between two cycles (ends as an engine reports them, submissions, cordons) is written, and committed, before
the clock starts, as the server's other closures do. Timed is what `jobs/reconcile.py` asks the writer for: to read what
the events named, decide, write evictions, admissions and why heads wait; then, apart, until the caller has its answer,
which is after the commit, synced to the disk. The bar is on CPU time in the writer plus the wait for the commit, since
machines are shared (as in benchmarks/replay.py); the clock's figures are in the note. Quotas that borrow, fair share and EASY backfill (depth 100) are on, and
the fleet is full. A server that takes over reads everything once: that has no bar, and is in the note.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import Bar, alone, percentile, say, spread
from penstock.base.reasons import Reason
from penstock.engines.spec import Gpu, NodeOffer, Observation, Stage
from penstock.fleet import inventory
from penstock.jobs import admission, progression, submit
from penstock.jobs.spec import JobSpec, Resources
from penstock.jobs.view import Memory, View
from penstock.scheduling import live
from penstock.scheduling.cycle import Scheduler
from penstock.store.store import Store, Tx

QUEUED, CYCLES, QUEUES, CHANGED = 5000, 100, 8, 0.01
SIZES = (1, 1, 1, 1, 2, 2, 4, 8, 8, 16, 32, 64)
LIMITS_S = (600.0, 3600.0, 86400.0)


def setup(nodes: int) -> str:
    share = nodes * 8 // QUEUES
    rows = [
        f"  - {{name: q{n}, cohort: all, weight: {1 + n % 3}, quotas: {{default: {{gpus: {share}}}}}}}"
        for n in range(QUEUES)
    ]
    policy = "policy: {order: fairshare, backfill: easy, depth: 100}"
    return "\n".join([policy, "cohorts:", "  - {name: all}", "queues:", *rows])


class Live:
    """A store with a fleet under load, the server's view of it, and what happens between two cycles."""

    def __init__(self, store: Store, nodes: int, seed: int = 7) -> None:
        self.store, self.nodes, self.now = store, nodes, 1_750_000_000.0
        self.chance = random.Random(seed)
        self.memory = Memory()
        self.view = View(self.memory)
        store.project(lambda _tx, event: self.view.mark(event))
        self.setting = admission.Setting("/var/lib/penstock/jobs", "simulated", 1, self.memory)
        self.count = 0
        self.closed: set[int] = set()

    async def fill(self) -> None:
        """As many as the fleet holds, and a queue behind them."""
        gpus = tuple(Gpu(str(at), "H100") for at in range(8))
        offers = [NodeOffer(f"n{n}", 96.0, 1 << 40, gpus) for n in range(self.nodes)]
        await self.store.write(lambda tx: live.replace(tx, setup(self.nodes), actor="admin"))
        await self.store.write(lambda tx: inventory.sync(tx, "simulated", offers))
        await self.cycle()
        while self.missing:
            await self.store.write(self.refill)
            await self.cycle()

    @property
    def scheduler(self) -> Scheduler:
        assert self.view.scheduler is not None
        return self.view.scheduler

    @property
    def missing(self) -> int:
        return QUEUED - len(self.scheduler.lines)

    def refill(self, tx: Tx) -> None:
        for _ in range(self.missing):
            self.arrive(tx)

    def arrive(self, tx: Tx) -> None:
        self.count += 1
        gpus = self.chance.choice(SIZES)
        each = min(gpus, 8)
        spec = JobSpec(
            command=("train.py",),
            nodes=max(1, gpus // 8),
            resources=Resources(cpus=8.0 * each, memory=each << 36, gpus=each),
            time_limit=self.chance.choice(LIMITS_S),
            queue=f"q{self.chance.randrange(QUEUES)}",
        )
        submit.create(tx, submit.NewJob("default", f"j{self.count}", f"user{self.chance.randrange(20)}", spec))

    def happen(self, tx: Tx) -> None:
        """1% of nodes' worth of ends, a tenth of that of nodes that open or close, and arrivals in place of who started."""
        changed = max(1, int(self.nodes * CHANGED))
        held = sorted(self.scheduler.held)
        for id_ in self.chance.sample(held, min(changed, len(held))):
            self.end(tx, id_)
        for n in self.chance.sample(range(self.nodes), max(1, changed // 10)):
            if n in self.closed:
                inventory.uncordon(tx, f"n{n}", actor="admin", why="")
            else:
                inventory.cordon(tx, f"n{n}", actor="admin", why="a look at its fans")
            self.closed ^= {n}
        self.refill(tx)

    def end(self, tx: Tx, id_: str) -> None:
        row = submit.by_id(tx.conn, id_)
        assert row is not None
        over = Observation(f"{id_}.{row.attempt}", Stage.EXITED, tx.now, tx.now, tx.now, Reason.Completed, exit_code=0)
        progression.observe(tx, row, over)

    async def cycle(self) -> tuple[float, float, float]:
        """Seconds of CPU in the writer, seconds there, and until the answer."""
        began = time.perf_counter()
        cpu, inside = await self.store.write(self._timed)
        return cpu, inside, time.perf_counter() - began

    def _timed(self, tx: Tx) -> tuple[float, float]:
        began, cpu = time.perf_counter(), time.thread_time()
        admission.cycle(tx, self.view, self.setting)
        return time.thread_time() - cpu, time.perf_counter() - began

    async def take_over(self) -> float:
        """Seconds that a view takes from nothing."""
        view = View(self.memory)
        began = time.perf_counter()
        await self.store.read(lambda conn: view.build(conn, self.now))
        return time.perf_counter() - began


async def lived(nodes: int, cycles: int, folder: Path) -> tuple[list[float], list[float], list[float], float]:
    """Milliseconds of each cycle in the writer (CPU), there on the clock, and with the commit; seconds of a take-over."""
    fleet: Live | None = None
    store = Store.open(f"sqlite:///{folder}/penstock.db", clock=lambda: fleet.now if fleet is not None else 0.0)
    try:
        fleet = Live(store, nodes)
        await fleet.fill()
        say(f"   {nodes} nodes, {len(fleet.scheduler.lines)} queued, {len(fleet.scheduler.held)} held")
        cpu: list[float] = []
        inside: list[float] = []
        whole: list[float] = []
        for _ in range(cycles):
            fleet.now += 10.0
            await store.write(fleet.happen)
            took = await fleet.cycle()
            for times, seconds in zip((cpu, inside, whole), took, strict=True):
                times.append(seconds * 1000)
        return cpu, inside, whole, await fleet.take_over()
    finally:
        await store.close()


def measured(nodes: int, limit: float, cycles: int) -> Bar:
    with tempfile.TemporaryDirectory(prefix="penstock-live-") as folder:
        cpu, inside, whole, cold = asyncio.run(lived(nodes, cycles, Path(folder)))
    waited = [used + (until - within) for used, within, until in zip(cpu, inside, whole, strict=True)]
    note = (
        f"{spread(waited, ' ms')}, of which CPU P99 {percentile(cpu, 0.99):.3g} ms; on the clock P99 "
        f"{percentile(whole, 0.99):.3g} ms, {spread(whole, ' ms')}, and without the commit P99 "
        f"{percentile(inside, 0.99):.3g} ms; a take-over reads everything in {cold:.2g} s"
    )
    return Bar(f"live cycle P99, {nodes} nodes, CPU and commit", percentile(waited, 0.99), limit, "ms", note=note)


def measure() -> list[Bar]:
    return [measured(2000, 100.0, CYCLES), measured(10_000, 500.0, CYCLES // 2)]


if __name__ == "__main__":
    sys.exit(alone(measure, __doc__))
