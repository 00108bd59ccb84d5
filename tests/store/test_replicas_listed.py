"""A service's replicas among the jobs, in both databases."""

from __future__ import annotations

import asyncio
from typing import Any

from sqlalchemy import update
from sqlalchemy.engine import Connection

from penstock.jobs import queries, submit
from penstock.jobs.spec import JobSpec
from penstock.jobs.state import Phase
from penstock.jobs.tables import jobs
from penstock.serving.jobs import labels
from penstock.store.store import Tx
from tests.stores import opened

SPEC = JobSpec(command=("true",))
JOBS: dict[str, dict[str, str]] = {
    "by-hand": {},
    "labelled": {"note": '"penstock.serving/service"'},
    "over": labels("digits", 1),
    "runs": labels("digits", 1),
}


def test_replicas_that_have_ended_are_left_out_and_nothing_else(url: str) -> None:
    def fill(tx: Tx) -> None:
        for name, named in JOBS.items():
            submit.create(tx, submit.NewJob("default", name, "ann", SPEC, labels=named))
        tx.conn.execute(update(jobs).where(jobs.c.name != "runs").values(phase=Phase.SUCCEEDED))

    def names(conn: Connection, **only: Any) -> set[str]:
        return {row.name for row in queries.listing(conn, projects=None, **only)}

    async def main() -> None:
        async with opened(url) as store:
            await store.write(fill)
            assert await store.read(names) == set(JOBS)
            without = queries.Place(replicas=False)
            assert await store.read(lambda conn: names(conn, place=without)) == set(JOBS) - {"over"}

    asyncio.run(main())
