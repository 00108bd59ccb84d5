"""What was made in engines' own accounting for the queue file, as rows; and the options that put a job into its queue there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from sqlalchemy import delete, insert, select
from sqlalchemy.engine import Connection

from penstock.engines.slurm.accounts import Fields, Key, Kind
from penstock.scheduling.drift import Made
from penstock.scheduling.tables import compiled as table
from penstock.store.store import Tx

AccountOptions = Mapping[tuple[str, str], Mapping[str, str]]  # by engine and queue


def recorded(conn: Connection, engine: str) -> dict[Key, Made]:
    rows = conn.execute(select(table).where(table.c.engine == engine))
    return {Key(Kind(row.kind), row.name, row.account): Made(json.loads(row.fields), bool(row.pending)) for row in rows}


def record(tx: Tx, engine: str, made: Mapping[Key, Fields], *, pending: bool) -> None:
    forget(tx, engine, made)
    rows = [
        {
            "engine": engine,
            "kind": key.kind.value,
            "name": key.name,
            "account": key.account,
            "fields": json.dumps(dict(fields), sort_keys=True),
            "pending": pending,
        }
        for key, fields in made.items()
    ]
    if rows:
        tx.conn.execute(insert(table), rows)


def forget(tx: Tx, engine: str, keys: Iterable[Key]) -> None:
    for key in keys:
        mine = (table.c.engine == engine) & (table.c.kind == key.kind.value)
        tx.conn.execute(delete(table).where(mine, table.c.name == key.name, table.c.account == key.account))


def account_options(conn: Connection) -> AccountOptions:
    """Where the queue file was compiled: the engine's options that put a job into its queue."""
    rows = conn.execute(select(table).where(table.c.kind == Kind.ACCOUNT.value))
    found = {}
    for row in rows:
        fields = json.loads(row.fields)
        found[row.engine, row.name] = {"account": row.name} | ({"qos": fields["qos"]} if "qos" in fields else {})
    return found
