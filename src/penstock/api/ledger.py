"""The event log over HTTP: a page of it, a watch that never misses or repeats, and the proof that it is whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.engine import Connection

from penstock.api.sse import resume_after
from penstock.base.resource import Actor
from penstock.base.routes import Call, Endpoint, ServerEvent
from penstock.store import events
from penstock.store.events import EventRow
from penstock.store.store import Store
from penstock.tenancy.plan import visible

_PAGE = 500  # rows that a watch reads at a time; it holds no more than these
_Word = Field(None, max_length=200)
_Seq = Field(None, ge=0, le=2**63 - 1)


class Filter(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    after: int | None = _Seq
    kind: str | None = _Word
    project: str | None = _Word
    name: str | None = _Word
    reason: str | None = _Word
    actor: str | None = _Word


class Page(Filter):
    limit: int = Field(100, ge=1, le=500)
    newest: bool = False
    cursor: int | None = Field(None, ge=0, le=2**63 - 1, description="The answer's next_cursor; the same as `after`.")


def _projects(actor: Actor, query: Filter) -> str | Collection[str] | None:
    """Events of the fleet itself are for those who see all of it."""
    return query.project if query.project is not None else visible(actor)


class _Routes:
    def __init__(self, store: Store) -> None:
        self.store = store

    async def page(self, call: Call) -> dict[str, Any]:
        query: Page = call.query
        after = query.cursor if query.cursor is not None else query.after
        found = await self.store.read(
            lambda conn: _load(conn, call.actor, query, after, query.limit + 1, newest=query.newest)
        )
        more = len(found) > query.limit
        found = found[: query.limit]
        return {"items": [row.to_dict() for row in found], "next_cursor": str(found[-1].seq) if more else None}

    async def watch(self, call: Call) -> AsyncIterator[ServerEvent]:
        query: Filter = call.query
        after = resume_after(call.headers, query.after)
        if after is None:
            after = await self.store.read(events.last_seq)
        return self._follow(call.actor, query, after)

    async def _follow(self, actor: Actor, query: Filter, after: int) -> AsyncIterator[ServerEvent]:
        """Rows come from the database alone, so a slow reader costs one page; the listener only says when to look."""
        wake = asyncio.Event()
        stop = self.store.listen(lambda _rows: wake.set())
        try:
            while True:
                wake.clear()
                rows, head = await self.store.read(partial(_next_page, actor=actor, query=query, after=after))
                for row in rows:
                    yield ServerEvent(row.to_dict(), "event", str(row.seq))
                if len(rows) == _PAGE:
                    after = rows[-1].seq
                    continue
                after = max(after, head)
                await wake.wait()
        finally:
            stop()

    async def verify(self, _call: Call) -> dict[str, Any]:
        found = await self.store.read_long(events.verify)
        return {
            "ok": found.ok,
            "rows": found.rows,
            "first_bad_seq": found.first_bad_seq,
            "problem": found.problem,
            "head": {"seq": found.head.seq, "hash": found.head.hash},
        }


def _load(
    conn: Connection, actor: Actor, query: Filter, after: int | None, limit: int, *, newest: bool = False
) -> list[EventRow]:
    return events.page(
        conn,
        after=after,
        limit=limit,
        kind=query.kind,
        project=_projects(actor, query),
        name=query.name,
        reason=query.reason,
        actor=query.actor,
        newest_first=newest,
    )


def _next_page(conn: Connection, actor: Actor, query: Filter, after: int) -> tuple[list[EventRow], int]:
    """A page, and up to where the log was searched: both of one snapshot."""
    head = events.last_seq(conn)
    return _load(conn, actor, query, after, _PAGE), head


def endpoints(store: Store) -> Sequence[Endpoint]:
    do = _Routes(store)
    return [
        Endpoint("GET", "/api/v1/events", "events.read", do.page, "List events", query=Page),
        Endpoint("GET", "/api/v1/events/watch", "events.read", do.watch, "Follow events", query=Filter, kind="sse"),
        Endpoint("GET", "/api/v1/audit/verify", "audit.read", do.verify, "Verify the chain of events"),
    ]
