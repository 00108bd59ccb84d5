"""What this house has run: as a trace, one row a job, for the capacity simulator; and by attempt, for goodput."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Any

from sqlalchemy import case, func, select
from sqlalchemy.engine import Connection, Row

from penstock.base.quantities import format_time
from penstock.jobs import view
from penstock.jobs.state import ACTIVE
from penstock.jobs.tables import attempts, jobs
from penstock.scheduling import devices, live
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


def ran(conn: Connection, since: float, projects: Collection[str] | None, limit: int) -> list[Row[Any]]:
    """Attempts that held nodes after ``since``, the newest first, each with whose it is and whether it reported any steps."""
    whose = (jobs.c.project, jobs.c.name, jobs.c.user, jobs.c.progress.is_not(None).label("reports"))
    query = select(attempts, *whose).join(jobs, jobs.c.id == attempts.c.job_id)
    query = query.where(
        attempts.c.ended_at.is_(None) | (attempts.c.ended_at > since), attempts.c.started_at.is_not(None)
    )
    if projects is not None:
        query = query.where(jobs.c.project.in_(sorted(projects)))
    return list(conn.execute(query.order_by(attempts.c.admitted_at.desc()).limit(limit)))


def reported(conn: Connection, job_ids: Collection[str]) -> list[str]:
    """Those of the jobs that have ever reported a step."""
    query = select(jobs.c.id).where(jobs.c.id.in_(sorted(job_ids)), jobs.c.progress.is_not(None))
    return list(conn.execute(query).scalars())


def held(groups: str) -> tuple[float, float]:
    """GPUs (of shares and instances their part) and cores that an attempt's groups are, together."""
    found = json.loads(groups)
    gpus = [gpu for group in found for gpu in group["gpus"]]
    parts = sum(devices.part(gpu["model"], gpu.get("milli", 0), gpu.get("mig", "")) for gpu in gpus)
    return parts, sum(float(group["cpus"] or 0) for group in found)
