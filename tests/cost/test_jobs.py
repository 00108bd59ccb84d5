"""One job's cost, for jobs as the jobs room makes them: by attempt, while it runs and after, and of a whole array."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from penstock.base.errors import NotFound
from penstock.base.routes import Call
from penstock.cost.routes import CostRoutes
from penstock.jobs import submit
from penstock.jobs.spec import JobSpec
from penstock.store.store import Store
from tests.cost.test_ledger import ADMIN, PRICES, ended, groups, ledgers, started
from tests.stores import Clock


async def cost(store: Store, name: str) -> dict[str, Any]:
    return await CostRoutes(store, PRICES).job(Call(ADMIN, {"project": "default", "name": name}))


async def create(store: Store, name: str, **spec: Any) -> None:
    new = submit.NewJob("default", name, "ann", JobSpec(command=("true",), **spec))
    await store.write(lambda tx: submit.create(tx, new))


async def run(store: Store, clock: Clock, name: str, attempt: int, hours: float) -> None:
    job_id = await store.read(lambda conn: submit.find(conn, "default", name).id)
    held = groups("n0", "n1")
    await store.write(lambda tx: started(tx, name, attempt, job_id=job_id, groups=held))
    clock.now += hours * 3600
    await store.write(lambda tx: ended(tx, name, attempt, job_id=job_id))


def test_a_job_is_charged_by_attempt_and_node(sqlite_url: str) -> None:
    async def main() -> None:
        clock = Clock()
        async with ledgers(sqlite_url, clock) as store:
            await create(store, "digits")
            nothing = await cost(store, "digits")
            assert (nothing["items"], nothing["total"], nothing["since"]) == ([], 0.0, None)
            await run(store, clock, "digits", 1, 1)
            clock.now += 3600
            await run(store, clock, "digits", 2, 0.5)
            clock.now += 3600
            found = await cost(store, "digits")
            assert [(item["key"], item["amount"]) for item in found["items"]] == [
                ({"attempt": 1, "node": "n0"}, 4.0),
                ({"attempt": 1, "node": "n1"}, 4.0),
                ({"attempt": 2, "node": "n0"}, 2.0),
                ({"attempt": 2, "node": "n1"}, 2.0),
            ]
            assert (found["total"], found["by"], found["currency"]) == (12.0, "attempt", "EUR")
            with pytest.raises(NotFound):
                await cost(store, "nobody")

    asyncio.run(main())


def test_a_job_that_took_a_deleted_ones_name_is_charged_for_itself(sqlite_url: str) -> None:
    async def main() -> None:
        clock = Clock()
        async with ledgers(sqlite_url, clock) as store:
            await store.write(lambda tx: started(tx, "digits", job_id="an-earlier-one"))
            clock.now += 3600
            await create(store, "digits")
            assert (await cost(store, "digits"))["total"] == 0.0

    asyncio.run(main())


def test_an_array_costs_what_its_tasks_cost(sqlite_url: str) -> None:
    async def main() -> None:
        clock = Clock()
        async with ledgers(sqlite_url, clock) as store:
            await create(store, "sweep", array={"count": 3})
            await run(store, clock, "sweep-0", 1, 1)
            await run(store, clock, "sweep-2", 1, 1)
            assert (await cost(store, "sweep"))["total"] == 16.0
            assert (await cost(store, "sweep-2"))["total"] == 8.0
            assert (await cost(store, "sweep-1"))["total"] == 0.0

    asyncio.run(main())
