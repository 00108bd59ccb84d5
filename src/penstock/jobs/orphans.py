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


def orphans(conn: Connection, setup: Setup) -> tuple[list[str], list[str]]:
    """By queue, as it is now, a sentence about the jobs in it that could not be started under ``setup``; and, where nobody is
    left like that, about queues that go, and about whom goes on in another. Who could not be started now either is none of
    its doing.
    """
    old = live.current(conn)
    unfinished = jobs.c.phase.in_([Phase.PENDING.value, *(phase.value for phase in ACTIVE)])
    of = select(named_queue(conn).label("queue"), jobs.c.project, jobs.c.phase)
    kinds = of.where(unfinished, not_(_WHOLE_ARRAY)).subquery().c
    query = select(kinds.queue, kinds.project, kinds.phase, func.count()).group_by(*kinds)
    lost: dict[str, Counter[str]] = defaultdict(Counter)
    moved: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for name, project, phase, count in conn.execute(query):
        before, after = name or live.queue_of(old, project), name or live.queue_of(setup, project)
        how = "wait" if phase == Phase.PENDING else "run"
        if forbidden(setup, after, project) is None:
            moved[before, after][how] += count
        elif forbidden(old, before, project) is None:
            lost[before][how] += count
    gone = old.queues.keys() - setup.queues.keys() - lost.keys()
    told = [
        f"queue {before} {'goes' if before in gone else 'stays'}: of the jobs in it {counts['wait']} that wait and "
        f"{counts['run']} that run go on in {after}"
        for (before, after), counts in sorted(moved.items())
        if before != after
    ]
    empty = gone - {before for before, _ in moved}
    told += [f"queue {name} goes: no job is in it" for name in sorted(empty)]
    return [_sentence(setup, queue, counts) for queue, counts in sorted(lost.items())], told


def _sentence(setup: Setup, queue: str, counts: Counter[str]) -> str:
    what = "stays, but not for all who are in it" if queue in setup.queues else "goes"
    waiting, running = counts["wait"], counts["run"]
    told = [
        f"{waiting} job{'s wait' if waiting != 1 else ' waits'} in it and could not start any more" if waiting else "",
        f"{running} run{'s' if running == 1 else ''} in it and could not start again" if running else "",
    ]
    return f"queue {queue} {what}: {'; '.join(filter(None, told))}"
