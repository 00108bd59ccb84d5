"""The house's own jobs as a trace: what the capacity simulator replays."""

from __future__ import annotations

import asyncio
import csv
import io
from pathlib import Path

from sqlalchemy import insert, update
from sqlalchemy.engine import Connection

from penstock.capacity import traces
from penstock.capacity.replay import TraceJob
from penstock.capacity.traces import Findings, Selection
from penstock.jobs import history, submit
from penstock.jobs.spec import JobSpec
from penstock.jobs.tables import attempts, jobs
from penstock.scheduling import live
from penstock.store.store import Tx
from tests.stores import NOON, Clock, opened

QUEUES = "queues: [{name: default}, {name: vision, projects: [eyes]}]"


def _ran(tx: Tx, job_id: str, number: int, start: float, end: float | None) -> None:
    tx.conn.execute(
        insert(attempts).values(
            job_id=job_id, number=number, generation=1, phase="Running" if end is None else "Failed", reason="", message="",
            engine="local", epoch=1, groups="[]", run_dir="", admitted_at=start, started_at=start, ended_at=end, restarts=0,
            ranks="[]",
        )
    )  # fmt: skip
    tx.conn.execute(update(jobs).where(jobs.c.id == job_id).values(started_at=start))


def _some(tx: Tx) -> None:
    live.replace(tx, QUEUES, actor="ann")
    spec = {"command": ["train"], "nodes": 2, "time_limit": "2h", "priority": 3, "resources": {"gpus": 4, "cpus": 8}}
    twice = submit.create(tx, submit.NewJob("eyes", "twice", "ann", JobSpec.model_validate(spec), None, {}))
    _ran(tx, twice.id, 1, NOON + 60, NOON + 160)
    _ran(tx, twice.id, 2, NOON + 500, NOON + 1000)
    still = submit.create(
        tx,
        submit.NewJob(
            "default", "still", "bob", JobSpec.model_validate({"command": ["x"], "resources": {"gpus": 1}}), None, {}
        ),
    )
    _ran(tx, still.id, 1, NOON + 10, None)
    submit.create(tx, submit.NewJob("default", "never", "bob", JobSpec.model_validate({"command": ["x"]}), None, {}))


def _read(conn: Connection, path: Path) -> list[TraceJob]:
    rows = list(history.trace(conn, NOON + 2000))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue())
    findings = Findings()
    found = list(traces.read(str(path), "csv", Selection(), findings))
    assert findings.left_out == 0
    return found


async def _check(url: str, path: Path) -> None:
    async with opened(url, Clock(NOON)) as store:
        await store.write(_some)
        found = {job.user: job for job in await store.read(lambda conn: _read(conn, path))}
        assert sorted(found) == ["ann", "bob"]
        twice, still = found["ann"], found["bob"]
        assert (twice.submit, twice.started, twice.duration) == (NOON, NOON + 60, 600)
        assert (twice.gpus, twice.nodes, twice.cpus, twice.queue) == (8, 2, 16, "vision")
        assert (twice.limit, twice.priority) == (7200, 3)
        assert (still.duration, still.gpus, still.queue, still.limit) == (1990, 1, "default", None)
        extent = await store.read(history.extent)
        assert extent["jobs"] == 2
        assert await store.read(lambda conn: list(history.trace(conn, NOON + 2000, NOON + 1))) == []


def test_jobs_that_ran_become_a_trace(tmp_path: Path) -> None:
    asyncio.run(_check(f"sqlite:///{tmp_path}/penstock.db", tmp_path / "history.csv"))
