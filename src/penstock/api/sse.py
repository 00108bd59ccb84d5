"""Server-sent events (WHATWG HTML, section 9.2): frames with ids, a comment now and then so that nobody gives up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping

from pydantic_core import to_json

from penstock.base.errors import InvalidInput, PenstockError, Problem
from penstock.base.routes import ServerEvent

MEDIA_TYPE = "text/event-stream"
HEARTBEAT_S = 15.0  # shorter than the idle time-outs of the usual proxies (30 s and more)
_RETRY = b"retry: 2000\n\n"  # milliseconds that a browser waits before it comes back
_HEARTBEAT = b":\n\n"
_LARGEST_ID = 2**63 - 1


async def frames(events: AsyncIterator[ServerEvent], heartbeat_s: float = HEARTBEAT_S) -> AsyncGenerator[bytes, None]:
    """One frame per event, one event asked for at a time: nothing is buffered here."""
    yield _RETRY
    pending: asyncio.Task[ServerEvent | None] | None = None
    try:
        while True:
            pending = pending or asyncio.create_task(_next(events))
            done, _ = await asyncio.wait({pending}, timeout=heartbeat_s)
            if not done:
                yield _HEARTBEAT
                continue
            event, pending = pending.result(), None
            if event is None:
                return
            yield encode(event)
    except PenstockError as exc:
        yield encode(ServerEvent(exc.to_dict(), "error"))
    finally:
        if pending is not None:
            pending.cancel()
            await asyncio.wait({pending})
        if isinstance(events, AsyncGenerator):
            await events.aclose()


async def _next(events: AsyncIterator[ServerEvent]) -> ServerEvent | None:
    return await anext(events, None)


def encode(event: ServerEvent) -> bytes:
    """``data`` is JSON on one line, so that no part of it can be taken for another field."""
    head = f"event: {_line(event.event)}\n" if event.event != "message" else ""
    if event.id is not None:
        head += f"id: {_line(event.id)}\n"
    return head.encode() + b"data: " + to_json(event.data, inf_nan_mode="null") + b"\n\n"


def _line(text: str) -> str:
    return text.replace("\r", " ").replace("\n", " ").replace("\x00", "")


def resume_after(headers: Mapping[str, str], after: int | None) -> int | None:
    """What the stream goes on after: ``Last-Event-ID`` before ``?after=``. Raises InvalidInput."""
    text = headers.get("last-event-id", "").strip()
    if not text:
        return after
    if not text.isascii() or not text.isdigit() or len(text) > 19 or int(text) > _LARGEST_ID:
        problem = Problem("header.Last-Event-ID", "must be the id of an event of this stream, a whole number")
        raise InvalidInput("cannot resume there", details=[problem])
    return int(text)
