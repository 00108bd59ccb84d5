"""Budgets over a real store: warned about once a threshold, refused where asked; the bill read back with its intervals."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import select

from penstock.base.errors import InvalidInput, NotFound
from penstock.base.reasons import Reason
from penstock.base.resource import Ref
from penstock.base.routes import Call
from penstock.cost import budgets, capacity
from penstock.cost.bill_routes import BillRoutes, SumQuery
from penstock.cost.tables import capacity as capacity_table
from penstock.cost.terms import Terms
from penstock.store import events
from penstock.store.store import Tx
from penstock.tenancy import accounts
from tests.cost.test_ledger import ADMIN, GIB, PRICES, groups, ledgers, started
from tests.stores import Clock


def joined(tx: Tx, name: str, reason: Reason = Reason.Joined) -> None:
    has = {"cpus": 8.0, "memory": 16 * GIB, "gpus": [{"id": "0", "model": "NVIDIA H100 80GB HBM3"}], "ready": True}
    tx.emit(Ref("Node", name, id=name), reason, actor="system", data=has)


def test_warned_once_a_threshold_and_refused(sqlite_url: str) -> None:
    async def story() -> None:
        clock = Clock()
        async with ledgers(sqlite_url, clock) as store:
            one = budgets.parse("default", "100", [50, 100], refuse=True, contact="finance")
            with pytest.raises(NotFound):
                await store.write(lambda tx: budgets.put(tx, one, actor="root"))
            await store.write(lambda tx: accounts.add_project(tx, "root", "default"))
            await store.write(lambda tx: budgets.put(tx, one, actor="root"))
            await store.write(lambda tx: started(tx, "j", groups=groups("n0", gpus=1)))
            said: list[str] = []
            for hours in (1, 2, 0, 3):  # 24 an hour: 24, 72, 72, 144
                clock.now += hours * 3600
                await store.write(lambda tx: budgets.watch(tx, PRICES))
                refused = await store.read(lambda conn: budgets.refusal(conn, "default", PRICES, clock()))
                said.append(refused or "")
            assert said[:3] == ["", "", ""]
            assert said[3] == "144.00 of 100 EUR are spent this month: ask finance for more"
            found = await store.read(lambda conn: events.page(conn, after=0, limit=50, kind="Project"))
            reasons = [event.reason for event in found]
            assert reasons == [Reason.Created, Reason.BudgetSet, Reason.BudgetWarning, Reason.BudgetExceeded]
            await store.write(lambda tx: budgets.delete(tx, "default", actor="root"))
            with pytest.raises(NotFound):
                await store.write(lambda tx: budgets.delete(tx, "default", actor="root"))

    asyncio.run(story())


def test_a_burst_of_submissions_costs_one_sum(sqlite_url: str) -> None:
    async def story() -> None:
        clock = Clock()
        async with ledgers(sqlite_url, clock) as store:
            await store.write(lambda tx: accounts.add_project(tx, "root", "default"))
            one = budgets.parse("default", "30", [100], refuse=True, contact="")
            await store.write(lambda tx: budgets.put(tx, one, actor="root"))
            await store.write(lambda tx: started(tx, "j", groups=groups("n0", gpus=1)))  # 24 an hour
            purse = budgets.Purse(PRICES)

            async def refused() -> str | None:
                return await store.read(lambda conn: purse.refusal(conn, "default", clock()))

            assert await refused() is None
            clock.now += 3600 * 2
            assert await refused() == "48.00 of 30 EUR are spent this month: ask an administrator for more"
            clock.now += budgets.FRESH_S / 2
            more = budgets.parse("default", "48.01", [100], refuse=True, contact="")
            await store.write(lambda tx: budgets.put(tx, more, actor="root"))
            assert await refused() is None  # a new budget counts at once, what was spent is some seconds old
            clock.now += 3600
            assert await refused() is not None
            await budgets.look(store, PRICES)
            await budgets.look(store, PRICES)
            found = await store.read(lambda conn: events.page(conn, after=0, limit=50, kind="Project"))
            assert [event.reason for event in found].count(Reason.BudgetExceeded) == 1
            await store.write(lambda tx: budgets.delete(tx, "default", actor="root"))
            assert await refused() is None

    asyncio.run(story())


def test_capacity_follows_the_nodes_and_the_bill_names_its_intervals(sqlite_url: str) -> None:
    async def story() -> dict[str, Any]:
        clock = Clock()
        async with ledgers(sqlite_url, clock) as store:
            capacity.attach(store)
            await store.write(lambda tx: joined(tx, "n0"))
            await store.write(lambda tx: started(tx, "j"))
            clock.now += 3600
            await store.write(lambda tx: tx.emit(Ref("Node", "n0", id="n0"), Reason.Lost, actor="system"))
            clock.now += 3600
            await store.write(lambda tx: joined(tx, "n0", Reason.Restored))
            rows = await store.read(lambda conn: conn.execute(select(capacity_table)).all())
            assert len(rows) == 6
            assert sum(row.ended_at is None for row in rows) == 3
            return await BillRoutes(store, PRICES, Terms()).bill(Call(ADMIN, {}, SumQuery(), None, {}, None, None))

    bill = asyncio.run(story())
    assert sum(row["nanos"] for row in bill["items"]) == bill["nanos"]
    assert "id-j.1/n0/cpus" in [each for row in bill["items"] for each in row["intervals"]]


def test_what_is_no_budget() -> None:
    with pytest.raises(InvalidInput) as caught:
        budgets.parse("p", "much", [0], refuse=False, contact="")
    assert [problem.path for problem in caught.value.details] == ["amount", "thresholds"]
