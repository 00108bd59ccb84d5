"""The one writer: takes every waiting closure, runs each in its own savepoint, commits once, then answers all."""

from __future__ import annotations

import asyncio
import json
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Delete, Engine, Insert, Update, bindparam, insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from penstock.base.errors import Unavailable
from penstock.base.reasons import Reason
from penstock.base.resource import Ref
from penstock.store import events
from penstock.store.connect import driver, lost, translate
from penstock.store.events import EventRow, Head
from penstock.store.tables import events as events_table
from penstock.store.tables import heads

GROUP_LIMIT = 256  # closures that share a commit at most: bounds the wait of the first
PATIENCE_S = 5.0  # how long a lost database server is waited for before the callers are told
_RETRY_S = 0.1

Projection = Callable[["Tx", EventRow], None]


class Tx:
    """What a closure given to ``Store.write`` works with: a connection inside its savepoint, and the time."""

    __slots__ = ("_group", "_prepared", "conn", "now")

    def __init__(self, conn: Connection, now: float, group: Group, prepared: Prepared) -> None:
        self.conn = conn
        self.now = now
        self._group = group
        self._prepared = prepared

    def do(self, statement: Insert | Update | Delete, values: Mapping[str, Any]) -> int:
        """Run a statement that a module keeps, for what is done many times a second: the number of rows it met.

        As ``conn.execute(statement, values)`` in every respect but its cost, which is a third.
        """
        return self._prepared.run(self.conn, statement, values)

    def emit(
        self,
        subject: Ref,
        reason: Reason,
        message: str = "",
        *,
        actor: str,
        data: Mapping[str, Any] | None = None,
    ) -> EventRow:
        """Append an event and run the projections on it, all in this transaction.

        The row itself reaches the table with the group's others just before the commit; projections are handed it.
        """
        row = self._group.append((self.now, actor, subject, reason, message, data))
        for project in self._group.projections:
            project(self, row)
        return row

    def replace_chain(self, head: Head) -> None:
        """After a restore has put other events in place: go on from ``head``. Only in a write made ``alone``."""
        self._group.restart(head)


class Prepared:
    """Statements as this database's driver takes them, compiled once for each set of columns."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], tuple[str, Sequence[str] | None]] = {}

    def run(self, conn: Connection, statement: Insert | Update | Delete, values: Mapping[str, Any]) -> int:
        key = (statement, *values)
        found = self._known.get(key)
        if found is None:
            compiled = statement.compile(dialect=conn.dialect, column_keys=list(values))
            found = self._known[key] = (str(compiled), compiled.positiontup)
        sql, order = found
        given = dict(values) if order is None else tuple([values[name] for name in order])
        return conn.exec_driver_sql(sql, given).rowcount


class Group:
    """The events of one transaction, in memory until just before its commit."""

    __slots__ = ("head", "pending", "projections", "rewound", "rows", "start")

    def __init__(self, head: Head, projections: Sequence[Projection]) -> None:
        self.start = head
        self.head = head
        self.pending: list[dict[str, Any]] = []
        self.rows: list[EventRow] = []
        self.projections = projections
        self.rewound = False  # the chain before this group was replaced

    def append(self, said: tuple[float, str, Ref, str, str, Mapping[str, Any] | None]) -> EventRow:
        at, actor, subject, reason, message, data = said
        text = events.encode_data(data)
        seq, previous = self.head.seq + 1, self.head.hash
        plain = (
            seq,
            float(at),
            _storable(actor),
            _storable(subject.kind),
            _storable(subject.project),
            _storable(subject.name),
            _storable(subject.id),
            str(reason),
            _storable(message),
        )
        digest = events.chain_hash(previous, (*plain, text))
        row = EventRow(*plain, json.loads(text) if data else {}, previous, digest)
        self.pending.append(dict(zip(_COLUMNS, (*plain, text, previous, digest), strict=True)))
        self.rows.append(row)
        self.head = Head(seq, digest)
        return row

    def mark(self) -> tuple[Head, Head, bool, int]:
        return self.start, self.head, self.rewound, len(self.rows)

    def undo(self, mark: tuple[Head, Head, bool, int]) -> None:
        self.start, self.head, self.rewound, count = mark
        del self.rows[count:], self.pending[count:]

    def restart(self, head: Head) -> None:
        self.start = self.head = head
        self.rewound = True
        self.rows.clear()
        self.pending.clear()


_APPEND = insert(events_table)
_HEAD = update(heads).where(heads.c.chain == bindparam("of"))
_COLUMNS = tuple(column.name for column in events_table.columns)


def _storable(text: str) -> str:
    """PostgreSQL stores no NUL and neither database half a surrogate pair: both become U+FFFD."""
    if text.isascii() and "\x00" not in text:
        return text
    return text.replace("\x00", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@dataclass(slots=True)
class Item:
    """One closure that waits to be run."""

    fn: Callable[[Tx], Any]
    future: asyncio.Future[Any]
    alone: bool = False


@dataclass(slots=True)
class Outcome:
    item: Item
    value: Any = None
    error: Exception | None = None


Settle = Callable[[list[Outcome], list[EventRow], bool], None]


class Writer:
    """A thread with a connection of its own. Made by ``Store`` alone."""

    def __init__(self, engine: Engine, clock: Callable[[], float], projections: Sequence[Projection]) -> None:
        self._engine = engine
        self._clock = clock
        self._projections = projections
        self._errors = (SQLAlchemyError, engine.dialect.loaded_dbapi.Error)
        self._locks_head = engine.dialect.name != "sqlite"
        self._begin_sql = "BEGIN" if self._locks_head else "BEGIN IMMEDIATE"
        self._queue: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._held: list[Item | None] = []
        self._conn: Connection | None = None
        self._raw: Any = None
        self._head = Head(0, events.GENESIS)
        self._prepared = Prepared()
        self._version: int | None = None  # SQLite's data_version: changes when another process has written
        self._thread = threading.Thread(target=self._run, name="penstock-writer", daemon=True)
        self.settle: Settle = lambda _outcomes, _rows, _rewound: None  # set by the store; called in the event loop
        self._thread.start()

    def put(self, item: Item) -> None:
        self._queue.put(item)

    def stop(self) -> None:
        """Finish what waits, then end; ``join`` waits for it."""
        self._queue.put(None)

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        while batch := self._take():
            outcomes, group = self._commit(batch)
            rows, rewound = (group.rows, group.rewound) if group else ([], False)
            try:
                batch[0].future.get_loop().call_soon_threadsafe(self.settle, outcomes, rows, rewound)
            except RuntimeError:
                continue  # the loop was closed: nobody is left to tell
        self._disconnect()

    def _take(self) -> list[Item]:
        item = self._held.pop() if self._held else self._queue.get()
        batch: list[Item] = []
        while item is not None:
            if item.alone and batch:
                self._held.append(item)
                break
            batch.append(item)
            if item.alone or len(batch) >= GROUP_LIMIT:
                break
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                break
        else:
            if batch:
                self._held.append(None)
        return batch

    def _commit(self, batch: list[Item]) -> tuple[list[Outcome], Group | None]:
        outcomes: list[Outcome] = []
        try:
            group = self._begin()
            for item in batch:
                outcomes.append(self._run_one(group, item))
            self._finish(group)
        except Exception as exc:
            self._disconnect()
            failed = {id(o.item): o for o in outcomes if o.error is not None}
            return [failed.get(id(i)) or Outcome(i, error=translate(self._engine, exc)) for i in batch], None
        self._head = group.head
        return outcomes, group

    def _begin(self) -> Group:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return Group(self._open_transaction(), self._projections)
            except self._errors as exc:
                self._disconnect()
                if not lost(self._engine, exc) or time.monotonic() >= deadline:
                    raise
                time.sleep(_RETRY_S)

    def _open_transaction(self) -> Head:
        if self._conn is None:
            self._conn = self._engine.connect()
            self._raw = driver(self._conn)
            self._version = None
        self._raw.execute(self._begin_sql)
        if self._locks_head:
            return events.load_head(self._conn, lock=True)
        version = self._raw.execute("PRAGMA data_version").fetchone()[0]
        if version != self._version:
            self._head = events.load_head(self._conn)
            self._version = version
        return self._head

    def _run_one(self, group: Group, item: Item) -> Outcome:
        if item.future.cancelled():
            return Outcome(item)
        assert self._conn is not None
        mark = group.mark()
        self._raw.execute("SAVEPOINT one")
        try:
            value = item.fn(Tx(self._conn, self._clock(), group, self._prepared))
        except Exception as exc:
            self._undo_one(exc)
            group.undo(mark)
            return Outcome(item, error=translate(self._engine, _raisable(exc)))
        self._raw.execute("RELEASE SAVEPOINT one")
        return Outcome(item, value)

    def _undo_one(self, exc: Exception) -> None:
        """Undo one closure; when the database has dropped the whole transaction (disk full), fail the whole group."""
        try:
            self._raw.execute("ROLLBACK TO SAVEPOINT one")
            self._raw.execute("RELEASE SAVEPOINT one")
        except self._errors:
            raise exc from None

    def _finish(self, group: Group) -> None:
        assert self._conn is not None
        if len(group.pending) == 1:
            self._prepared.run(self._conn, _APPEND, group.pending[0])
        elif group.pending:
            self._conn.execute(_APPEND, group.pending)
        if group.head != group.start:
            self._prepared.run(self._conn, _HEAD, {"seq": group.head.seq, "hash": group.head.hash, "of": events.CHAIN})
        try:
            self._raw.execute("COMMIT")
        except self._errors as exc:
            if not (lost(self._engine, exc) and group.rows and self._was_committed(group.rows[-1])):
                raise

    def _was_committed(self, last: EventRow) -> bool:
        """The server went away during COMMIT: its own log says whether it had been done."""
        self._disconnect()
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                with self._engine.connect() as conn:
                    query = select(events_table.c.hash).where(events_table.c.seq == last.seq)
                    return conn.execute(query).scalar() == last.hash
            except SQLAlchemyError as exc:
                if time.monotonic() >= deadline:
                    raise Unavailable("the database server was lost during a commit: read again what was done") from exc
                time.sleep(_RETRY_S)

    def _disconnect(self) -> None:
        """Drop the connection and with it any open transaction; the next group makes a new one."""
        conn, self._conn, self._raw = self._conn, None, None
        if conn is not None:
            conn.invalidate()
            conn.close()


def _raisable(exc: Exception) -> Exception:
    """A future refuses StopIteration, which would end whoever awaits it without a word."""
    if not isinstance(exc, StopIteration):
        return exc
    error = RuntimeError("a closure raised StopIteration")
    error.__cause__ = exc
    return error
