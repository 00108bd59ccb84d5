"""Jobs from outside are in the ledger once each, whatever order accounting tells them in, and the bill stays exact."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, insert, select

from penstock.base.errors import EngineFailure
from penstock.base.resource import Actor
from penstock.base.routes import Call
from penstock.cost import bill, outside
from penstock.cost.outside import OUTSIDE, Source, look
from penstock.cost.routes import CostRoutes, ReportQuery
from penstock.cost.spec import CPUS, GPUS, MEMORY, Prices
from penstock.cost.tables import capacity, usage
from penstock.cost.terms import Terms
from penstock.engines.slurm.errors import Unreachable
from penstock.engines.slurm.history import Run, Told
from penstock.scheduling import live
from penstock.store.store import Store, Tx
from penstock.tenancy import accounts
from penstock.tenancy.state import User
from tests.stores import NOON, Clock, opened

PRICES = Prices("EUR", Decimal(1), Decimal(1), Decimal(10), {"H100": Decimal(20)})
MODEL = "NVIDIA H100 80GB HBM3"
ULID = "01JDGSZ0000000000000000000"


@dataclass
class Cluster:
    """slurmctld knows at once, slurmdbd when it is told."""

    clock: Clock
    happened: dict[int, Run] = field(default_factory=dict)
    written: dict[int, Run] = field(default_factory=dict)
    down: bool = False
    asked: list[float] = field(default_factory=list)

    def starts(self, record: int, **more: Any) -> None:
        told = {"shown": str(record), "name": "train", "user": "ann", "account": "physics", "partition": "gpu"} | more
        run = Run(
            record, told["shown"], record, told["name"], told["user"], told["account"], told["partition"], "RUNNING",
            self.clock.now, None, more.get("nodes", ("n1", "n2")), 4.0, 0.0, {"h100": 4.0},
        )  # fmt: skip
        self.happened[record] = run

    def ends(self, record: int) -> None:
        self.happened[record] = replace(self.happened[record], ended_at=self.clock.now, state="COMPLETED")

    def tell(self) -> None:
        if not self.down:
            self.written = dict(self.happened)

    async def told(self) -> Told:
        return Told(self.clock.now, self.written == self.happened)

    async def runs(self, since: float) -> list[Run]:
        if self.down:
            raise Unreachable("slurmdbd is down")
        self.asked.append(since)
        return [run for run in self.written.values() if run.ended_at is None or run.ended_at >= since]


def by_project(**more: Any) -> ReportQuery:
    return ReportQuery(by="project", **more)


def rows(conn: Connection) -> list[dict[str, Any]]:
    return [dict(row) for row in conn.execute(select(usage).order_by(usage.c.job_id, usage.c.node)).mappings()]


def nodes(tx: Tx, *names: str) -> None:
    values = [(CPUS, 8.0), (MEMORY, 0.0), (GPUS + MODEL, 4.0)]
    tx.conn.execute(
        insert(capacity),
        [
            {"node": name, "resource": what, "started_at": NOON, "quantity": much, "ended_at": None}
            for name in names
            for what, much in values
        ],
    )


def test_each_job_is_taken_over_once_and_closed_when_it_ends(sqlite_url: str) -> None:
    async def main() -> None:
        clock = Clock()
        cluster = Cluster(clock)
        source = Source("c1", cluster, "c1-")
        async with opened(sqlite_url, clock) as store:
            await store.write(lambda tx: nodes(tx, "c1-n1", "c1-n2"))
            assert await look(store, source) == 0
            clock.now += 10
            cluster.starts(7, shown="7_1")
            cluster.tell()
            assert await look(store, source) == 1
            assert await look(store, source) == 0
            clock.now += 3600
            cluster.ends(7)
            cluster.tell()
            assert await look(store, source) == 1
            assert await look(store, source) == 0
            found = await store.read(rows)
            assert {(r["node"], r["resource"], r["quantity"]) for r in found} == {
                (name, resource, 2.0) for name in ("c1-n1", "c1-n2") for resource in (CPUS, GPUS + MODEL)
            }
            assert {(r["job_id"], r["job"], r["project"], r["user"], r["queue"]) for r in found} == {
                ("c1/7", "c1/7_1", OUTSIDE, "ann", "physics")
            }
            assert {(r["started_at"], r["ended_at"]) for r in found} == {(NOON + 10, NOON + 3610)}
            answer = await CostRoutes(store, PRICES).report(Call(Actor("root", "admin"), {}, by_project()))
            assert [item["key"] for item in answer["items"]] == [{"project": OUTSIDE}]
            assert answer["total"] == 4 * 1 + 4 * 20
            member = Actor("ann", "", {"vision": "member"})
            hidden = await CostRoutes(store, PRICES).report(Call(member, {}, by_project()))
            assert hidden["items"] == []

    asyncio.run(main())


def test_what_ran_while_accounting_was_down_is_found_later(sqlite_url: str) -> None:
    async def main() -> None:
        clock = Clock()
        cluster = Cluster(clock)
        source = Source("c1", cluster)
        async with opened(sqlite_url, clock) as store:
            await look(store, source)
            cluster.down = True
            clock.now += 60
            cluster.starts(1)
            clock.now += 60
            cluster.ends(1)
            try:
                await look(store, source)
                raise AssertionError("slurmdbd did not answer")
            except EngineFailure:
                pass
            clock.now += 7200
            cluster.down = False
            await look(store, source)  # it answers again, and has not been told yet
            clock.now += 7200
            await look(store, source)
            assert await store.read(rows) == []
            cluster.tell()
            assert await look(store, source) == 1
            assert {(r["started_at"], r["ended_at"]) for r in await store.read(rows)} == {(NOON + 60, NOON + 120)}
            clock.now += 60
            await look(store, source)
            await look(store, source)
            assert cluster.asked[-1] > NOON + 3600  # from then on little is asked for again

    asyncio.run(main())


def test_what_ran_before_the_engine_was_added_is_not_charged(sqlite_url: str) -> None:
    async def main() -> None:
        clock = Clock()
        cluster = Cluster(clock)
        cluster.starts(1)
        cluster.starts(2)
        clock.now += 1000
        cluster.ends(1)
        cluster.tell()
        async with opened(sqlite_url, clock) as store:
            await look(store, Source("c1", cluster))
            found = await store.read(rows)
            assert {r["job_id"] for r in found} == {"c1/2"}
            assert {r["started_at"] for r in found} == {NOON + 1000}

    asyncio.run(main())


def test_accounts_and_unix_users_are_ours_where_they_can_be_told(sqlite_url: str) -> None:
    async def main() -> None:
        clock = Clock()
        cluster = Cluster(clock)
        async with opened(sqlite_url, clock) as store:

            def people(tx: Tx) -> None:
                for project in ("vision", "nlp"):
                    accounts.add_project(tx, "root", project)
                accounts.add_user(tx, "root", User("ann@example.org", "", tx.now, "ann"))
                accounts.add_user(tx, "root", User("one", "", tx.now, "shared"))
                accounts.add_user(tx, "root", User("two", "", tx.now, "shared"))
                live.replace(
                    tx, "queues: [{name: team-v, projects: [vision]}, {name: both, projects: [a, b]}]", actor="root"
                )

            await store.write(people)
            await look(store, Source("c1", cluster))
            clock.now += 1
            cluster.starts(1, account="team-v")
            cluster.starts(2, account="nlp", user="shared")
            cluster.starts(3, account="both", user="zoe")
            cluster.starts(4, account="")
            cluster.tell()
            await look(store, Source("c1", cluster))
            found = {(r["job"], r["project"], r["user"], r["queue"]) for r in await store.read(rows)}
            assert found == {
                ("c1/1", "vision", "ann@example.org", "team-v"),
                ("c1/2", "nlp", "shared", "nlp"),
                ("c1/3", OUTSIDE, "zoe", "both"),
                ("c1/4", OUTSIDE, "ann@example.org", "gpu"),
            }

    asyncio.run(main())


def test_our_own_jobs_are_not_counted_again_and_a_name_alone_is_no_proof(sqlite_url: str) -> None:
    async def main() -> None:
        clock = Clock()
        cluster = Cluster(clock)
        async with opened(sqlite_url, clock) as store:
            await look(store, Source("c1", cluster))
            clock.now += 100
            held = {
                "job_id": ULID, "attempt": 1, "node": "n1", "resource": CPUS, "project": "vision", "user": "ann",
                "job": "train", "quantity": 1.0, "started_at": clock.now, "ended_at": clock.now + 10, "queue": "vision",
            }  # fmt: skip
            await store.write(lambda tx: tx.conn.execute(insert(usage).values(held)))
            cluster.starts(1, name=f"train.{ULID}.1")  # of an attempt whose job was deleted since
            cluster.starts(2, name=f"train.{ULID}.2")  # there is no such attempt
            cluster.starts(3, name=f"{ULID}.1 and more")
            clock.now += 8
            for record in (1, 2, 3):
                cluster.ends(record)
            clock.now += 1000
            cluster.starts(4, name=f"train.{ULID}.1")  # long after it ended
            cluster.tell()
            await look(store, Source("c1", cluster))
            found = {r["job_id"] for r in await store.read(rows)}
            assert found == {ULID, "c1/2", "c1/3", "c1/4"}

    asyncio.run(main())


def test_a_record_that_is_not_whole_yet_is_waited_for(sqlite_url: str) -> None:
    async def main() -> None:
        clock = Clock()
        cluster = Cluster(clock)
        source = Source("c1", cluster)
        async with opened(sqlite_url, clock) as store:
            await look(store, source)
            clock.now += 600
            cluster.starts(1, partition="", name="allocation")
            cluster.ends(1)
            cluster.tell()
            assert await look(store, source) == 0
            clock.now += 600
            cluster.happened[1] = replace(cluster.happened[1], partition="gpu", name="train")
            cluster.tell()
            assert await look(store, source) == 1

    asyncio.run(main())


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["start", "end", "tell", "down", "up", "look", "restart"]),
        st.integers(1, 6),
        st.integers(0, 500),
    ),
    max_size=40,
)


@settings(max_examples=60)
@given(_STEPS)
def test_whatever_happens_the_ledger_is_what_ran_and_the_bill_is_its_rows(steps: list[tuple[str, int, int]]) -> None:
    async def main(url: str) -> None:
        clock = Clock()
        cluster = Cluster(clock)
        source = Source("c1", cluster)
        store = Store.open(url, clock=clock)
        await store.write(lambda tx: nodes(tx, "n1", "n2"))
        await look(store, source)
        for what, record, later in steps:
            clock.now += later
            if what == "start" and record not in cluster.happened:
                cluster.starts(record, nodes=("n1",) if record % 2 else ("n1", "n2"))
            elif what == "end" and record in cluster.happened and cluster.happened[record].ended_at is None:
                cluster.ends(record)
            elif what == "tell":
                cluster.tell()
            elif what in ("down", "up"):
                cluster.down = what == "down"
            elif what == "restart":
                await store.close()
                store = Store.open(url, clock=clock)
            elif what == "look":
                await looked(store, source)
        clock.now += 1
        cluster.down = False
        cluster.tell()
        await looked(store, source)
        found = await store.read(rows)
        assert {(r["job_id"], r["started_at"], r["ended_at"]) for r in found} == {
            (f"c1/{run.job}", run.started_at, run.ended_at) for run in cluster.happened.values()
        }
        cores = [r for r in found if r["resource"] == CPUS]
        assert len(cores) == sum(len(run.nodes) for run in cluster.happened.values())
        clock.now += 3600
        period = bill.Period(NOON - 1, clock.now)
        statement = await store.read(lambda conn: bill.statement(conn, period, PRICES, Terms()))
        assert sum(row.nanos for row in statement.rows) == statement.nanos
        assert all(row.nanos >= 0 for row in statement.rows)
        await store.close()

    async def looked(store: Store, source: Source) -> None:
        try:
            await look(store, source)
        except Unreachable:
            assert isinstance(source.records, Cluster)
            assert source.records.down

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(f"sqlite:///{folder}/p.db"))


def test_a_look_overlaps_the_one_before(sqlite_url: str) -> None:
    async def main() -> None:
        clock = Clock()
        cluster = Cluster(clock)
        async with opened(sqlite_url, clock) as store:
            await look(store, Source("c1", cluster))
            clock.now += 60
            await look(store, Source("c1", cluster))
            await look(store, Source("c1", cluster))
            assert cluster.asked == [NOON - outside.OVERLAP_S, NOON - outside.OVERLAP_S, NOON + 60 - outside.OVERLAP_S]

    asyncio.run(main())
