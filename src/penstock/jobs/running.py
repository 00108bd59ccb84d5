"""Attempts that run, for rooms above that watch them, and what such a room may do about one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.engine import Connection, Row

from penstock.base.reasons import Reason
from penstock.jobs import faults, progression, submit
from penstock.jobs.spec import JobSpec
from penstock.jobs.state import ACTIVE, Phase
from penstock.jobs.tables import attempts, jobs
from penstock.jobs.view import Memory
from penstock.store import events
from penstock.store.store import Tx

_COLUMNS: tuple[Any, ...] = (
    attempts.c.job_id, attempts.c.number, attempts.c.engine, attempts.c.run_dir, attempts.c.groups, attempts.c.started_at,
    attempts.c.restarts.label("in_place"), jobs.c.id, jobs.c.project, jobs.c.name, jobs.c.generation, jobs.c.spec,
    jobs.c.restarts,
)  # fmt: skip
_RUN = (
    select(*_COLUMNS)
    .join(jobs, jobs.c.id == attempts.c.job_id)
    .where(attempts.c.phase == Phase.RUNNING, attempts.c.stop_reason.is_(None), attempts.c.started_at.is_not(None))
)
Key = tuple[str, int, int]  # a job's id, its attempt's number, its generation
_LIVES = 200  # restarts in place that are read


@dataclass(frozen=True, slots=True)
class Running:
    """An attempt that runs, and that nobody has asked to end."""

    job_id: str
    project: str
    name: str
    number: int
    generation: int
    engine: str
    run_dir: str
    nodes: tuple[str, ...]
    started_at: float
    in_place: int  # restarts that this attempt has made
    spent: int  # restarts that earlier attempts have cost
    spec: JobSpec

    @property
    def key(self) -> Key:
        return (self.job_id, self.number, self.generation)

    @property
    def attempt_id(self) -> str:
        return f"{self.job_id}.{self.number}"

    @property
    def restarts_left(self) -> int:
        return max(self.spec.max_restarts - self.spent - self.in_place, 0)


def running(conn: Connection, memory: Memory, known: Mapping[Key, Running]) -> list[Running]:
    """``known``: from a call before. What is as it was is not read anew."""
    found = []
    for row in conn.execute(_RUN).all():
        before = known.get((row.job_id, row.number, row.generation))
        if before is None or (before.in_place, before.spent) != (row.in_place, row.restarts):
            found.append(_made(row, memory))
        else:
            found.append(before)
    return found


def _made(row: Row[Any], memory: Memory) -> Running:
    return Running(
        row.job_id,
        row.project,
        row.name,
        row.number,
        row.generation,
        row.engine,
        row.run_dir,
        tuple(group["node"] for group in json.loads(row.groups)),
        row.started_at,
        row.in_place,
        row.restarts,
        memory.spec(row),
    )


def on_nodes(conn: Connection, since: float, until: float) -> dict[str, list[str]]:
    """By node, the attempts (``project/name#2``) that are there, or ended after ``since``; and began no later than ``until``."""
    query = (
        select(attempts.c.groups, attempts.c.number, jobs.c.project, jobs.c.name)
        .join(jobs, jobs.c.id == attempts.c.job_id)
        .where(or_(attempts.c.phase.in_(ACTIVE), attempts.c.ended_at > since))
        .order_by(jobs.c.seq, attempts.c.number)
    )
    if until < math.inf:
        query = query.where(attempts.c.started_at <= until)
    found: dict[str, list[str]] = {}
    for row in conn.execute(query):
        for group in json.loads(row.groups):
            found.setdefault(group["node"], []).append(f"{row.project}/{row.name}#{row.number}")
    return found


def again(tx: Tx, attempt: str, reason: Reason, message: str, got_on: Callable[[str], bool]) -> str | None:
    """Ask an attempt (``project/name#2``) to end and start again, unless its job ``got_on`` (by id). The job's id if it does."""
    project, _, rest = attempt.partition("/")
    name, _, number = rest.rpartition("#")
    row = tx.conn.execute(select(jobs).where(jobs.c.project == project, jobs.c.name == name)).first()
    if row is None or row.attempt != int(number) or got_on(row.id):
        return None
    return row.id if progression.evict(tx, row, reason, message) else None


def lives(conn: Connection, one: Running, also: Sequence[Reason]) -> list[float]:
    """When the attempt's ranks were started: at first, and again in place, as far as it was seen. ``also``: events whose
    ``restarted`` says that they were started again then.
    """
    told = events.page(
        conn,
        kind="Job",
        subject_id=one.job_id,
        reason=[Reason.RankRestarted, *also],
        limit=_LIVES,
        newest_first=True,
    )
    mine = [event for event in told if event.data.get("attempt") == one.number and event.at >= one.started_at]
    again = [
        float(event.data.get("at") or event.at)  # some engines tell of it a little later
        for event in mine
        if event.reason == Reason.RankRestarted or event.data.get("restarted")
    ]
    return [one.started_at, *sorted(again)]


def tell(tx: Tx, one: Running, reason: Reason, message: str, data: Mapping[str, Any], *, stands: bool = False) -> bool:
    """An event of the job, if that attempt still runs. ``stands``: it is why the job is as it is, until another is told."""
    row = _still(tx, one)
    if row is not None:
        if stands:
            submit.update(tx, row.id, reason=reason, message=message)
        tx.emit(submit.ref(row), reason, message, actor="system", data={"attempt": one.number, **data})
    return row is not None


def avoid(tx: Tx, one: Running, node: str, why: str) -> None:
    """Keep the job's next attempts off a node, as far as others would do."""
    row = _still(tx, one)
    if row is not None and node in one.nodes:
        faults.avoid(tx, row, node, why)


def end(tx: Tx, one: Running, reason: Reason, message: str) -> bool:
    """Ask the attempt to end for that reason; a new one follows as far as the job's restarts go."""
    row = _still(tx, one)
    return row is not None and progression.evict(tx, row, reason, message)


def _still(tx: Tx, one: Running) -> Row[Any] | None:
    row = submit.by_id(tx.conn, one.job_id)
    return row if row is not None and row.attempt == one.number and row.phase == Phase.RUNNING else None
