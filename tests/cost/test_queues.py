"""Usage knows its queue, and the idle rule ``quota`` gives what nobody used to the queues by their nominal quotas."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import text

from penstock.base.routes import Call
from penstock.cost import capacity
from penstock.cost.bill_routes import BillRoutes, SumQuery
from penstock.cost.quota import Weights, weights
from penstock.cost.tables import UNRECORDED
from penstock.cost.terms import Terms
from penstock.scheduling import live
from penstock.scheduling.spec import Setup, parse_setup
from penstock.store.connect import parse_url, writing_engine
from penstock.store.migrations.run import upgrade
from tests.cost.test_budgets import joined
from tests.cost.test_ledger import ADMIN, PRICES, groups, ledgers, report, started
from tests.stores import Clock

QUEUES = """
flavors:
  - {name: big, gpu_models: [h100]}
  - {name: small, gpu_models: [T4]}
  - {name: plain}
queues:
  - {name: prod, quotas: {big: {gpus: 6, cpus: 12}}}
  - {name: research, quotas: {big: {gpus: 2}, small: {gpus: 8}}}
  - {name: scraps}
"""
H100 = "gpus:NVIDIA H100 80GB HBM3"


def test_weights_follow_the_flavors_that_name_a_model() -> None:
    found = weights(parse_setup(QUEUES))
    assert found.bearers("on_demand", H100) == {"prod": 6000, "research": 2000}
    assert found.bearers("spot", "gpus:T4") == {"research": 8000}
    everything = {"prod": 6000, "research": 10000}
    assert found.bearers("on_demand", "gpus:L4") == everything  # no flavor has it: all GPUs
    assert found.bearers("on_demand", "cpus") == {"prod": 12000}
    assert found.bearers("on_demand", "memory_bytes") == everything  # nobody has a quota of it
    assert found.bearers("node", "n0") == found.bearers("reserved", "c/n0") == everything
    assert weights(Setup()) == Weights({"cpus": {}, "memory_bytes": {}})


def test_a_bill_by_queue_with_idle_by_quota(sqlite_url: str) -> None:
    async def story() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        clock = Clock()
        async with ledgers(sqlite_url, clock) as store:
            capacity.attach(store)
            await store.write(lambda tx: live.replace(tx, QUEUES, actor="root"))
            for n in range(8):
                await store.write(partial(joined, name=f"n{n}"))
            await store.write(lambda tx: started(tx, "a", groups=groups("n0", gpus=1), queue="prod"))
            await store.write(lambda tx: started(tx, "b", groups=groups("n1", gpus=1)))
            clock.now += 3600
            routes = BillRoutes(store, PRICES, Terms(idle="quota"))
            whole = await routes.bill(Call(ADMIN, {}, SumQuery()))
            return whole, await routes.bill(Call(ADMIN, {}, SumQuery(by="queue"))), await report(store, by="queue")

    whole, by, used = asyncio.run(story())
    idle = [row for row in whole["items"] if row["kind"] == "idle" and row["paid"][1] == H100]
    assert {row["key"]["queue"]: (row["nanos"], row["hours"]) for row in idle} == {
        "prod": (90 * 10**9, 4.5),  # 6 of 8 GPU-hours were idle, at 20
        "research": (30 * 10**9, 1.5),
    }
    assert sum(row["nanos"] for row in by["items"]) == whole["nanos"] == by["nanos"]
    assert {(row["kind"], row["name"]) for row in by["items"]} == {
        *(("used", "prod"), ("used", UNRECORDED), ("idle", "prod"), ("idle", "research")),
    }
    assert {item["key"]["queue"]: item["amount"] for item in used["items"]} == {"prod": 24.0, UNRECORDED: 24.0}


def test_usage_from_before_queues_says_so(tmp_path: Path) -> None:
    async def story() -> dict[str, Any]:
        clock = Clock()
        url = f"sqlite:///{tmp_path}/old.db"

        old = writing_engine(parse_url(url))
        with old.begin() as conn:
            upgrade(conn, "0003")
            row = {
                "job_id": "j",
                "attempt": 1,
                "node": "n0",
                "resource": "cpus",
                "project": "p",
                "user": "u",
                "job": "a",
            }
            columns = ", ".join(f'"{name}"' for name in (*row, "quantity", "started_at"))
            values = ", ".join(f":{name}" for name in row)
            conn.execute(text(f"INSERT INTO usage ({columns}) VALUES ({values}, 2.0, {clock.now})"), row)
        old.dispose()
        async with ledgers(url, clock) as store:
            await store.write(lambda tx: started(tx, "b", queue="prod"))
            clock.now += 3600
            return await report(store, by="queue")

    found = asyncio.run(story())
    assert {item["key"]["queue"]: item["amount"] for item in found["items"]} == {"prod": 4.0, UNRECORDED: 2.0}
