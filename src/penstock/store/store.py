"""The store: one writer whose callers share commits, reads from a snapshot, events after the commit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from sqlalchemy import URL, Connection
from sqlalchemy.exc import SQLAlchemyError

from penstock.base.errors import PenstockError, Unavailable
from penstock.store import events, schema
from penstock.store.connect import (
    DATABASE_ERRORS,
    driver,
    fail,
    lost,
    make_folder,
    parse_url,
    reading_engine,
    writing_engine,
)
from penstock.store.events import EventRow
from penstock.store.writer import Item, Outcome, Projection, Tx, Writer

__all__ = ["Listener", "Projection", "Store", "Tx"]

T = TypeVar("T")
Listener = Callable[[list[EventRow]], None]
POLL_S = 0.3  # how often a server looks for the events of others on one PostgreSQL
_POLL_ROWS = 1000


class Store:
    """One database. ``open`` it, ``project`` and ``listen`` before the first write, ``close`` it last."""

    def __init__(self, url: URL, clock: Callable[[], float]) -> None:
        self.url = url
        self.clock = clock
        self.is_sqlite = url.get_backend_name() == "sqlite"
        self._writing = writing_engine(url)
        self._reading = reading_engine(url)
        self._projections: list[Projection] = []
        self._listeners: list[Listener] = []
        self._reader: Connection | None = None
        self._writer: Writer | None = None
        self._seen = 0  # the last event that listeners were given
        self._poller: asyncio.Task[None] | None = None
        self._behind: asyncio.Event | None = None

    @classmethod
    def open(cls, url: str, *, clock: Callable[[], float], migrate: bool = True) -> Store:
        """Open, create or (with ``migrate``) bring up to date the database at ``url``.

        ``clock`` gives epoch seconds. Raises InvalidInput (URL), Unavailable (unreachable), Conflict (newer schema),
        LedgerBroken (damaged file).
        """
        parsed = parse_url(url)
        store = cls(parsed, clock)
        if store.is_sqlite:
            make_folder(parsed)
        try:
            schema.prepare(store._writing, migrate=migrate)
            with store.snapshot() as conn:
                store._seen = events.last_seq(conn)
        except DATABASE_ERRORS as exc:
            fail(store._writing, exc)
        store._writer = Writer(store._writing, clock, store._projections)
        store._writer.settle = store._settle
        return store

    async def write(self, fn: Callable[[Tx], T], *, alone: bool = False) -> T:
        """Run ``fn`` in the writer thread, in a savepoint of its own; the answer comes after the commit.

        What ``fn`` raises undoes what it did, and nothing else, and is raised here. Calls that wait together share
        one commit; ``alone`` asks for a commit apart (for the long ones). ``fn`` runs at most once. A cancelled
        caller's ``fn`` may still run.
        """
        if self._writer is None:
            raise Unavailable("the store is closed")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._writer.put(Item(fn, future, alone))
        return await future

    async def read(self, fn: Callable[[Connection], T]) -> T:
        """Run ``fn`` on one snapshot. SQLite: here and now, so keep it short; PostgreSQL: in a thread."""
        if self._writer is None:
            raise Unavailable("the store is closed")
        if self.is_sqlite:
            return self._read_here(fn)
        return await asyncio.to_thread(self._read_remote, fn)

    async def read_long(self, fn: Callable[[Connection], T]) -> T:
        """Run ``fn`` on one snapshot in a thread with a connection of its own: for reads of unbounded length."""

        def work() -> T:
            with self.snapshot() as conn:
                return fn(conn)

        return await asyncio.to_thread(work)

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """A connection of its own inside one read transaction; from any thread. Its writes are never committed."""
        with self._reading.connect() as conn:
            if self.is_sqlite:
                driver(conn).execute("PRAGMA query_only=ON")
                driver(conn).execute("BEGIN")
            yield conn
            if self.is_sqlite:
                driver(conn).execute("ROLLBACK")
            conn.rollback()

    def project(self, fn: Projection) -> None:
        """Have ``fn`` called inside the transaction for every event; what it raises undoes the closure."""
        self._projections.append(fn)

    def listen(self, fn: Listener) -> Callable[[], None]:
        """Have ``fn`` called in the event loop with each commit's events, in order; the answer stops it.

        On PostgreSQL the events of other servers come too, within ``POLL_S``.
        """
        self._listeners.append(fn)
        if not self.is_sqlite and self._poller is None:
            self._behind = asyncio.Event()
            self._poller = asyncio.get_running_loop().create_task(self._poll(self._behind))

        def stop() -> None:
            if fn in self._listeners:
                self._listeners.remove(fn)

        return stop

    async def close(self) -> None:
        """Finish the writes that wait, then let go of the database."""
        writer, self._writer = self._writer, None
        if self._poller is not None and self._behind is not None:
            self._behind.set()  # it finds the store closed; cancelling it would leave its thread with a connection
            await self._poller
        if writer is not None:
            writer.stop()
            await asyncio.to_thread(writer.join)
        self._drop_reader()
        self._reading.dispose()
        self._writing.dispose()

    def _settle(self, outcomes: list[Outcome], rows: list[EventRow], rewound: bool) -> None:
        """In the event loop, once per commit: listeners first, so that a caller who goes on has been seen."""
        if rewound and rows:
            self._seen = rows[0].seq - 1
        self._hand_out(rows)
        for outcome in outcomes:
            future = outcome.item.future
            if future.done():
                continue
            if outcome.error is not None:
                future.set_exception(outcome.error)
            else:
                future.set_result(outcome.value)

    def _hand_out(self, rows: list[EventRow]) -> None:
        """Give listeners what they have not seen. Own commits and the poller's finds may come in either order."""
        rows = [row for row in rows if row.seq > self._seen]
        if not rows:
            return
        if self._behind is not None and rows[0].seq > self._seen + 1:
            self._behind.set()  # others' events lie between: the poller brings all of them in order
            return
        self._seen = rows[-1].seq
        loop = asyncio.get_running_loop()
        for listener in tuple(self._listeners):
            loop.call_soon(listener, rows)  # what one raises goes to the loop's exception handler, not to the others

    async def _poll(self, behind: asyncio.Event) -> None:
        while self._writer is not None:
            try:
                async with asyncio.timeout(POLL_S):
                    await behind.wait()
            except TimeoutError:
                pass  # nobody asked; look anyway
            behind.clear()
            seen = self._seen
            try:
                newest, rows = await self.read(partial(_newer, seen))
            except (PenstockError, SQLAlchemyError):
                continue  # whoever writes is told; this tries again
            if newest < seen:  # another server restored a backup: go on from the event that says so
                self._seen = newest - 1
                behind.set()
            self._hand_out(rows)
            if len(rows) == _POLL_ROWS:
                behind.set()

    def _read_here(self, fn: Callable[[Connection], T]) -> T:
        try:
            if self._reader is None:
                self._reader = self._reading.connect()
                driver(self._reader).execute("PRAGMA query_only=ON")
            raw = driver(self._reader)
            raw.execute("BEGIN")
            try:
                return fn(self._reader)
            finally:
                raw.execute("ROLLBACK")
        except DATABASE_ERRORS as exc:
            self._drop_reader()
            fail(self._reading, exc)

    def _drop_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def _read_remote(self, fn: Callable[[Connection], T]) -> T:
        for attempt in (1, 2):
            try:
                with self._reading.connect() as conn:
                    return fn(conn)
            except DATABASE_ERRORS as exc:
                if attempt == 1 and lost(self._reading, exc):
                    self._reading.dispose()  # the server restarted: every pooled connection is dead
                    continue
                fail(self._reading, exc)
        raise AssertionError("unreachable")


def _newer(seen: int, conn: Connection) -> tuple[int, list[EventRow]]:
    newest = events.last_seq(conn)
    return newest, events.page(conn, after=seen, limit=_POLL_ROWS) if newest > seen else []
