"""Which attempts there are: asked by whoever meets one of their names elsewhere."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import select
from sqlalchemy.engine import Connection

from penstock.jobs.tables import attempts


def engine_jobs(conn: Connection, engine: str, keys: Collection[tuple[str, int]]) -> dict[tuple[str, int], str | None]:
    """Of (job id, number) those that are attempts of the engine, with its own name for each, where that is known."""
    mine = (attempts.c.engine == engine) & attempts.c.job_id.in_(sorted({job_id for job_id, _ in keys}))
    query = select(attempts.c.job_id, attempts.c.number, attempts.c.engine_job).where(mine)
    return {(row.job_id, row.number): row.engine_job for row in conn.execute(query) if (row.job_id, row.number) in keys}


def of_engine(conn: Connection, engine: str, names: Collection[str]) -> set[str]:
    """Of an engine's own names for jobs, those that are attempts'."""
    mine = (attempts.c.engine == engine) & attempts.c.engine_job.in_(sorted(names))
    return set(conn.execute(select(attempts.c.engine_job).where(mine)).scalars())
