"""People who submit by hand to a real Slurm are in the ledger: once, in time, also when slurmdbd was down meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, select

from penstock.cost import bill
from penstock.cost.outside import Source, look
from penstock.cost.spec import CPUS, GPUS
from penstock.cost.tables import usage
from penstock.cost.terms import Terms
from penstock.engines.slurm.accounting import Accounts
from penstock.engines.slurm.errors import Unreachable
from penstock.engines.slurm.transport import LocalTransport
from penstock.store.store import Store
from tests.cost.test_outside import PRICES, rows
from tests.slurm_cluster import Cluster, cluster

pytestmark = [pytest.mark.real, pytest.mark.needs("slurmdbd", "root")]


@pytest.fixture
def slurm() -> Iterator[Cluster]:
    with cluster() as started:  # slurmdbd is stopped here, for longer than others would bear
        yield started


def submit(slurm: Cluster, *words: str, user: str, account: str, seconds: int = 2) -> str:
    plain = ("--parsable", "--output=/dev/null", "-D", "/tmp", f"--uid={user}", "-A", account)
    return slurm.run("sbatch", *plain, *words, "--wrap", f"sleep {seconds}").strip()


Spans = dict[str, list[tuple[float, float | None, float]]]


def spans(conn: Connection) -> Spans:
    """By job: start, end and GPUs of each run."""
    query = select(usage).where(usage.c.resource.startswith(GPUS)).order_by(usage.c.job_id, usage.c.started_at)
    found: dict[str, dict[int, tuple[float, float | None, float]]] = {}
    for row in conn.execute(query):
        runs = found.setdefault(row.job, {})
        before = runs.get(row.attempt, (row.started_at, row.ended_at, 0.0))
        runs[row.attempt] = (row.started_at, row.ended_at, before[2] + row.quantity)
    return {name: list(runs.values()) for name, runs in found.items()}


async def until(store: Store, source: Source, jobs: int, runs: int) -> None:
    """Looks, and looks again, until so many jobs with so many runs have ended."""
    deadline = time.monotonic() + 60
    while True:
        await look(store, source)
        found = await store.read(spans)
        ended = [run for those in found.values() for run in those if run[1] is not None]
        if len(found) == jobs and len(ended) == runs:
            return
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.5)


async def at_once(slurm: Cluster, job: str) -> None:
    """A requeued job, which Slurm holds back for two minutes from when its first run is cleaned up: a wish before that is lost."""
    deadline = time.monotonic() + 60
    while slurm.state(job) in ("PENDING", "COMPLETING", "REQUEUED"):
        assert time.monotonic() < deadline, slurm.run("scontrol", "show", "job", job)
        slurm.tried("scontrol", "update", f"JobId={job}", "StartTime=now")  # refused once it runs
        await asyncio.sleep(0.5)


def as_sacct_tells(slurm: Cluster, found: Spans) -> None:
    for job, runs in found.items():
        which = ("-j", job.removeprefix("c1/"), "-o", "Start,End")
        shown = slurm.run("env", "SLURM_TIME_FORMAT=%s", "sacct", "-XDnP", *which)
        assert sorted(f"{start:.0f}|{end:.0f}" for start, end, _ in runs if end) == sorted(shown.split())


async def adds_up(store: Store) -> None:
    """The rows of the bill are the bill, and no run is there twice."""
    now = time.time()
    statement = await store.read(lambda conn: bill.statement(conn, bill.Period(now - 3600, now), PRICES, Terms()))
    assert sum(row.nanos for row in statement.rows) == statement.nanos > 0
    assert {row.kind for row in statement.rows if row.nanos} == {"used"}
    cores = [row for row in await store.read(rows) if row["resource"] == CPUS]
    assert len({(row["job_id"], row["attempt"], row["node"]) for row in cores}) == len(cores)


def test_jobs_by_hand_are_in_the_ledger_once(slurm: Cluster, sqlite_url: str) -> None:
    async def main() -> None:
        source = Source("c1", Accounts(LocalTransport({"SLURM_CONF": slurm.environment["SLURM_CONF"]})), "c1-")
        store = Store.open(sqlite_url, clock=time.time)

        await look(store, source)
        await asyncio.sleep(1.1)  # what started in the second of the first look began before it
        pair = submit(slurm, "-N2", "--gres=gpu:3", "-J", "by|hand", user="nobody", account="research")
        array = submit(slurm, "--array=0-2", "--gres=gpu:1", user="bin", account="production")
        await until(store, source, 4, 4)
        assert await look(store, source) == 0

        again = submit(slurm, "--gres=gpu:1", user="mail", account="interns", seconds=4)
        while slurm.state(again) != "RUNNING":
            await asyncio.sleep(0.1)
        await asyncio.sleep(1.1)  # Slurm tells whole seconds: a run within one is none
        slurm.run("scontrol", "requeue", again)
        await until(store, source, 5, 5)  # slurmdbd has heard of its first run's end before it goes
        await asyncio.to_thread(slurm.stop_dbd)
        unseen = submit(slurm, "--gres=gpu:2", user="news", account="interns", seconds=1)
        with pytest.raises(Unreachable):
            await look(store, source)
        deadline = time.monotonic() + 30
        while slurm.state(unseen) not in ("COMPLETED", ""):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.2)
        await asyncio.to_thread(slurm.start_dbd)
        await at_once(slurm, again)
        await until(store, source, 6, 7)

        found = await store.read(spans)
        assert found[f"c1/{pair}"][0][2] == 6.0
        assert {name for name in found if name.startswith(f"c1/{array}_")} == {f"c1/{array}_{n}" for n in range(3)}
        assert len(found[f"c1/{again}"]) == 2
        assert found[f"c1/{unseen}"][0][2] == 2.0
        told = await store.read(rows)
        assert {row["project"] for row in told} == {"outside"}
        assert {(row["user"], row["queue"]) for row in told} == {
            ("nobody", "research"), ("bin", "production"), ("mail", "interns"), ("news", "interns"),
        }  # fmt: skip
        assert {row["node"] for row in told if row["job"] == f"c1/{pair}"} == {"c1-node-0", "c1-node-1"}
        as_sacct_tells(slurm, found)
        await adds_up(store)
        assert await look(store, source) == 0
        await store.close()

    asyncio.run(main())
