"""Who may use which uploaded work folder. The bytes lie in the data folder; this is the record of who had them."""

from __future__ import annotations

from sqlalchemy import insert, select
from sqlalchemy.engine import Connection

from penstock.base.reasons import Reason
from penstock.base.resource import Ref
from penstock.store.store import Tx
from penstock.tenancy.tables import snapshots


def holds(conn: Connection, user: str, sha256: str) -> bool:
    """Whether ``user`` has uploaded this content themselves."""
    found = conn.execute(select(snapshots.c.user).where(snapshots.c.sha256 == sha256, snapshots.c.user == user))
    return found.first() is not None


def record(tx: Tx, user: str, sha256: str, size: int) -> None:
    """Note that ``user`` uploaded it (``size`` in bytes); twice is once."""
    if holds(tx.conn, user, sha256):
        return
    tx.conn.execute(insert(snapshots).values(sha256=sha256, user=user, size=size, created_at=tx.now))
    ref = Ref("Snapshot", sha256[:12], id=sha256)
    tx.emit(ref, Reason.Created, f"{size} bytes", actor=user, data={"size": size})
