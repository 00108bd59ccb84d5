"""HTTP/1.1 as the activator and the comparator speak it: h11 decides what the bytes mean, asyncio moves them.

Bodies are streamed both ways and never gathered here. Whoever sends nonsense gets ``Broken``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

import h11

READ = 64 << 10
HEAD_BYTES = 64 << 10  # of a request line and its headers together
BUFFER = 16 << 10  # a stream's reader stops reading at twice that: what is held costs no more
CONNECT_S = 2.0

Header = tuple[bytes, bytes]
Role = type[h11.CLIENT] | type[h11.SERVER]
# Of one connection alone (RFC 9110, 7.6.1): never passed on.
HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
)


class Broken(Exception):
    """The other side ended, or spoke no HTTP. ``status``: what a caller may be told."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class NoConnection(Exception):
    """Nothing was sent: the same request may go elsewhere."""


def onward(headers: Iterable[Header]) -> list[Header]:
    """Without what belongs to one connection, and what that connection's ``Connection`` header names."""
    kept = list(headers)
    named = {one.strip().lower() for key, value in kept if key == b"connection" for one in value.split(b",")}
    return [(key, value) for key, value in kept if key not in HOP and key not in named]


class Wire:
    """One connection, either end of it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, role: Role) -> None:
        self._reader = reader
        self._writer = writer
        self.state = h11.Connection(role, max_incomplete_event_size=HEAD_BYTES)
        self.sending: asyncio.Task[None] | None = None

    async def event(self) -> h11.Event | type[h11.PAUSED]:
        """The next that the other side says. Raises Broken."""
        while True:
            try:
                found = self.state.next_event()
            except h11.RemoteProtocolError as error:
                raise Broken(str(error), error.error_status_hint) from error
            if found is not h11.NEED_DATA:
                return found  # type: ignore[return-value] # h11 names its sentinels as one another's type
            if self.state.they_are_waiting_for_100_continue:
                await self.send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))
            await self.feed()

    async def feed(self) -> bool:
        """Whether something came; not: the other side has ended."""
        try:
            data = await self._reader.read(READ)
        except OSError:
            data = b""
        self.state.receive_data(data)
        return bool(data)

    async def send(self, event: h11.Event) -> None:
        """Raises Broken where the other side is gone; waits where it reads slowly."""
        try:
            data = self.state.send(event)
        except h11.LocalProtocolError as error:
            raise Broken(str(error), 502) from error
        if data:
            try:
                self._writer.write(data)
                await self._writer.drain()
            except OSError as error:
                raise Broken(str(error), 502) from error

    async def body(self) -> AsyncIterator[bytes]:
        """What is left of the other side's body. Raises Broken."""
        while True:
            event = await self.event()
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return
            else:
                raise Broken("the connection ended in a body", 502)

    async def close(self) -> None:
        if self.sending is not None:
            self.sending.cancel()
            await asyncio.wait([self.sending])
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1):
                await self._writer.wait_closed()

    def reusable(self) -> bool:
        """Whether another request may follow; the connection is then ready for it."""
        if self.state.our_state is not h11.DONE or self.state.their_state is not h11.DONE:
            return False
        self.state.start_next_cycle()
        return True

    def abort(self) -> None:
        self._writer.transport.abort()


@dataclass(frozen=True, slots=True)
class Asked:
    method: bytes
    target: bytes
    headers: tuple[Header, ...]


async def connect(address: str, port: int) -> Wire:
    """Raises NoConnection."""
    try:
        async with asyncio.timeout(CONNECT_S):
            reader, writer = await asyncio.open_connection(address, port, limit=BUFFER)
    except OSError as error:  # TimeoutError is one
        raise NoConnection(f"{address}:{port} takes no connection: {error}") from error
    return Wire(reader, writer, h11.CLIENT)


async def ask(wire: Wire, asked: Asked, body: AsyncIterator[bytes]) -> h11.Response:
    """Send it and read the head of the answer, at once: a server may answer before it has read everything. Raises Broken."""
    await wire.send(h11.Request(method=asked.method, target=asked.target, headers=list(asked.headers)))
    sending = asyncio.create_task(_send_body(wire, body))
    wire.sending = sending
    while True:
        event = await wire.event()
        if isinstance(event, h11.Response):
            return event
        if not isinstance(event, h11.InformationalResponse):
            raise Broken("it ended without an answer", 502)


async def _send_body(wire: Wire, body: AsyncIterator[bytes]) -> None:
    try:
        async for data in body:
            if not await _sent(wire, h11.Data(data=data)):
                return
        await _sent(wire, h11.EndOfMessage())
    except Broken:  # whoever gave us the body is gone, so what was begun is not ended either
        wire.abort()


async def _sent(wire: Wire, event: h11.Event) -> bool:
    """Not: it reads no more. Its answer, if it has one, says why."""
    try:
        await wire.send(event)
    except Broken:
        return False
    return True
