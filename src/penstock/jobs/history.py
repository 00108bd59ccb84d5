"""What this house has run, as a trace: one row a job, for the capacity simulator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import case, func, select
from sqlalchemy.engine import Connection

from penstock.base.quantities import format_time
from penstock.jobs import view
from penstock.jobs.state import ACTIVE
from penstock.jobs.tables import attempts, jobs
from penstock.scheduling import live
from penstock.scheduling.quota import totals


def trace(conn: Connection, now: float, since: float = 0.0) -> Iterator[dict[str, Any]]:
    """Jobs that were submitted after ``since`` and have run, by submission. The run times of all attempts are added up;
    what still runs counts as long as it has run by now. An array's tasks are jobs, the array itself is none.
    """
    setup, memory = live.current(conn), view.Memory()
    ended = case((attempts.c.phase.in_([p.value for p in ACTIVE]), now), else_=attempts.c.ended_at)
    ran = (
        select(
            attempts.c.job_id,
            func.min(attempts.c.started_at).label("start"),
            func.sum(ended - attempts.c.started_at).label("seconds"),
        )
        .where(attempts.c.started_at.is_not(None))
        .group_by(attempts.c.job_id)
        .subquery()
    )
    rows = select(jobs, ran.c.start, ran.c.seconds).join(ran, ran.c.job_id == jobs.c.id)
    for row in conn.execute(rows.where(jobs.c.created_at >= since).order_by(jobs.c.seq)):
        work = view.to_workload(setup, memory.spec(row), row.project, row.user)
        asked = totals(work.parts)
        yield {
            "id": row.id,
            "submit": row.created_at,
            "start": row.start,
            "duration_s": max(row.seconds or 0.0, 0.0),
            "gpus": asked.get("gpus", 0.0),
            "nodes": sum(part.count for part in work.parts),
            "cpus": asked.get("cpus", 0.0),
            "memory": int(asked.get("memory", 0.0)),
            "queue": work.queue,
            "user": row.user,
            "limit_s": "" if work.limit_s is None else work.limit_s,
            "priority": row.priority,
        }


def extent(conn: Connection) -> dict[str, Any]:
    """How much of it there is: jobs that have run, and when the first and the last of them was submitted."""
    query = select(func.count(), func.min(jobs.c.created_at), func.max(jobs.c.created_at))
    count, first, last = conn.execute(
        query.where(jobs.c.started_at.is_not(None), jobs.c.held.is_distinct_from("array"))
    ).one()
    return {"jobs": int(count), "first": format_time(first), "last": format_time(last)}
