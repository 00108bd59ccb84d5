"""The projection that keeps the usage ledger: intervals open and close in the transaction of the event that says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import BindParameter, bindparam, case, func, select, text, update

from penstock.base.reasons import Reason
from penstock.cost.spec import CPUS, GPUS, MEMORY
from penstock.cost.tables import UNRECORDED, usage
from penstock.scheduling.devices import part
from penstock.store.events import EventRow
from penstock.store.store import Store, Tx

# Both databases know this form; an attempt that is announced twice is counted once, and anew after it was requeued.
_OPEN = text(
    'INSERT INTO usage (job_id, attempt, node, resource, project, "user", job, quantity, started_at, queue)'
    " SELECT :job_id, :attempt, :node, :resource, :project, :user, :job, :quantity, :started_at, :queue"
    " WHERE NOT EXISTS (SELECT 1 FROM usage AS u WHERE u.job_id = :job_id AND u.attempt = :attempt AND u.node = :node"
    " AND u.resource = :resource AND (u.ended_at IS NULL OR u.ended_at > :started_at))"
    " ON CONFLICT (job_id, attempt, node, resource, started_at) DO UPDATE SET ended_at = NULL"  # it ran for no time at all
)
_END: BindParameter[float] = bindparam("end")
_CLOSE = (
    update(usage)
    .where(
        usage.c.job_id == bindparam("of_job"), usage.c.attempt == bindparam("of_attempt"), usage.c.ended_at.is_(None)
    )
    .values(ended_at=case((usage.c.started_at > _END, usage.c.started_at), else_=_END))
)


def attach(store: Store) -> None:
    """From now on every attempt's usage is recorded. Call it before the first write."""
    store.project(record)


def record(tx: Tx, event: EventRow) -> None:
    """Open intervals on ``AttemptStarted``, close them on ``AttemptEnded`` and ``Requeued`` (never before they began)."""
    if event.reason == Reason.AttemptStarted:
        rows = list(_intervals(event))
        if rows:
            tx.conn.execute(_OPEN, rows)
    elif event.reason in (Reason.AttemptEnded, Reason.Requeued):
        data = event.data
        end = _time(data.get("ended_at"), event.at)
        tx.conn.execute(_CLOSE, {"of_job": data["job_id"], "of_attempt": data["attempt"], "end": end})


def _intervals(event: EventRow) -> Iterator[dict[str, Any]]:
    data = event.data
    common = {
        "job_id": data["job_id"],
        "attempt": data["attempt"],
        "project": event.project,
        "user": data["user"],
        "job": event.name,
        "started_at": _time(data.get("started_at"), event.at),
        "queue": str(data.get("queue") or UNRECORDED),
    }
    held: dict[tuple[str, str], float] = {}
    for group in data["groups"]:
        for resource, quantity in _held(group):
            key = (group["node"], resource)
            held[key] = held.get(key, 0.0) + quantity
    for (node, resource), quantity in held.items():
        if quantity > 0:
            yield {**common, "node": node, "resource": resource, "quantity": quantity}


def _held(group: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    yield CPUS, float(group.get("cpus") or 0)
    yield MEMORY, float(group.get("memory") or 0)
    for gpu in group.get("gpus") or ():
        model = str(gpu.get("model") or "unknown")
        yield GPUS + model, part(model, gpu.get("milli") or 0, gpu.get("mig") or "")


def _time(said: object, otherwise: float) -> float:
    return float(said) if isinstance(said, int | float) else otherwise


def open_intervals(tx: Tx) -> int:
    """How many intervals are open (for checks: none when nothing runs)."""
    query = select(func.count()).select_from(usage).where(usage.c.ended_at.is_(None))
    return int(tx.conn.execute(query).scalar_one())
