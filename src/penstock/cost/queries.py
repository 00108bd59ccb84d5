"""Rows of the ledger -> sums for ``plan.price``, and bills -> JSON."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Double, Table, case, func, literal, select

from penstock.base.quantities import format_time
from penstock.cost.plan import Bill, Line, Usage, amount
from penstock.cost.tables import usage

KEYS: dict[str, tuple[str, ...]] = {
    "project": ("project",),
    "user": ("user",),
    "queue": ("queue",),
    "job": ("project", "job"),
    "node": ("node",),
    "attempt": ("attempt", "node"),
}


@dataclass(frozen=True, slots=True)
class Window:
    """From ``since`` (None: the beginning) to ``until``, epoch seconds; ``until`` is never after now."""

    since: float | None
    until: float


def usages(
    conn: Connection,
    by: str,
    window: Window,
    *,
    projects: Collection[str] | None = None,
    job_ids: Collection[str] | None = None,
) -> Iterator[Usage]:
    """What was used in the window, summed under the columns of ``KEYS[by]``; None: every project, every job."""
    columns = [usage.c[name] for name in KEYS[by]]
    query = select(*columns, usage.c.resource, func.sum(usage.c.quantity * seconds(usage, window)))
    query = query.where(usage.c.started_at < window.until).group_by(*columns, usage.c.resource)
    if window.since is not None:
        query = query.where(usage.c.ended_at.is_(None) | (usage.c.ended_at > window.since))
    if projects is not None:
        query = query.where(usage.c.project.in_(sorted(projects)))
    if job_ids is not None:
        query = query.where(usage.c.job_id.in_(sorted(job_ids)))
    for row in conn.execute(query, execution_options={"yield_per": 5000}):
        yield Usage(tuple(row[:-2]), row[-2], float(row[-1] or 0.0))


def span(conn: Connection, job_ids: Collection[str]) -> tuple[float | None, float | None, bool]:
    """When usage of these jobs began and ended, and whether some is still open."""
    mine = usage.c.job_id.in_(sorted(job_ids))
    query = select(
        func.min(usage.c.started_at), func.max(usage.c.ended_at), func.count() - func.count(usage.c.ended_at)
    )
    began, ended, still = conn.execute(query.where(mine)).one()
    return began, ended, bool(still)


def report(bill: Bill, *, by: str, window: Window, currency: str, folded: int = 0) -> dict[str, Any]:
    """The wire form. When lines were folded, the last item's key says how many."""
    items = [_item(line, KEYS[by]) for line in bill.lines]
    if folded:
        items[-1]["key"][KEYS[by][-1]] = f"({folded} others)"
    return {
        "currency": currency,
        "by": by,
        "since": format_time(window.since),
        "until": format_time(window.until),
        "items": items,
        "total": amount(bill.nanos),
    }


def _item(line: Line, names: tuple[str, ...]) -> dict[str, Any]:
    return {
        "key": dict(zip(names, line.key, strict=True)),
        "amount": amount(line.nanos),
        "quantities": {
            "cpu_hours": round(line.cpu_hours, 9),
            "memory_gib_hours": round(line.memory_gib_hours, 9),
            "gpu_hours": round(line.gpu_hours, 9),
        },
    }


def seconds(table: Table, window: Window) -> ColumnElement[float]:
    """How long an interval lies inside the window; never negative."""
    until = literal(window.until, Double)
    end: ColumnElement[Any] = case((table.c.ended_at < until, table.c.ended_at), else_=until)
    start: ColumnElement[Any] = table.c.started_at
    if window.since is not None:
        since = literal(window.since, Double)
        start = case((table.c.started_at > since, table.c.started_at), else_=since)
    return case((end > start, end - start), else_=literal(0.0, Double))
