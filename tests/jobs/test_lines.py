"""What `penstock queues` says, from the rows of a store: what is held, lent, and kept for whoever waits for others to leave."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from penstock.engines.spec import Gpu, NodeOffer
from penstock.fleet import inventory
from penstock.jobs import admission, lines, submit
from penstock.jobs.spec import JobSpec, Resources
from penstock.jobs.view import Memory, View
from penstock.scheduling import live
from penstock.store.store import Store
from tests.stores import Clock, opened

QUEUES = """
policy: {preemption: true}
cohorts: [{name: all}]
queues:
- {name: a, cohort: all, quotas: {default: {gpus: 6}}}
- {name: b, cohort: all, quotas: {default: {gpus: 4}}}
- {name: c, cohort: all, quotas: {default: {gpus: 2}}}
"""


class House:
    """Three nodes of four GPUs, and cycles when they are asked for."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.store, self.clock, self.memory = store, clock, Memory()
        self.view = View(self.memory)
        store.project(lambda _tx, event: self.view.mark(event))

    async def begin(self, queues: str = QUEUES) -> None:
        offers = [NodeOffer(f"n{n}", 64.0, 1 << 36, tuple(Gpu(str(at), "") for at in range(4))) for n in range(3)]
        await self.store.write(lambda tx: live.replace(tx, queues, actor="admin"))
        await self.store.write(lambda tx: inventory.sync(tx, "simulated", offers))

    async def submit(self, queue: str, *gpus: int, project: str = "default") -> None:
        for each in gpus:
            spec = JobSpec(command=("train.py",), resources=Resources(cpus=1.0, gpus=each), queue=queue)
            new = submit.NewJob(project, None, "ann", spec)
            await self.store.write(partial(submit.create, new=new))
            self.clock.now += 10.0
            await self.cycle()

    async def cycle(self) -> None:
        setting = admission.Setting("/jobs", "simulated", 1, self.memory)
        await self.store.write(lambda tx: admission.cycle(tx, self.view, setting))

    async def report(self) -> dict[str, dict[str, Any]]:
        found = await self.store.read(lambda conn: lines.report(conn, self.store.clock(), Memory()))
        return {row["queue"]: row for row in found["items"]}


def test_what_is_lent_is_what_is_borrowed(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(f"sqlite:///{tmp_path}/p.db", clock := Clock()) as store:
            house = House(store, clock)
            await house.begin()
            await house.submit("a", *[1] * 9)
            rows = await house.report()
            assert rows["a"]["borrowed"] == 3
            assert [rows[name]["lent"] for name in "abc"] == pytest.approx([0, 2, 1])

    asyncio.run(main())


def test_who_waits_for_others_to_leave_uses_nothing_yet(tmp_path: Path) -> None:
    """Those who were told to leave still hold what they held; what is kept for their successor stands apart."""

    async def main() -> None:
        async with opened(f"sqlite:///{tmp_path}/p.db", clock := Clock()) as store:
            house = House(store, clock)
            await house.begin()
            await house.submit("a", 4, 4, 4)
            await house.submit("b", 4)
            rows = await house.report()
            assert {name: (row["used"], row["promised"]) for name, row in rows.items()} == {
                "a": (12, 0), "b": (0, 4), "c": (0, 0),
            }  # fmt: skip
            assert sum(row["lent"] for row in rows.values()) == rows["a"]["borrowed"] == 6

    asyncio.run(main())
