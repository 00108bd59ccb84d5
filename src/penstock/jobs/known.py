"""Which attempts there are: asked by whoever meets one of their names elsewhere."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import select
from sqlalchemy.engine import Connection

from penstock.jobs.tables import attempts


def engine_jobs(conn: Connection, keys: Collection[tuple[str, int]]) -> dict[tuple[str, int], str | None]:
    """Of (job id, number) those that there are, with the engine's own name for each, where that is known."""
    ids = sorted({job_id for job_id, _ in keys})
    query = select(attempts.c.job_id, attempts.c.number, attempts.c.engine_job).where(attempts.c.job_id.in_(ids))
    return {(row.job_id, row.number): row.engine_job for row in conn.execute(query) if (row.job_id, row.number) in keys}
