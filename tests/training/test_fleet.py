"""A fleet of trainings that run: what one look has no time for is read afterwards, and then goes on by last reports alone."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, update

from penstock.base.quantities import format_time
from penstock.engines.local.folder import PROGRESS
from penstock.engines.local.logreader import LocalLogReader
from penstock.engines.several import Engines
from penstock.jobs import submit
from penstock.jobs.spec import JobSpec
from penstock.jobs.tables import attempts, jobs
from penstock.store.store import Store, Tx
from penstock.training import accounts
from penstock.training.accounts import Accounts
from tests.stores import NOON, Clock, opened

SPEC = JobSpec.model_validate({"command": ["x"], "resources": {"cpus": 2}})
DAY_S = 86_400.0


@dataclass
class Files:
    """Of an engine what is asked here: run folders that are read."""

    name: str = "local"
    looks: int = 0

    def logs(self, run_dir: str) -> LocalLogReader:
        self.looks += 1
        return LocalLogReader(run_dir)


def training(tx: Tx, name: str, folder: Path, steps: int, every_s: float) -> str:
    """A job that began at NOON and has made so many steps."""
    row = submit.create(tx, submit.NewJob("default", name, "ann", SPEC, None, {}))
    folder.mkdir(parents=True)
    lines = (
        json.dumps({"at": NOON + 10 + n * every_s, "rank": 0, "step": n, "metrics": {"loss": 1.0}})
        for n in range(steps)
    )
    (folder / PROGRESS).write_text("\n".join(lines) + "\n")
    groups = json.dumps([{"node": "n", "cpus": 2.0, "memory": None, "gpus": []}])
    tx.conn.execute(
        insert(attempts).values(
            job_id=row.id, number=1, generation=1, phase="Running", reason="", message="", engine="local", epoch=1,
            groups=groups, run_dir=str(folder), admitted_at=NOON, started_at=NOON, restarts=0, ranks="[]",
        )
    )  # fmt: skip
    tx.conn.execute(
        update(jobs)
        .where(jobs.c.id == row.id)
        .values(started_at=NOON, created_at=NOON, attempt=1, phase="Running", nodes='["n"]')
    )
    return str(row.id)


def last(step: int, at: float) -> dict[str, Any]:
    return {"at": format_time(at), "step": step}


async def fleet(store: Store, base: Path, count: int, steps: int = 200, every_s: float = 1.0) -> dict[str, Any]:
    """The last report by job id."""

    def write(tx: Tx) -> list[str]:
        return [training(tx, f"job-{n}", base / str(n), steps, every_s) for n in range(count)]

    ids = await store.write(write)
    return dict.fromkeys(ids, last(steps - 1, NOON + 10 + (steps - 1) * every_s))


def test_what_one_look_leaves_is_there_at_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        clock = Clock(NOON + 209.5)
        async with opened(f"sqlite:///{tmp_path}/db", clock) as store:
            reports, engine = await fleet(store, tmp_path / "jobs", 20), Files()
            known = Accounts(store, Engines(engine), reports)  # type: ignore[arg-type]
            monkeypatch.setattr(accounts, "FLEET_READ_S", -1.0)
            first = await known.fleet(NOON - 1, clock.now, None)
            assert (first["left_out"], first["measured_jobs"]) == (20, 0)
            async with asyncio.timeout(60):
                while known._unread:
                    await asyncio.sleep(0.01)
            found = await known.fleet(NOON - 1, clock.now, None)
            assert (found["left_out"], found["measured_jobs"], engine.looks) == (0, 20, 20)
            [total] = found["totals"]
            assert total["hours"] == pytest.approx(20 * 2 * 209.5 / 3600, rel=1e-6)
            assert total["parts"]["steps"] == pytest.approx(20 * 2 * 200.5 / 3600, rel=1e-4)
            for job_id in reports:  # all go on, at the pace that they had; nothing is read for that
                reports[job_id] = last(1199, NOON + 10 + 1199)
            clock.now = NOON + 1209.5
            later = await known.fleet(NOON - 1, clock.now, None)
            assert engine.looks == 20
            assert later["totals"][0]["parts"]["steps"] == pytest.approx(20 * 2 * 1200.5 / 3600, rel=1e-4)
            window = await known.fleet(NOON + 110, NOON + 160, None)
            assert window["totals"][0]["parts"] == {"steps": pytest.approx(20 * 2 * 50 / 3600, rel=1e-4)}
            one = next(iter(reports))
            reports[one] = last(3, clock.now)  # it went back: its reports tell more
            known._cache.clear()  # as after two seconds
            monkeypatch.setattr(accounts, "FLEET_READ_S", 2.0)
            await known.fleet(NOON - 1, clock.now, None)
            assert engine.looks == 21
            known.forget(one)
            await known.close()

    asyncio.run(body())


if __name__ == "__main__":  # how long looks take: COUNT jobs of STEPS reports
    import sys
    import tempfile
    import time

    async def measure(count: int, steps: int) -> None:
        with tempfile.TemporaryDirectory() as base:
            clock = Clock(NOON + 10 + steps * 1.5)
            async with opened(f"sqlite:///{base}/db", clock) as store:
                reports, engine = await fleet(store, Path(base, "jobs"), count, steps, 1.5), Files()
                known = Accounts(store, Engines(engine), reports)  # type: ignore[arg-type]
                began = time.monotonic()
                for n in range(200):
                    at = time.monotonic()
                    found = await known.fleet(NOON - DAY_S, clock.now, None)
                    took = time.monotonic() - at
                    words = f"look {n}, {at - began:.1f} s on: {took:.3f} s, left out {found['left_out']}"
                    sys.stdout.write(f"{words}, read {engine.looks}, {os.times().user:.1f} s of CPU\n")
                    if not found["left_out"]:
                        break
                    await asyncio.sleep(5)
                for since in (NOON - DAY_S, NOON + steps):
                    at = time.monotonic()
                    await known.fleet(since, clock.now, None)
                    sys.stdout.write(f"all known: {time.monotonic() - at:.3f} s\n")
                await known.close()

    asyncio.run(measure(int(sys.argv[1]), int(sys.argv[2])))
