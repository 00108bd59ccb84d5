"""The projection that keeps the capacity ledger: what was up, when; in the transaction of the node's event.

A node that is cordoned or drained costs as before. Events of nodes carry ``cpus``, ``memory``, ``gpus`` and ``ready``;
those of before this ledger do not, and say nothing here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from sqlalchemy import BindParameter, bindparam, case, text, update

from penstock.base.reasons import Reason
from penstock.cost.spec import CPUS, GPUS, MEMORY
from penstock.cost.tables import capacity
from penstock.store.events import EventRow
from penstock.store.store import Store, Tx

# Two events of one instant: the later one is what was.
_OPEN = text(
    "INSERT INTO capacity (node, resource, started_at, quantity) VALUES (:node, :resource, :started_at, :quantity)"
    " ON CONFLICT (node, resource, started_at) DO UPDATE SET quantity = excluded.quantity, ended_at = NULL"
)
_END: BindParameter[float] = bindparam("end")
_CLOSE = (
    update(capacity)
    .where(capacity.c.node == bindparam("of_node"), capacity.c.ended_at.is_(None))
    .values(ended_at=case((capacity.c.started_at > _END, capacity.c.started_at), else_=_END))
)
_SAYS = frozenset({Reason.Joined, Reason.Changed, Reason.Restored, Reason.Lost})


def attach(store: Store) -> None:
    """From now on nodes' capacity is recorded. Call it before the first write."""
    store.project(record)


def record(tx: Tx, event: EventRow) -> None:
    """Close what was open at every change of a node, and open what it has now if it is ready."""
    if event.kind != "Node" or event.reason not in _SAYS:
        return
    if event.reason != Reason.Lost and "cpus" not in event.data:
        return
    tx.conn.execute(_CLOSE, {"of_node": event.name, "end": event.at})
    if event.reason == Reason.Lost or not event.data.get("ready", True):
        return
    common = {"node": event.name, "started_at": event.at}
    rows = [common | {"resource": name, "quantity": much} for name, much in _has(event.data).items() if much > 0]
    if rows:
        tx.conn.execute(_OPEN, rows)


def _has(data: Mapping[str, Any]) -> dict[str, float]:
    models = Counter(str(gpu.get("model") or "unknown") for gpu in data["gpus"])
    gpus = {GPUS + model: float(count) for model, count in models.items()}
    return {CPUS: float(data["cpus"]), MEMORY: float(data["memory"]), **gpus}
