"""A server that starts again, at any cycle, goes on from the rows: it decides as the one before would have."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from pathlib import Path

import pytest

from penstock.base.reasons import Reason
from penstock.engines.spec import Gpu, NodeOffer, Observation, Stage
from penstock.fleet import inventory
from penstock.jobs import admission, progression, submit
from penstock.jobs.spec import JobSpec, Resources
from penstock.jobs.state import Phase
from penstock.jobs.view import Memory, View, fresh
from penstock.scheduling import live
from penstock.scheduling.cycle import Scheduler
from penstock.store.store import Store, Tx
from tests.stores import Clock, opened

POLICIES = [
    *itertools.product(("fifo", "fairshare"), ("strict",), ("easy", "conservative")),
    ("sjf", "skip", "none"),
    ("fairshare", "skip", "none"),
]
QUEUES = """
policy: {{order: {}, blocking: {}, backfill: {}, preemption: true, decay_half_life: 20m}}
cohorts: [{{name: all}}]
queues:
- {{name: a, cohort: all, preempt_within_queue: lower_priority, quotas: {{default: {{gpus: 6}}}}}}
- {{name: b, cohort: all, preempt_within_queue: lower_priority, quotas: {{default: {{gpus: 6}}}}}}
"""


class World:
    """Three nodes under load over a real store; one view that lives on, and may be made to forget."""

    def __init__(self, store: Store, clock: Clock, seed: int) -> None:
        self.store, self.clock, self.chance = store, clock, random.Random(seed)
        self.memory = Memory()
        self.view = View(self.memory)
        store.project(lambda _tx, event: self.view.mark(event))
        self.setting = admission.Setting("/jobs", "simulated", 1, self.memory)
        self.evictions = self.promises = 0

    async def begin(self, policy: tuple[str, str, str]) -> None:
        offers = [NodeOffer(f"n{n}", 8.0, 1 << 36, tuple(Gpu(str(at), "") for at in range(4))) for n in range(3)]
        await self.store.write(lambda tx: live.replace(tx, QUEUES.format(*policy), actor="admin"))
        await self.store.write(lambda tx: inventory.sync(tx, "simulated", offers))

    @property
    def scheduler(self) -> Scheduler:
        assert self.view.scheduler is not None
        return self.view.scheduler

    def happen(self, tx: Tx) -> None:
        chance = self.chance
        for _ in range(chance.randrange(3)):
            self.arrive(tx)
        for id_, holding in sorted(self.scheduler.held.items()):
            late = holding.end <= tx.now
            if late or chance.random() < (0.3 if holding.held.leaving else 0.05):
                self.end(tx, id_)
        waiting = sorted(self.view.rows)
        if waiting and chance.random() < 0.1:
            gone = chance.choice(waiting)
            submit.update(tx, gone, held="slot")
            self.view.touch(gone)
        if chance.random() < 0.1:
            act = chance.choice([inventory.cordon, inventory.uncordon])
            act(tx, f"n{chance.randrange(3)}", actor="admin", why="")

    def arrive(self, tx: Tx) -> None:
        chance = self.chance
        spec = JobSpec(
            command=("train.py",),
            nodes=chance.choice([1, 1, 2]),
            resources=Resources(cpus=1.0, gpus=chance.choice([1, 2, 4])),
            time_limit=chance.choice([None, 60.0, 300.0, 900.0]),
            queue=chance.choice("ab"),
            priority=chance.choice([0, 0, 0, 5]),
        )
        submit.create(tx, submit.NewJob("default", None, chance.choice(["ann", "bob"]), spec))

    def end(self, tx: Tx, id_: str) -> None:
        row = submit.by_id(tx.conn, id_)
        assert row is not None
        attempt = progression.current_attempt(tx.conn, row)
        assert attempt is not None
        reason = attempt.stop_reason or Reason.Completed
        over = Observation(f"{id_}.{row.attempt}", Stage.EXITED, tx.now, tx.now, tx.now, reason, exit_code=0)
        progression.observe(tx, row, over)

    async def cycle(self) -> None:
        """What one made from the rows alone would decide now, and what the one that knew decides."""
        now = self.clock.now
        if self.view.scheduler is not None:
            self.view.scheduler.wake()
        _, other = await self.store.read(lambda conn: fresh(conn, now, self.memory))
        expected = other.plan(now)
        done = await self.store.write(lambda tx: admission.cycle(tx, self.view, self.setting))
        assert [row.id for row, _ in done.admitted] == [admit.id for admit in expected.admit]
        assert done.evicted == [evict.id for evict in expected.evict]
        if (
            self.scheduler.policy.order != "fairshare"
        ):  # there shares, and so who is promised first, move with the clock
            assert told(self.scheduler) == told(other)
        assert set(self.scheduler.awaiting) == set(other.awaiting)
        self.evictions += len(done.evicted)
        self.promises += len(expected.promises)


def told(scheduler: Scheduler) -> dict[str, tuple[float, frozenset[str]]]:
    return {
        id_: (window.promise.start, frozenset(share.node for share in window.promise.shares))
        for id_, window in scheduler.windows.items()
    }


@pytest.mark.parametrize("policy", POLICIES, ids="-".join)
def test_a_restart_at_any_cycle_changes_no_decision(
    policy: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lived(seed: int) -> World:
        clock = Clock()
        monkeypatch.setattr(os, "urandom", random.Random(seed).randbytes)  # ids, by which jobs are sorted here
        async with opened(f"sqlite:///{tmp_path}/{seed}.db", clock) as store:
            world = World(store, clock, seed)
            await world.begin(policy)
            await world.cycle()
            for _ in range(40):
                clock.now += world.chance.choice([1.0, 10.0, 60.0])
                await store.write(world.happen)
                if world.chance.random() < 0.3:
                    world.view.forget()
                await world.cycle()
            return world

    worlds = [asyncio.run(lived(seed)) for seed in range(5)]
    assert sum(world.evictions for world in worlds) > 5
    assert policy[2] == "none" or sum(world.promises for world in worlds) > 50


def test_who_waits_for_others_to_leave_evicts_nobody_again(tmp_path: Path) -> None:
    """Its victims are still there when another server takes over: it waits for them, on the nodes that are kept for it."""

    async def lived() -> None:
        clock = Clock()
        async with opened(f"sqlite:///{tmp_path}/store.db", clock) as store:
            world = World(store, clock, 0)
            await world.begin(("fifo", "strict", "none"))

            def submit_one(tx: Tx, name: str, priority: int, gpus: int) -> None:
                spec = JobSpec(command=("x",), resources=Resources(cpus=1.0, gpus=gpus), priority=priority, queue="a")
                submit.create(tx, submit.NewJob("default", name, "ann", spec))

            for n in range(6):
                await store.write(lambda tx, n=n: submit_one(tx, f"low-{n}", 0, 2))  # type: ignore[misc]
            await world.cycle()
            clock.now += 10.0
            await store.write(lambda tx: submit_one(tx, "high", 9, 4))
            await world.cycle()
            assert world.evictions == 2
            for _ in range(3):
                clock.now += 10.0
                world.view.forget()
                await world.cycle()
            assert world.evictions == 2
            assert len(world.scheduler.awaiting) == 1
            victims = [id_ for id_, holding in world.scheduler.held.items() if holding.held.leaving]
            for victim in victims:
                await store.write(lambda tx, id_=victim: world.end(tx, id_))  # type: ignore[misc]
            world.view.forget()
            await world.cycle()
            row = await store.read(lambda conn: submit.find(conn, "default", "high"))
            assert row.phase == Phase.STARTING

    asyncio.run(lived())
