"""The projection: intervals follow attempts, whatever the clock does; reports add up and show only what may be seen."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, select

from penstock.base.errors import InvalidInput, NotFound
from penstock.base.reasons import Reason
from penstock.base.resource import Actor, Ref
from penstock.base.routes import Call
from penstock.cost import ledger
from penstock.cost.routes import CostRoutes, ReportQuery, endpoints
from penstock.cost.spec import Prices
from penstock.cost.tables import usage
from penstock.store.store import Store, Tx
from tests.postgres import Cluster
from tests.stores import NOON, Clock, opened

GIB = 1024**3
PRICES = Prices("EUR", Decimal(1), Decimal("0.5"), Decimal(10), {"H100": Decimal(20)})
ADMIN = Actor("root", "admin")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    try:
        made.start()
        yield made
    finally:
        made.remove()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=[pytest.mark.real, pytest.mark.needs("postgresql")])])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/p.db"
    made: Cluster = request.getfixturevalue("cluster")
    return made.create_database()


@asynccontextmanager
async def ledgers(url: str, clock: Clock) -> AsyncIterator[Store]:
    async with opened(url, clock) as store:
        ledger.attach(store)
        yield store


def groups(*nodes: str, gpus: int = 0) -> list[dict[str, Any]]:
    held = [{"id": str(n), "model": "NVIDIA H100 80GB HBM3"} for n in range(gpus)]
    return [{"node": node, "cpus": 2.0, "memory": 4 * GIB, "gpus": held} for node in nodes]


def started(tx: Tx, job: str, attempt: int = 1, *, project: str = "default", user: str = "ann", **more: Any) -> None:
    data = {
        "job_id": f"id-{job}",
        "attempt": attempt,
        "user": user,
        "started_at": tx.now,
        "groups": groups("n0"),
        **more,
    }
    tx.emit(Ref("Job", job, project, f"id-{job}"), Reason.AttemptStarted, actor="system", data=data)


def ended(tx: Tx, job: str, attempt: int = 1, *, at: float | None = None, job_id: str | None = None) -> None:
    end = tx.now if at is None else at
    job_id = job_id or f"id-{job}"
    data = {"job_id": job_id, "attempt": attempt, "user": "ann", "ended_at": end, "groups": []}
    tx.emit(Ref("Job", job, "default", job_id), Reason.AttemptEnded, actor="engine", data=data)


def intervals(conn: Connection) -> list[tuple[Any, ...]]:
    columns = (
        usage.c.job,
        usage.c.attempt,
        usage.c.node,
        usage.c.resource,
        usage.c.quantity,
        usage.c.started_at,
        usage.c.ended_at,
    )
    return [tuple(row) for row in conn.execute(select(*columns).order_by(*usage.primary_key.columns))]


async def report(store: Store, actor: Actor = ADMIN, **query: Any) -> dict[str, Any]:
    return await CostRoutes(store, PRICES).report(Call(actor, {}, ReportQuery(**query)))


def test_an_attempt_opens_and_closes_its_intervals(url: str) -> None:
    async def main() -> None:
        clock = Clock()
        async with ledgers(url, clock) as store:
            await store.write(lambda tx: started(tx, "a", groups=groups("n0", "n1", gpus=2)))
            clock.now += 3600
            await store.write(
                lambda tx: started(tx, "a", groups=groups("n0", "n1", gpus=2))
            )  # told twice, counted once
            assert await store.write(ledger.open_intervals) == 6
            await store.write(lambda tx: ended(tx, "a"))
            clock.now += 3600
            await store.write(lambda tx: ended(tx, "a"))  # told twice: the first end stays
            rows = await store.read(intervals)
            gpu = "gpus:NVIDIA H100 80GB HBM3"
            held = [("cpus", 2.0), (gpu, 2.0), ("memory_bytes", 4.0 * GIB)]
            assert rows == [("a", 1, n, r, q, NOON, NOON + 3600) for n in ("n0", "n1") for r, q in held]
            assert await store.write(ledger.open_intervals) == 0
            found = await report(store, by="node")
            assert [item["amount"] for item in found["items"]] == [44.0, 44.0]
            assert found["items"][0]["quantities"] == {"cpu_hours": 2.0, "memory_gib_hours": 4.0, "gpu_hours": 2.0}
            assert (found["currency"], found["by"], found["total"]) == ("EUR", "node", 88.0)

    asyncio.run(main())


def test_an_attempt_undone_leaves_no_usage(url: str) -> None:
    def undone(tx: Tx) -> None:
        started(tx, "a")
        raise ZeroDivisionError

    async def main() -> None:
        async with ledgers(url, Clock()) as store:
            with pytest.raises(ZeroDivisionError):
                await store.write(undone)
            await store.write(lambda tx: ended(tx, "never-started"))
            assert await store.read(intervals) == []

    asyncio.run(main())


def test_a_clock_set_back_never_makes_usage_negative(url: str) -> None:
    async def main() -> None:
        clock = Clock()
        async with ledgers(url, clock) as store:
            await store.write(lambda tx: started(tx, "a"))
            clock.now -= 3600
            assert (await report(store))["total"] == 0.0
            await store.write(lambda tx: ended(tx, "a"))
            assert {row[-1] - row[-2] for row in await store.read(intervals)} == {0.0}
            await store.write(lambda tx: started(tx, "a", 2))
            clock.now += 3600
            await store.write(lambda tx: ended(tx, "a", 2))
            assert (await report(store, by="job"))["total"] == 4.0

    asyncio.run(main())


def test_usage_is_charged_while_it_runs_and_periods_meet(url: str) -> None:
    async def main() -> None:
        clock = Clock()
        async with ledgers(url, clock) as store:
            await store.write(lambda tx: started(tx, "a"))
            clock.now += 1800
            await store.write(lambda tx: started(tx, "b", user="bob", project="other"))
            clock.now += 1800
            assert (await report(store))["total"] == 6.0
            assert [item["key"] for item in (await report(store, by="user"))["items"]] == [
                {"user": "ann"},
                {"user": "bob"},
            ]
            early = await report(store, until="30m")
            late = await report(store, since="30m")
            assert (early["total"], late["total"]) == (2.0, 4.0)
            assert (await report(store, since="2026-01-01T00:00:00Z", until="2026-01-02T00:00:00Z"))["total"] == 0.0
            short = await report(store, by="job", limit=1)
            assert (short["total"], short["items"][0]["key"]["job"]) == (6.0, "(2 others)")

    asyncio.run(main())


def test_a_report_shows_only_what_its_reader_may_see(url: str) -> None:
    async def main() -> None:
        clock = Clock()
        async with ledgers(url, clock) as store:
            await store.write(lambda tx: started(tx, "one", project="mine"))
            await store.write(lambda tx: started(tx, "two", project="theirs"))
            clock.now += 3600
            ann = Actor("ann", "", {"mine": "viewer"})
            for by in ("project", "user", "queue", "job", "node"):
                assert (await report(store, ann, by=by))["total"] == 4.0
            assert (await report(store, by="project"))["total"] == 8.0
            assert (await report(store, ann, by="project", project="mine"))["total"] == 4.0
            with pytest.raises(NotFound):
                await report(store, ann, project="theirs")
            assert (await report(store, Actor("eve")))["items"] == []

    asyncio.run(main())


@pytest.mark.parametrize(
    "query",
    [{"since": "yesterday"}, {"since": "1h", "until": "2h"}, {"since": "2999-01-01T00:00:00Z"}, {"until": "9" * 39}],
)
def test_a_period_that_is_none_is_refused(url: str, query: dict[str, Any]) -> None:
    async def main() -> None:
        async with ledgers(url, Clock()) as store:
            with pytest.raises(InvalidInput) as caught:
                await report(store, **query)
            assert caught.value.details

    asyncio.run(main())


def test_every_route_names_a_verb_that_projects_decide(url: str) -> None:
    async def main() -> None:
        async with ledgers(url, Clock()) as store:
            assert {(e.method, e.verb) for e in endpoints(store, PRICES)} == {("GET", "cost.read")}

    asyncio.run(main())


steps = st.lists(
    st.tuples(st.sampled_from(["start", "end", "wait"]), st.integers(0, 3), st.floats(-4000, 8000)), max_size=30
)


@settings(max_examples=25)
@given(steps)
def test_any_course_of_attempts_is_billed_alike_by_every_key(course: list[tuple[str, int, float]]) -> None:
    async def main(folder: str) -> None:
        clock = Clock()
        async with ledgers(f"sqlite:///{folder}/p.db", clock) as store:

            def play(tx: Tx) -> None:
                for what, job, step in course:
                    if what == "start":
                        started(tx, f"j{job}", groups=groups("n0", f"n{job}"), started_at=clock.now)
                    elif what == "end":
                        ended(tx, f"j{job}", at=clock.now)
                    else:
                        clock.now += step

            await store.write(play)
            for *_, start, end in await store.read(intervals):
                assert end is None or end >= start
            totals = [(await report(store, by=by))["total"] for by in ("project", "user", "queue", "job", "node")]
            assert max(totals) - min(totals) < 0.01
            assert min(totals) >= 0

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(folder))
