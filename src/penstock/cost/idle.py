"""GPUs that were held and did nothing: the projection that records it, and the report of who let them, in money.

Recorded from the first idle sample on, once it was told of (``GpuIdle``); until they work again, or the attempt ends.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import BindParameter, Connection, bindparam, case, func, select, text, update

from penstock.base.quantities import format_time
from penstock.base.reasons import Reason
from penstock.base.routes import Call, Endpoint, Sample
from penstock.cost import queries
from penstock.cost.plan import NANOS, Usage, price
from penstock.cost.queries import KEYS, Window
from penstock.cost.spec import GPUS, Prices
from penstock.cost.tables import UNRECORDED, idle_usage
from penstock.cost.windows import read_window
from penstock.store.events import EventRow
from penstock.store.store import Store, Tx
from penstock.tenancy.plan import visible

_OPEN = text(
    'INSERT INTO idle_usage (job_id, attempt, node, gpu, started_at, quantity, resource, project, "user", queue, job)'
    " VALUES (:job_id, :attempt, :node, :gpu, :started_at, :quantity, :resource, :project, :user, :queue, :job)"
    " ON CONFLICT DO NOTHING"
)
_END: BindParameter[float] = bindparam("end")
_CLOSE = (
    update(idle_usage)
    .where(
        idle_usage.c.job_id == bindparam("of_job"),
        idle_usage.c.attempt == bindparam("of_attempt"),
        idle_usage.c.ended_at.is_(None),
    )
    .values(ended_at=case((idle_usage.c.started_at > _END, idle_usage.c.started_at), else_=_END))
)
_CLOSE_ONE = _CLOSE.where(idle_usage.c.node == bindparam("of_node"), idle_usage.c.gpu == bindparam("of_gpu"))


def attach(store: Store) -> None:
    """From now on idleness is recorded. Call it before the first write."""
    store.project(record)


def record(tx: Tx, event: EventRow) -> None:
    """Open on ``GpuIdle``, close on ``GpuIdleEnded``, ``AttemptEnded`` and ``Requeued``."""
    data = event.data
    if event.reason == Reason.GpuIdle:
        common = {
            "job_id": data["job_id"],
            "attempt": data["attempt"],
            "project": event.project,
            "user": data["user"],
            "queue": str(data.get("queue") or UNRECORDED),
            "job": event.name,
        }
        rows = [
            common
            | {"node": g["node"], "gpu": g["id"], "resource": GPUS + g["model"], "started_at": g["at"]}
            | {"quantity": g.get("part", 1.0)}
            for g in data["gpus"]
        ]
        if rows:
            tx.conn.execute(_OPEN, rows)
    elif event.reason in (Reason.GpuIdleEnded, Reason.AttemptEnded, Reason.Requeued):
        whose = {"of_job": data["job_id"], "of_attempt": data["attempt"]}
        if event.reason != Reason.GpuIdleEnded:
            tx.conn.execute(_CLOSE, whose | {"end": event.at})
            return
        for gpu in data["gpus"]:
            tx.conn.execute(_CLOSE_ONE, whose | {"end": gpu["at"], "of_node": gpu["node"], "of_gpu": gpu["id"]})


class IdleQuery(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    by: Literal["project", "user", "queue", "job"] = "user"
    since: str | None = Field(default=None, max_length=40, description="RFC 3339, or how long ago, such as 7d")
    until: str | None = Field(default=None, max_length=40, description="RFC 3339, or how long ago; default: now")


class IdleItem(BaseModel):
    key: dict[str, str]
    idle_gpu_hours: float
    gpu_hours: float  # held in the same time
    amount: float
    idle_now: int  # GPUs


class IdleReport(BaseModel):
    currency: str
    by: str
    since: str | None
    until: str | None
    items: list[IdleItem]
    total: float


def idle(conn: Connection, by: str, window: Window, projects: Collection[str] | None, prices: Prices) -> list[IdleItem]:
    """Those that left GPUs idle, the dearest first; at the price file's prices on demand."""
    names = KEYS[by]
    columns = [idle_usage.c[name] for name in names]
    seconds = func.sum(func.coalesce(idle_usage.c.quantity, 1.0) * queries.seconds(idle_usage, window))
    open_now = func.sum(case((idle_usage.c.ended_at.is_(None), 1), else_=0))
    query = select(*columns, idle_usage.c.resource, seconds, open_now).group_by(*columns, idle_usage.c.resource)
    query = query.where(idle_usage.c.started_at < window.until)
    if window.since is not None:
        query = query.where(idle_usage.c.ended_at.is_(None) | (idle_usage.c.ended_at > window.since))
    if projects is not None:
        query = query.where(idle_usage.c.project.in_(sorted(projects)))
    rows = conn.execute(query).all()
    if not rows:
        return []
    now: dict[tuple[str, ...], int] = {}
    for row in rows:
        now[tuple(row[:-3])] = now.get(tuple(row[:-3]), 0) + int(row[-1])
    bill = price((Usage(tuple(row[:-3]), row[-3], float(row[-2] or 0.0)) for row in rows), prices)
    held = {
        line.key: line.gpu_hours for line in price(queries.usages(conn, by, window, projects=projects), prices).lines
    }
    return [
        IdleItem(
            key=dict(zip(names, map(str, line.key), strict=True)),
            idle_gpu_hours=round(line.gpu_hours, 9),
            gpu_hours=round(held.get(line.key, 0.0), 9),
            amount=line.nanos / NANOS,
            idle_now=now[tuple(map(str, line.key))],
        )
        for line in bill.lines
    ]


def idle_now(conn: Connection) -> frozenset[tuple[str, str]]:
    """(node, GPU) of those that a job holds and does nothing with."""
    query = select(idle_usage.c.node, idle_usage.c.gpu).where(idle_usage.c.ended_at.is_(None))
    return frozenset((node, gpu) for node, gpu in conn.execute(query))


def samples(conn: Connection) -> list[Sample]:
    """For /metrics."""
    columns = (idle_usage.c.project, idle_usage.c.user)
    query = select(*columns, func.count()).where(idle_usage.c.ended_at.is_(None)).group_by(*columns)
    about = "GPUs that running jobs hold and that do nothing, by project and user."
    found = [tuple(row) for row in conn.execute(query)] or [("", "", 0)]
    return [Sample("gpus_idle", "gauge", about, {"project": p, "user": u}, count) for p, u, count in found]


def endpoints(store: Store, prices: Prices) -> Sequence[Endpoint]:
    async def report(call: Call) -> dict[str, Any]:
        query, projects = call.query, visible(call.actor)
        window = read_window(query.since, query.until, store.clock())
        items = await store.read_long(lambda conn: idle(conn, query.by, window, projects, prices))
        return {
            "currency": prices.currency,
            "by": query.by,
            "since": format_time(window.since),
            "until": format_time(window.until),
            "items": [item.model_dump() for item in items],
            "total": round(sum(item.amount for item in items), 9),
        }

    return (
        Endpoint(
            "GET",
            "/api/v1/cost/idle",
            "cost.read",
            report,
            "GPUs that were held and did nothing: by whom, how long, for how much",
            query=IdleQuery,
            answer=IdleReport,
        ),
    )
