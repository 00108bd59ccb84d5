"""Idle GPUs over a real store and the simulated fleet: told of, paid for, and given to who waits where a queue says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select

from penstock.base.resource import Actor
from penstock.base.routes import Call
from penstock.cost import idle, ledger
from penstock.cost.queries import Window
from penstock.cost.tables import idle_usage
from penstock.engines.several import Engines
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.engines.simulated.shape import Fleet as Shape
from penstock.engines.spec import GpuSample
from penstock.jobs import queries, submit
from penstock.jobs.gpus import GpuWatch, OneSample, Samples, endpoints
from penstock.jobs.launch import Site
from penstock.jobs.reconcile import JobReconciler
from penstock.jobs.spec import JobSpec
from penstock.jobs.view import Memory
from penstock.reconcile.loop import Loop
from penstock.scheduling import live
from penstock.store import events
from penstock.store.store import Store
from tests.cost.test_ledger import PRICES
from tests.stores import NOON, Clock, opened

RECLAIMS = "queues: [{name: default, reclaim_idle_after: 10m}]"


@dataclass
class Fleet:
    store: Store
    clock: Clock
    engine: SimulatedEngine
    reconciler: JobReconciler
    watch: GpuWatch

    async def run(self, name: str, *command: str, gpus: int = 4, user: str = "ann", begins: bool = True) -> None:
        spec = JobSpec.model_validate({"command": command, "resources": {"gpus": gpus, "cpus": 1}})
        await self.store.write(lambda tx: submit.create(tx, submit.NewJob("default", name, user, spec)))
        if begins:
            await self.reaches(name, "Running")

    async def job(self, name: str) -> dict[str, Any]:
        def read(conn: Any) -> dict[str, Any]:
            row = submit.find(conn, "default", name)
            return queries.job(row, None, queries.in_play(conn, [row]).get(row.id), self.clock())

        return await self.store.read(read)

    async def why(self, name: str) -> dict[str, Any]:
        return await self.store.read(
            lambda conn: queries.why(conn, submit.find(conn, "default", name), self.clock(), Memory())
        )

    async def reaches(self, name: str, phase: str) -> None:
        async with asyncio.timeout(20):
            while (await self.job(name))["status"]["phase"] != phase:
                await asyncio.sleep(0.01)

    async def minutes(self, count: int) -> None:
        """Look once a minute."""
        for _ in range(count):
            self.clock.now += 60
            await self.watch.look()

    async def said(self, name: str) -> list[str]:
        rows = await self.store.read(lambda conn: events.page(conn, after=0, limit=500, kind="Job"))
        return [f"{row.reason}: {row.message}" for row in rows if row.name == name and "Idle" in row.reason]


@asynccontextmanager
async def fleets(path: Path, queues: str = "") -> AsyncIterator[Fleet]:
    clock = Clock()
    async with opened(f"sqlite:///{path}/p.db", clock) as store:
        ledger.attach(store)
        idle.attach(store)
        if queues:
            await store.write(lambda tx: live.replace(tx, queues, actor="root"))
        engine, loop = SimulatedEngine(Shape(1, 4, "simulated"), clock=clock), Loop()
        reconciler = JobReconciler(
            store, Engines(engine), loop, lambda _tx: 1, f"{path}/jobs", Site("/nowhere", 1, 1, {})
        )
        watch = GpuWatch(store, Engines(engine), lambda _tx: 1, 1800.0, lambda: loop.enqueue("schedule", "all"))
        await reconciler.start()
        try:
            yield Fleet(store, clock, engine, reconciler, watch)
        finally:
            await reconciler.close()


def play(path: Path, story: Callable[[Fleet], Awaitable[None]], queues: str = "") -> None:
    async def main() -> None:
        async with fleets(path, queues) as fleet:
            await story(fleet)

    asyncio.run(main())


def test_told_of_after_half_an_hour_and_paid_for_from_the_first_sample(tmp_path: Path) -> None:
    async def story(fleet: Fleet) -> None:
        await fleet.run("lazy", "idle-gpu", "sleep", "99999", gpus=3)
        await fleet.run("busy", "sleep", "99999", gpus=1)
        await fleet.minutes(30)
        assert await fleet.said("lazy") == []
        await fleet.minutes(15)
        assert await fleet.said("lazy") == ["GpuIdle: all its 3 GPUs have done nothing for 30m"]
        shown = (await fleet.job("lazy"))["status"]["conditions"][-1]
        assert (shown["type"], shown["message"]) == ("GpuIdle", "all its 3 GPUs have done nothing for 44m")
        why = await fleet.why("lazy")
        assert why["evidence"] == [shown["message"]]
        assert len(why["helps"]) == 1
        assert [c["type"] for c in (await fleet.job("busy"))["status"]["conditions"]] == [
            "Admitted",
            "Running",
            "Finished",
        ]

        def read(conn: Any) -> tuple[Any, Any]:
            window = Window(None, fleet.clock())
            return idle.idle(conn, "user", window, None, PRICES), idle.samples(conn)

        (item,), metrics = await fleet.store.read(read)
        assert item.key == {"user": "ann"}
        assert (item.idle_now, item.idle_gpu_hours, item.gpu_hours) == (3, 3 * 44 / 60, 3.0)
        assert abs(item.amount - 3 * 44 / 60 * 10) < 1e-6
        assert [(s.labels, s.value) for s in metrics] == [({"project": "default", "user": "ann"}, 3)]

    play(tmp_path, story)


def test_it_ends_with_work_with_silence_and_with_the_attempt(tmp_path: Path) -> None:
    async def story(fleet: Fleet) -> None:
        await fleet.run("lazy", "idle-gpu", "sleep", "99999", gpus=4)
        await fleet.minutes(31)
        node, gpu = "node-0", "SIM-0-0"
        fleet.clock.now += 1
        assert await fleet.watch.offer([GpuSample(node, gpu, 50.0, fleet.clock())], lambda _: True) == 1
        fleet.engine.gpu_samples = nothing  # type: ignore[method-assign]
        await fleet.watch.look()
        assert (await fleet.said("lazy"))[-1] == "GpuIdleEnded: 1 of its 4 GPUs is no longer known to be idle"
        assert (await fleet.job("lazy"))["status"]["conditions"][-1]["message"].startswith("3 of its 4 GPUs have")
        fleet.clock.now += 301
        await fleet.watch.look()
        assert (await fleet.said("lazy"))[-1] == "GpuIdleEnded: 3 of its 4 GPUs are no longer known to be idle"
        rows = await fleet.store.read(lambda conn: conn.execute(select(idle_usage)).all())
        assert [row.ended_at - NOON for row in rows] == [31 * 60 + 1, 31 * 60, 31 * 60, 31 * 60]
        assert {row.resource for row in rows} == {"gpus:simulated"}

    play(tmp_path, story)


async def nothing() -> list[GpuSample]:
    return []


def test_a_queue_that_says_so_gives_them_to_who_waits_and_only_then(tmp_path: Path) -> None:
    async def story(fleet: Fleet) -> None:
        await fleet.run("lazy", "idle-gpu", "sleep", "99999", gpus=4)
        await fleet.minutes(20)
        assert await fleet.said("lazy") == ["GpuIdle: all its 4 GPUs have done nothing for 10m"]  # its queue's patience
        assert "for 10m" in (await fleet.why("lazy"))["helps"][-1]
        assert (await fleet.job("lazy"))["status"]["phase"] == "Running"
        await fleet.run("eager", "sleep", "99999", gpus=4, user="bob")
        assert (await fleet.said("lazy"))[-1].startswith("IdleReclaimed: ")
        assert (await fleet.job("lazy"))["status"]["phase"] == "Pending"
        rows = await fleet.store.read(lambda conn: conn.execute(select(idle_usage)).all())
        assert all(row.ended_at is not None for row in rows)
        await fleet.watch.look()
        assert all(one.name == "eager" for one in fleet.watch.holders)

    play(tmp_path, story, RECLAIMS)


def test_who_waits_already_gets_them_once_patience_ends(tmp_path: Path) -> None:
    async def story(fleet: Fleet) -> None:
        await fleet.run("lazy", "idle-gpu", "sleep", "99999", gpus=4)
        await fleet.run("eager", "sleep", "99999", gpus=4, begins=False)
        await fleet.minutes(10)
        assert (await fleet.job("eager"))["status"]["phase"] == "Pending"
        await fleet.minutes(1)
        await fleet.reaches("eager", "Running")

    play(tmp_path, story, RECLAIMS)


def test_a_restart_begins_the_count_anew_and_keeps_what_was_told(tmp_path: Path) -> None:
    async def story(fleet: Fleet) -> None:
        await fleet.run("lazy", "idle-gpu", "sleep", "99999", gpus=3)
        await fleet.minutes(31)
        await fleet.run("newer", "idle-gpu", "sleep", "99999", gpus=1)
        await fleet.minutes(20)
        fleet.watch = GpuWatch(fleet.store, Engines(fleet.engine), lambda _tx: 1, 1800.0, lambda: None)
        await fleet.minutes(11)
        assert await fleet.said("lazy") == ["GpuIdle: all its 3 GPUs have done nothing for 30m"]
        assert await fleet.said("newer") == []
        assert (await fleet.job("lazy"))["status"]["conditions"][-1]["message"].endswith("for 1h1m")
        await fleet.minutes(20)
        assert await fleet.said("newer") == ["GpuIdle: its GPU has done nothing for 30m"]

    play(tmp_path, story)


def test_samples_from_outside_are_taken_of_ones_own_projects_gpus_alone(tmp_path: Path) -> None:
    async def story(fleet: Fleet) -> None:
        await fleet.run("lazy", "sleep", "99999", gpus=2)
        (endpoint,) = endpoints(fleet.watch, lambda: True)
        body = Samples(samples=[OneSample(node="node-0", gpu=f"SIM-0-{n}", utilization=0) for n in range(4)])
        for actor, taken in (
            (Actor("root", "admin"), 2),
            (Actor("ann", "", {"default": "member"}), 2),
            (Actor("eve", "", {"default": "viewer", "other": "member"}), 0),
        ):
            assert await endpoint.handler(Call(actor, {}, None, body)) == {"taken": taken, "ignored": 4 - taken}
        assert len(fleet.watch.tracks) == 2

    play(tmp_path, story)
