"""What `penstock queues` says, from the rows of a store: what is held, lent, and kept for whoever waits for others to leave."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from penstock.base.errors import InvalidInput
from penstock.base.quantities import parse_time
from penstock.engines.spec import Gpu, NodeOffer
from penstock.fleet import inventory
from penstock.jobs import admission, lines, submit
from penstock.jobs.orphans import orphans
from penstock.jobs.spec import JobSpec, Resources
from penstock.jobs.view import Memory, View
from penstock.scheduling import checks, live
from penstock.scheduling.spec import parse_setup
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

    async def submit(self, queue: str | None, *gpus: int, project: str = "default") -> None:
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


def test_who_would_be_left_without_a_queue_is_counted_and_goes_on_being_shown(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(f"sqlite:///{tmp_path}/p.db", clock := Clock()) as store:
            house = House(store, clock)
            await house.begin("queues: [{name: default}, {name: a}, {name: b}]")
            await house.submit("a", 4, 4, 4, 2)
            await house.submit("b", 1)

            async def left(queues: str, which: int = 0) -> list[str]:
                return (await store.read(lambda conn: orphans(conn, parse_setup(queues))))[which]

            closed = "queues: [{name: default}, {name: a, projects: [other]}, {name: b}]"
            gone = "queues: [{name: default}, {name: b}]"
            waits = "1 job waits in it and could not start any more"
            runs = "3 run in it and could not start again"
            assert await left(closed) == [f"queue a stays, but not for all who are in it: {waits}; {runs}"]
            assert await left(gone) == [f"queue a goes: {waits}; {runs}"]
            mine = "queues: [{name: a}, {name: b, projects: [default]}]"
            assert await left(mine) == []
            assert await left(mine, 1) == ["queue default goes: no job is in it"]
            await house.submit(None, 1)
            goes = "queue default goes: of the jobs in it 1 that wait and 0 that run go on in b"
            assert await left(mine, 1) == [goes]
            await store.write(lambda tx: live.replace(tx, gone, actor="admin"))
            assert await left("queues: [{name: b}, {name: default}]") == []  # those of a are lost already
            row = (await house.report())["a"]
            assert (row["in_file"], row["used"], row["waiting"], row["nominal"]) == (False, 12, 1, None)

    asyncio.run(main())


def test_quotas_above_a_fleet_that_shrank_are_told(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(f"sqlite:///{tmp_path}/p.db", clock := Clock()) as store:
            house = House(store, clock)
            await house.begin()

            async def warnings() -> list[str]:
                found = await store.read(lambda conn: lines.report(conn, clock.now, Memory()))
                return list(found["warnings"])

            assert await warnings() == []
            offers = [NodeOffer("n0", 64.0, 1 << 36, (Gpu("0", ""), Gpu("1", "")))]
            await store.write(lambda tx: inventory.sync(tx, "simulated", offers))
            (told,) = await warnings()
            assert told.startswith("12 gpus of flavor default are promised; the fleet has 2 now")

    asyncio.run(main())


def test_a_queue_file_is_held_against_the_fleet_when_it_is_applied(tmp_path: Path) -> None:
    """A window that was over already is refused, one that is over since only told; nobody's nodes and projects are told."""
    window = "reservations: [{name: w, start: %s, end: %s, nodes: [n0, n9]}]\nqueues: [{name: a, projects: [ghost]}]"
    past, soon = (
        parse_setup(window % times)
        for times in (
            ("2020-01-01T00:00:00Z", "2020-01-02T00:00:00Z"),
            ("2030-01-01T00:00:00Z", "2030-01-02T00:00:00Z"),
        )
    )

    async def main() -> None:
        async with opened(f"sqlite:///{tmp_path}/p.db", clock := Clock()) as store:
            await House(store, clock).begin()
            now = parse_time("2025-01-01T00:00:00Z")
            with pytest.raises(InvalidInput) as caught:
                await store.read(lambda conn: checks.check(conn, past, now))
            assert caught.value.details[0].path == "reservations[0].end"
            unknown = ["reservation w: the fleet has no node 'n9'", "queue a: there is no project 'ghost'"]
            assert await store.read(lambda conn: checks.check(conn, soon, now)) == unknown
            text = window % ("2020-01-01T00:00:00Z", "2020-01-02T00:00:00Z")
            await store.write(lambda tx: live.replace(tx, text, actor="admin"))
            told = await store.read(lambda conn: checks.check(conn, past, now))
            assert told == ["reservation w is over since 2020-01-02T00:00:00.000Z", *unknown]

    asyncio.run(main())
