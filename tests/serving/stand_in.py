"""A replica for tests: HTTP/1.1 by h11, with answers that a test gives it. And a caller."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import h11

from penstock.serving.gateway.spec import Backend
from penstock.serving.wire import Asked, Header, Wire, ask, connect


@dataclass(slots=True)
class Seen:
    method: bytes
    target: bytes
    headers: dict[bytes, bytes]
    body: bytes


@dataclass(slots=True)
class Answer:
    """``chunks``: with a pause before each; ``cut``: the connection ends where the body should."""

    status: int = 200
    headers: tuple[Header, ...] = ()
    body: bytes | None = b"{}"
    chunks: tuple[tuple[float, bytes], ...] = ()
    cut: bool = False


Behave = Callable[[Seen], Awaitable[Answer]]


async def echo(seen: Seen) -> Answer:
    return Answer(body=json.dumps({"path": seen.target.decode(), "bytes": len(seen.body)}).encode())


@dataclass(slots=True)
class Replica:
    backend: Backend
    seen: list[Seen] = field(default_factory=list)
    now: int = 0
    most: int = 0


@contextlib.asynccontextmanager
async def replica(behave: Behave = echo, name: str = "r1", port: int = 0) -> AsyncIterator[Replica]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = Wire(reader, writer, h11.SERVER)
        found.now += 1
        found.most = max(found.most, found.now)
        try:
            while await _one(wire, found, behave):
                pass
        except Exception:  # noqa: BLE001 - whatever a test's caller did to it
            wire.abort()
        finally:
            found.now -= 1
            await wire.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    found = Replica(Backend(name, "127.0.0.1", server.sockets[0].getsockname()[1]))
    try:
        yield found
    finally:
        server.close()


async def _one(wire: Wire, replica: Replica, behave: Behave) -> bool:
    request = await wire.event()
    if not isinstance(request, h11.Request):
        return False
    body = b"".join([data async for data in wire.body()])
    seen = Seen(request.method, request.target, dict(request.headers), body)
    replica.seen.append(seen)
    answer = await behave(seen)
    length: list[Header] = []
    if not answer.chunks and not answer.cut and answer.body is not None:
        length = [(b"content-length", str(len(answer.body)).encode())]
    await wire.send(h11.Response(status_code=answer.status, headers=[*answer.headers, *length]))
    if not answer.chunks and answer.body:
        await wire.send(h11.Data(data=answer.body))
    for pause, chunk in answer.chunks:
        await asyncio.sleep(pause)
        await wire.send(h11.Data(data=chunk))
    if answer.cut:
        wire.abort()
        return False
    await wire.send(h11.EndOfMessage())
    if wire.state.our_state is not h11.DONE or wire.state.their_state is not h11.DONE:
        return False
    wire.state.start_next_cycle()
    return True


@dataclass(slots=True)
class Got:
    status: int
    headers: dict[bytes, bytes]
    body: bytes


async def call(
    port: int,
    target: str,
    headers: tuple[Header, ...] = (),
    body: bytes | AsyncIterator[bytes] = b"",
    method: str = "POST",
) -> Got:
    """One request of its own connection."""

    async def whole() -> AsyncIterator[bytes]:
        if isinstance(body, bytes):
            if body:
                yield body
            return
        async for chunk in body:
            yield chunk

    length = (
        (b"content-length", str(len(body)).encode()) if isinstance(body, bytes) else (b"transfer-encoding", b"chunked")
    )
    wire = await connect("127.0.0.1", port)
    try:
        asked = Asked(method.encode(), target.encode(), ((b"host", b"test"), length, *headers))
        answer = await ask(wire, asked, whole())
        got = b"".join([data async for data in wire.body()])
        return Got(answer.status_code, dict(answer.headers), got)
    finally:
        await wire.close()
