"""What a scheduler knows that no other row says, as rows: written in the cycle's own transaction, only where it changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, select
from sqlalchemy.engine import Connection

from penstock.scheduling import restart
from penstock.scheduling.holding import Awaiting
from penstock.scheduling.state import Ask, Awaited, Promise, Share, Usage
from penstock.scheduling.tables import awaited, promises, usage
from penstock.store.store import Tx

if TYPE_CHECKING:
    from penstock.scheduling.cycle import Scheduler

Tag = Callable[[str], str]  # which version of a job that waits
_FORGET_PROMISE = promises.delete().where(promises.c.job_id == bindparam("b_id"))
_FORGET_AWAITED = awaited.delete().where(awaited.c.job_id == bindparam("b_id"))
_FORGET_USAGE = usage.delete().where(usage.c.path == bindparam("b_id"))
_PROMISE, _AWAITED, _USAGE = promises.insert(), awaited.insert(), usage.insert()


@dataclass(slots=True)
class Stored:
    """What the rows hold, by job: so that a cycle in which nothing changes writes nothing, and reads nothing."""

    promises: dict[str, Promise] = field(default_factory=dict)
    awaiting: dict[str, Awaiting | None] = field(default_factory=dict)


def load(conn: Connection, view: Scheduler, tag: Tag, now: float) -> Stored:
    """Hand a scheduler that was built from the rows of jobs and nodes what is known besides. What the rows hold."""
    stored = Stored()
    found: list[Awaited] = []
    current: list[Awaited] = []
    for row in conn.execute(select(awaited).order_by(awaited.c.job_id)):
        names, victims = tuple(json.loads(row.nodes)), frozenset(json.loads(row.victims))
        found.append(Awaited(row.job_id, row.flavor, names, victims))
        current += [found[-1]] if row.made_for == tag(row.job_id) else []
    restart.awaiting(view, current)
    stored.awaiting = {one.id: view.awaiting.get(one.id) for one in found}
    good: list[str] = []
    for row in conn.execute(select(promises).order_by(promises.c.job_id)):
        stored.promises[row.job_id] = Promise(row.job_id, row.begins, tuple(map(_share, json.loads(row.shares))))
        good += [row.job_id] if row.made_for == tag(row.job_id) else []
    restart.promises(view, [stored.promises[id_] for id_ in good])
    if view.by_use:
        rows = conn.execute(select(usage).order_by(usage.c.path)).all()
        restart.usage(view, [Usage(tuple(json.loads(row.path)), row.decayed, row.at, row.rate) for row in rows], now)
    return stored


def save(tx: Tx, view: Scheduler, stored: Stored, tag: Tag) -> None:
    """After a cycle."""
    if stored.promises or view.windows:
        _save_promises(tx, view, stored, tag)
    if stored.awaiting or view.awaiting:
        _save_awaiting(tx, view, stored, tag)
    if view.by_use and view.fair.changed:
        rows = [restart.used(view, path) for path in sorted(view.fair.changed)]
        view.fair.changed.clear()
        values = [
            {"path": json.dumps(one.path), "decayed": one.decayed, "at": one.at, "rate": one.rate} for one in rows
        ]
        tx.conn.execute(_FORGET_USAGE, [{"b_id": one["path"]} for one in values])
        tx.conn.execute(_USAGE, values)


def _save_promises(tx: Tx, view: Scheduler, stored: Stored, tag: Tag) -> None:
    had = stored.promises
    new = {id_: window.promise for id_, window in view.windows.items() if had.get(id_) is not window.promise}
    gone = [id_ for id_ in had if id_ not in view.windows or id_ in new]
    if gone:
        tx.conn.execute(_FORGET_PROMISE, [{"b_id": id_} for id_ in gone])
    if new:
        tx.conn.execute(_PROMISE, [_row(one, tag(id_)) for id_, one in new.items()])
    for id_ in gone:
        del had[id_]
    had |= new


def _row(one: Promise, made_for: str) -> dict[str, Any]:
    shares = json.dumps([{"node": share.node, **_given(share.ask)} for share in one.shares])
    return {"job_id": one.id, "made_for": made_for, "begins": one.start, "shares": shares}


def _given(ask: Ask) -> dict[str, Any]:
    """What it asks for, without what it does not."""
    return {key: value for key, value in asdict(ask).items() if value}


def _share(body: dict[str, Any]) -> Share:
    ask: dict[str, Any] = {key: value for key, value in body.items() if key != "node"}
    ask["gpu_models"] = tuple(ask.get("gpu_models", ()))
    return Share(body["node"], Ask(**ask))


def _save_awaiting(tx: Tx, view: Scheduler, stored: Stored, tag: Tag) -> None:
    """Whom they wait for only ever becomes fewer, and that is seen from who is still there: it is not written again."""
    had = stored.awaiting
    gone = [id_ for id_, one in had.items() if view.awaiting.get(id_) is not one or one is None]
    new = {id_: one for id_, one in view.awaiting.items() if had.get(id_) is not one}
    if gone:
        tx.conn.execute(_FORGET_AWAITED, [{"b_id": id_} for id_ in gone])
    for id_ in gone:
        del had[id_]
    values = [
        {
            "job_id": one.id,
            "made_for": tag(one.id),
            "flavor": one.flavor,
            "nodes": json.dumps(one.nodes),
            "victims": json.dumps(sorted(one.victims)),
        }
        for one in (restart.awaited(view, id_) for id_ in new)
    ]
    if values:
        tx.conn.execute(_AWAITED, values)
    had |= new
