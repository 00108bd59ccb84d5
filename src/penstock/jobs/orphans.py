"""Whose place in line another queue file would take away."""

from __future__ import annotations

from collections import Counter, defaultdict

from sqlalchemy import and_, func, not_, select
from sqlalchemy.engine import Connection

from penstock.jobs.queries import named_queue
from penstock.jobs.state import ACTIVE, Phase
from penstock.jobs.tables import jobs
from penstock.scheduling import live
from penstock.scheduling.rights import forbidden
from penstock.scheduling.spec import Setup

_WHOLE_ARRAY = and_(jobs.c.array_count.is_not(None), jobs.c.array_of.is_(None))  # its tasks are counted


def orphans(conn: Connection, setup: Setup) -> list[str]:
    """One sentence for each queue, as it is now, of which jobs that wait or run could not be started under ``setup``. Who could
    not be started now either is none of its doing.
    """
    old = live.current(conn)
    unfinished = jobs.c.phase.in_([Phase.PENDING.value, *(phase.value for phase in ACTIVE)])
    of = select(named_queue(conn).label("queue"), jobs.c.project, jobs.c.phase)
    kinds = of.where(unfinished, not_(_WHOLE_ARRAY)).subquery().c
    query = select(kinds.queue, kinds.project, kinds.phase, func.count()).group_by(*kinds)
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for name, project, phase, count in conn.execute(query):
        before = name or live.queue_of(old, project)
        if forbidden(old, before, project) is None and forbidden(setup, name or live.queue_of(setup, project), project):
            found[before]["wait" if phase == Phase.PENDING else "run"] += count
    return [_sentence(setup, queue, counts) for queue, counts in sorted(found.items())]


def _sentence(setup: Setup, queue: str, counts: Counter[str]) -> str:
    what = "stays, but not for all who are in it" if queue in setup.queues else "goes"
    waiting, running = counts["wait"], counts["run"]
    told = [
        f"{waiting} job{'s wait' if waiting != 1 else ' waits'} in it and could not start any more" if waiting else "",
        f"{running} run{'s' if running == 1 else ''} in it and could not start again" if running else "",
    ]
    return f"queue {queue} {what}: {'; '.join(filter(None, told))}"
