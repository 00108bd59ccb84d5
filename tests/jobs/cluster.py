"""A server's reconciler with an engine of its own and a made-up cluster, c1, that schedules itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select

from penstock.base.resource import Actor
from penstock.cost import capacity, idle, ledger
from penstock.cost.tables import usage
from penstock.engines.several import Engines
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.engines.simulated.line import QueueingEngine
from penstock.engines.simulated.shape import Fleet
from penstock.jobs import queries, submit
from penstock.jobs.launch import Site
from penstock.jobs.reconcile import JobReconciler
from penstock.jobs.room import Room
from penstock.jobs.spec import JobSpec
from penstock.jobs.state import FINAL
from penstock.jobs.tables import attempts, jobs
from penstock.jobs.view import Memory
from penstock.reconcile.loop import Loop
from penstock.scheduling import live
from penstock.store import events
from penstock.store.store import Store
from tests.stores import Clock, opened

ANN = Actor("ann", "", {"default": "member"})
_UNFINISHED = select(jobs.c.name).where(jobs.c.phase.not_in([phase.value for phase in FINAL]))
SHAPE = Fleet(2, 2, "H100", cpus=4.0, memory=64 << 30)


@dataclass
class Cluster:
    """``start`` and ``restart`` are a server's; the store and what runs outlive it."""

    store: Store
    clock: Clock
    path: Path
    user: str | None = None  # the Unix user of its jobs
    engines: Engines = field(init=False)
    reconciler: JobReconciler = field(init=False)
    room: Room = field(init=False)
    c1: QueueingEngine = field(init=False)

    async def start(self) -> None:
        own = SimulatedEngine(Fleet(1, 0, cpus=2.0), clock=self.clock)
        self.c1 = QueueingEngine(SHAPE, name="c1", prefix="c1-", clock=self.clock)
        self.engines = Engines(own)
        self.engines.add(self.c1)
        site = Site("/nowhere", 1, 1, {})
        self.reconciler = JobReconciler(self.store, self.engines, Loop(), lambda _tx: 1, f"{self.path}/jobs", site)
        memory = Memory(own=own.name)
        self.room = Room(self.store, self.engines, {}, lambda *_: True, lambda *_: None, memory=memory)
        await self.reconciler.start()
        await self.settled()

    async def restart(self) -> None:
        """As after a server that was ended, however it ended."""
        await self.reconciler.close()
        await self.start()

    async def settled(self) -> None:
        """Until nothing is under way: what waits for a time alone does not count."""
        loop, mine = self.reconciler.loop, self.reconciler
        quiet = 0
        async with asyncio.timeout(30):
            while quiet < 3:
                await asyncio.sleep(0.002)
                busy = any(slot.task is not None for slot in loop._slots.values())
                quiet = 0 if busy or mine._seen or mine._folds or self.c1.settling else quiet + 1

    async def a_while_passes(self) -> None:
        """What waits to be tried again is."""
        loop = self.reconciler.loop
        loop.enqueue("handover", "c1")
        for id_ in await self.store.read(
            lambda conn: list(conn.execute(_UNFINISHED.with_only_columns(jobs.c.id)).scalars())
        ):
            loop.enqueue("job", id_)
        loop.enqueue("schedule", "all")
        await self.settled()

    async def run(self, name: str, *command: str, **fields: Any) -> None:
        spec = JobSpec.model_validate({"command": command or ("sleep", "1000h"), "engine": "c1", **fields})
        await self.store.write(
            lambda tx: self.room.create(tx, ANN, submit.NewJob("default", name, "ann", spec, self.user))
        )
        await self.settled()

    async def cancel(self, name: str) -> None:
        await self.store.write(lambda tx: submit.cancel(tx, submit.find(tx.conn, "default", name), actor="ann"))
        await self.settled()

    async def change(self, name: str, **fields: Any) -> str:
        def work(tx: Any) -> str:
            row = submit.find(tx.conn, "default", name)
            spec = JobSpec.model_validate_json(row.spec).model_copy(update=fields)
            return submit.replace(tx, row, JobSpec.model_validate(spec.model_dump()), actor="ann")

        done = await self.store.write(work)
        await self.settled()
        return done

    async def queues(self, text: str) -> None:
        await self.store.write(lambda tx: live.replace(tx, text, actor="root"))
        await self.settled()

    async def job(self, name: str) -> dict[str, Any]:
        return await self.room.shown("default", name)

    async def status(self, name: str) -> dict[str, Any]:
        return dict((await self.job(name))["status"])

    async def attempts(self, name: str) -> list[dict[str, Any]]:
        def read(conn: Any) -> list[dict[str, Any]]:
            row = submit.find(conn, "default", name)
            return [queries.attempt(one) for one in queries.attempt_rows(conn, row.id)]

        return await self.store.read(read)

    async def attempt_id(self, name: str) -> str:
        job = await self.job(name)
        return f"{job['id']}.{job['status']['attempt']}"

    async def why(self, name: str) -> dict[str, Any]:
        def read(conn: Any) -> dict[str, Any]:
            return queries.why(conn, submit.find(conn, "default", name), self.clock(), Memory(own="simulated"))

        return await self.store.read(read)

    async def reasons(self, name: str) -> list[str]:
        rows = await self.store.read(lambda conn: events.page(conn, after=0, limit=500, kind="Job"))
        return [str(row.reason) for row in rows if row.name == name]

    async def usage(self) -> dict[str, list[tuple[float, float, float | None]]]:
        """By attempt: CPUs, since when, until when."""

        def read(conn: Any) -> dict[str, list[tuple[float, float, float | None]]]:
            found: dict[str, list[tuple[float, float, float | None]]] = {}
            for row in conn.execute(select(usage).where(usage.c.resource == "cpus").order_by(usage.c.started_at)):
                key = f"{row.job_id}.{row.attempt}"
                found.setdefault(key, []).append((row.quantity, row.started_at, row.ended_at))
            return found

        return await self.store.read(read)

    async def unfinished(self) -> list[str]:
        return await self.store.read(lambda conn: list(conn.execute(_UNFINISHED).scalars()))

    async def open_attempts(self) -> list[tuple[str, int]]:
        query = select(attempts.c.job_id, attempts.c.number).where(attempts.c.ended_at.is_(None))
        return await self.store.read(lambda conn: [tuple(row) for row in conn.execute(query)])


@asynccontextmanager
async def clusters(path: Path) -> AsyncIterator[Cluster]:
    clock = Clock()
    async with opened(f"sqlite:///{path}/p.db", clock) as store:
        for room in (ledger, idle, capacity):
            room.attach(store)
        cluster = Cluster(store, clock, path)
        await cluster.start()
        try:
            yield cluster
        finally:
            await cluster.reconciler.close()


def play(path: Path, story: Callable[[Cluster], Awaitable[None]]) -> None:
    async def main() -> None:
        async with clusters(path) as cluster:
            await story(cluster)

    asyncio.run(main())
