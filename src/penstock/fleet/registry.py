"""The engines that were added, as rows: what they are, where they are reached, and what was found there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.engine import Connection, Row

from penstock.base.errors import Conflict, NotFound
from penstock.base.reasons import Reason
from penstock.base.resource import Ref
from penstock.engines import kinds
from penstock.engines.adding import Probed, Stored
from penstock.fleet.tables import engines, nodes
from penstock.store.store import Tx


def ref(name: str) -> Ref:
    return Ref("Engine", name, id=name)


def all_engines(conn: Connection) -> list[Row[Any]]:
    return list(conn.execute(select(engines).order_by(engines.c.name)))


def get(conn: Connection, name: str) -> Row[Any]:
    row = conn.execute(select(engines).where(engines.c.name == name)).first()
    if row is None:
        raise NotFound(f"no engine {name!r} was added", hint="`penstock engines` lists them.")
    return row


def managed(conn: Connection, name: str) -> bool:
    """Whether this engine's nodes may be changed; of the server's own they may."""
    found = conn.execute(select(engines.c.managed).where(engines.c.name == name)).scalar()
    return True if found is None else bool(found)


def node_counts(conn: Connection) -> dict[str, int]:
    found = conn.execute(select(nodes.c.engine, func.count()).group_by(nodes.c.engine))
    return {str(name): int(count) for name, count in found}


def add(tx: Tx, kind: str, stored: Stored, probed: Probed | None, *, actor: str) -> None:
    """Raises Conflict where the name is taken."""
    if tx.conn.execute(select(engines.c.name).where(engines.c.name == stored.name)).first():
        raise Conflict(f"there is an engine {stored.name!r} already", hint="`penstock engines set` changes it.")
    tx.conn.execute(
        engines.insert().values(
            name=stored.name,
            kind=kind,
            options=json.dumps(dict(stored.options), sort_keys=True),
            managed=stored.managed,
            added_by=actor,
            added_at=tx.now,
            **_seen(tx, probed),
        )
    )
    words = f"{kind}, {kinds.where(kind, stored.options)}" + (", managed" if stored.managed else "")
    data = {"kind": kind, "options": dict(stored.options), "managed": stored.managed}
    tx.emit(ref(stored.name), Reason.EngineAdded, words, actor=actor, data=data)


def change(tx: Tx, stored: Stored, probed: Probed | None, *, actor: str, new_secret: bool) -> None:
    """Raises NotFound."""
    row = get(tx.conn, stored.name)
    options = json.dumps(dict(stored.options), sort_keys=True)
    unasked = {"findings": "[]", "probed_at": None}  # those there are were of other settings
    seen = _seen(tx, probed) if probed is not None else unasked
    tx.conn.execute(
        engines.update().where(engines.c.name == stored.name).values(options=options, managed=stored.managed, **seen)
    )
    words = []
    if bool(row.managed) != stored.managed:
        words.append("managed from now on" if stored.managed else "read-only from now on")
    before = json.loads(row.options)
    words += [
        f"{name}: {_said(before, name)} -> {_said(stored.options, name)}"
        for name in sorted({*before, *stored.options})
        if before.get(name) != stored.options.get(name)
    ]
    if new_secret:
        words.append("a new token")
    data = {"options": dict(stored.options), "managed": stored.managed}
    tx.emit(ref(stored.name), Reason.EngineChanged, "; ".join(words) or "nothing new", actor=actor, data=data)


def _said(values: Mapping[str, Any], name: str) -> str:
    return str(values[name]) if name in values else "not given"


def note(tx: Tx, name: str, probed: Probed) -> None:
    """What was found at the site just now."""
    tx.conn.execute(engines.update().where(engines.c.name == name).values(**_seen(tx, probed)))


def remove(tx: Tx, name: str, *, actor: str, why: str) -> None:
    """Raises NotFound."""
    get(tx.conn, name)
    tx.conn.execute(engines.delete().where(engines.c.name == name))
    tx.emit(ref(name), Reason.EngineRemoved, why, actor=actor)


def _seen(tx: Tx, probed: Probed | None) -> dict[str, Any]:
    if probed is None:
        return {"version": "", "findings": "[]", "probed_at": None}
    found: Iterable[Mapping[str, str]] = [one.to_dict() for one in probed.findings]
    return {"version": probed.version, "findings": json.dumps(found), "probed_at": tx.now}
