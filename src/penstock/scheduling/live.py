"""The setup that holds now: the newest queue file that was applied, and what it says of a node and of a project."""

from __future__ import annotations

from functools import lru_cache

from sqlalchemy import func, insert, select
from sqlalchemy.engine import Connection, Row

from penstock.base.reasons import Reason
from penstock.base.resource import Ref
from penstock.scheduling.spec import Setup, parse_setup
from penstock.scheduling.tables import setups
from penstock.store.store import Tx

_NEWEST = select(setups).order_by(setups.c.generation.desc()).limit(1)


def newest(conn: Connection) -> Row[tuple[int, str, str, float]] | None:
    """generation, text, applied_by, applied_at; None while nothing was ever applied."""
    return conn.execute(_NEWEST).first()


def text(conn: Connection) -> str:
    """The queue file that holds; empty while none was ever applied."""
    row = newest(conn)
    return "" if row is None else row.text


def current(conn: Connection) -> Setup:
    row = newest(conn)
    return Setup() if row is None else _parsed(row.text)


@lru_cache(maxsize=4)
def _parsed(text: str) -> Setup:
    return parse_setup(text, path="the setup")


def replace(tx: Tx, text: str, *, actor: str) -> int:
    """Put a queue file, already found good, in place of the present one. Returns its generation."""
    generation = (tx.conn.execute(select(func.max(setups.c.generation))).scalar() or 0) + 1
    tx.conn.execute(insert(setups).values(generation=generation, text=text, applied_by=actor, applied_at=tx.now))
    names = ", ".join(sorted(_parsed(text).queues))
    ref = Ref("Queues", "queues", id="queues")
    message = f"generation {generation}: {names}"
    tx.emit(ref, Reason.QueuesChanged, message, actor=actor, data={"generation": generation})
    return generation


def queue_of(setup: Setup, project: str) -> str:
    """Where a project's jobs go that name no queue."""
    for queue in setup.queues.values():
        if project in queue.projects:
            return queue.name
    return "default"
