"""``python -m penstock.serving.activator --port N --folder F``: holds the requests of services that have no replica.

Envoy sends to it only while none of a version's replicas is there: it is the endpoint of the lower priority. It says at once,
on a Unix socket, that somebody waits; the server starts a replica and writes its orders anew; those who wait then go there,
in their order and no more at once than a replica is to be given. It is one process for all services, needs no server to
go on, and ends, once asked to, when nobody waits any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import resource
import signal
import socket
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import h11
import uvloop

from penstock.serving.hold import Line, Ticket
from penstock.serving.orders import SERVICE_HEADER, VERSION_HEADER, Folder, Orders, named
from penstock.serving.processes import told
from penstock.serving.wire import BUFFER, Asked, Broken, NoConnection, Wire, ask, connect, onward

log = logging.getLogger("penstock.activator")

LOOK_S = 0.02  # while somebody waits: how often its orders are looked at
SAY_S = 0.5  # while somebody waits: how often that is said again
KEEP_BODY = 64 << 10  # of a body is read while its request waits; the rest stays where it is
KEEP_BODIES = 64 << 20  # of all of them together
IDLE_S = 75.0  # a connection without a whole request's head is kept so long
LINGER_S, LINGER_BYTES = 1.0, 1 << 20  # of a request that was refused: so much is still read
BACKLOG = 4096
RETRY_AFTER = b"2"
GRPC = b"application/grpc"
PUSHBACK_MS = {True: b"100", False: b"2000"}  # gRPC, whether a replica is there: when a caller is to try again
GRPC_STATUS = {404: 5, 413: 8, 503: 14, 504: 4}  # its words for what is answered here, else 13
SOCKET = "activator.sock"
ORDERS = "orders"


@dataclass(eq=False, slots=True)
class Service:
    """``go``: what each who waits is told by."""

    name: tuple[str, str]
    orders: Orders
    stamp: tuple[int, int] | None
    line: Line = field(default_factory=Line)
    go: dict[Ticket, asyncio.Event] = field(default_factory=dict)
    watch: asyncio.Task[None] | None = None

    @property
    def id(self) -> str:
        return "/".join(self.name)

    def take(self, orders: Orders) -> None:
        self.orders = orders
        self.line.requests, self.line.time = orders.hold_requests, orders.hold_time
        self.line.concurrency = max(1, orders.concurrency)
        self.line.ready = orders.versions


class Refused(Exception):
    """Answered here. ``again``: worth trying later."""

    def __init__(self, status: int, message: str, *, again: bool = False, ready: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.again = again
        self.ready = ready  # a replica is there by now


class Activator:
    def __init__(self, folder: Path) -> None:
        self._folder = Folder(folder / ORDERS)
        self._services: dict[tuple[str, str], Service] = {}
        self._listeners: set[asyncio.StreamWriter] = set()
        self._room = Room(KEEP_BODIES)
        self.ending = False
        self.open = 0  # requests that have no whole answer yet
        self._idle: set[Wire] = set()

    # ---- who waits

    def service(self, headers: dict[bytes, bytes]) -> tuple[Service, int]:
        """Whose request it is, and of which version. Raises Refused."""
        key = named(headers.get(SERVICE_HEADER.encode(), b"").decode("latin-1"))
        version = headers.get(VERSION_HEADER.encode(), b"")
        if key is None or not version.isdigit() or len(version) > 9:
            raise Refused(404, "no service is named: requests come here by the gateway")
        found = self._looked(key)
        if found is None:
            raise Refused(404, f"there is no service {'/'.join(key)}")
        return found, int(version)

    def _looked(self, key: tuple[str, str]) -> Service | None:
        """The service with its orders as they are now; None: it is no more."""
        found = self._services.get(key)
        stamp = self._folder.stamp(*key)
        if stamp is None:
            if found is not None and found.line.idle:
                del self._services[key]
            return None
        if found is None or found.stamp != stamp:
            orders = self._folder.get(*key)
            if orders is None:
                return found
            if found is None:
                found = self._services[key] = Service(key, orders, stamp)
            found.stamp = stamp
            found.take(orders)
        return found

    async def turn(self, service: Service, ticket: Ticket) -> None:
        """Returns once ``ticket`` may go. Raises Refused when that takes too long."""
        if ticket.backend is None and not ticket.late:
            service.go[ticket] = asyncio.Event()
            try:
                if service.watch is None or service.watch.done():
                    service.watch = asyncio.create_task(self._watch(service))
                await service.go[ticket].wait()
            finally:
                del service.go[ticket]
        if ticket.late:
            raise Refused(503, f"no replica of {service.id} was ready in time", again=True)

    def step(self, service: Service) -> None:
        for ticket in service.line.step(time.monotonic()):
            event = service.go.get(ticket)
            if event is not None:  # else it does not wait yet: it will see its backend, or that it is late
                event.set()

    async def _watch(self, service: Service) -> None:
        """As long as somebody waits: look at the orders, and say that there is demand."""
        said = 0.0
        while service.line.held:
            now = time.monotonic()
            if now - said >= SAY_S:
                said = now
                self._say(service)
            if self._looked(service.name) is None:
                service.line.give_up()
            self.step(service)
            await asyncio.sleep(LOOK_S)
        self._say(service)

    # ---- the server's ear

    def _say(self, service: Service) -> None:
        line = self._line(service)
        for writer in self._listeners:
            if writer.transport.get_write_buffer_size() < BUFFER:  # one that does not read is told later
                writer.write(line)

    @staticmethod
    def _line(service: Service) -> bytes:
        project, name = service.name
        return json.dumps({"project": project, "name": name, "held": service.line.held}).encode() + b"\n"

    async def listener(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A server: told who waits now, and from then on."""
        self._listeners.add(writer)
        try:
            for service in self._services.values():
                if service.line.held:
                    writer.write(self._line(service))
            while await reader.read(BUFFER):
                pass
        except OSError:
            pass
        finally:
            self._listeners.discard(writer)
            writer.close()

    # ---- requests

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = Wire(reader, writer, h11.SERVER)
        try:
            while await self._one(wire):
                pass
        except (Broken, TimeoutError):
            wire.abort()
        finally:
            await wire.close()

    async def _one(self, wire: Wire) -> bool:
        """One request of a connection; whether another may follow."""
        self._idle.add(wire)
        try:
            async with asyncio.timeout(IDLE_S):
                request = await wire.event()
        except Broken as error:
            await _refuse(wire, Refused(error.status, str(error)))
            return False
        finally:
            self._idle.discard(wire)
        if not isinstance(request, h11.Request):
            return False
        self.open += 1
        try:
            await self._answered(wire, request)
        finally:
            self.open -= 1
        return not self.ending and wire.reusable()

    async def _answered(self, wire: Wire, request: h11.Request) -> None:
        headers = dict(request.headers)
        try:
            service, version = self.service(headers)
            most = service.orders.max_body
            size = headers.get(b"content-length", b"0")
            if size.isdigit() and int(size) > most:
                raise Refused(413, f"a body may have {most} bytes here")
            ticket = service.line.arrive(version, time.monotonic())
            if ticket is None:
                message = f"{service.line.requests} requests wait for a replica of {service.id} already"
                raise Refused(503, message, again=True)
            body = Body(wire, most, self._room)
            try:
                await self._served(wire, request, service, ticket, body)
            finally:
                body.forget()
                service.line.leave(ticket)
                self.step(service)
        except Refused as refused:
            await _refuse(wire, refused, grpc=_grpc(request))

    async def _served(self, wire: Wire, request: h11.Request, service: Service, ticket: Ticket, body: Body) -> None:
        while True:
            if ticket.backend is None:
                await _unless_gone(body, self.turn(service, ticket))
            if ticket.backend is None:
                raise Refused(503, f"no replica of {service.id} was ready in time", again=True)
            if _grpc(request):
                words = f"a replica of {service.id} was started for this call and is ready: call again"
                raise Refused(503, words, again=True, ready=True)
            try:
                other = await connect(ticket.backend.address, ticket.backend.port)
            except NoConnection as error:
                log.info("%s: %s: %s", service.id, ticket.backend.replica, error)
                service.line.back(ticket, time.monotonic())
                continue
            break
        try:
            answer = await self._asked(other, request, service, body)
            await self._carried(wire, other, answer, service.orders.timeout)
        finally:
            await other.close()

    @staticmethod
    async def _asked(other: Wire, request: h11.Request, service: Service, body: Body) -> h11.Response:
        headers = onward(request.headers)
        if any(key == b"transfer-encoding" for key, _ in request.headers):
            headers.append((b"transfer-encoding", b"chunked"))
        try:
            async with asyncio.timeout(service.orders.timeout):
                return await ask(other, Asked(request.method, request.target, tuple(headers)), body.rest())
        except TimeoutError as error:
            raise Refused(504, f"the replica has not answered in {service.orders.timeout:g} s") from error
        except Broken as error:
            if body.too_long:
                raise Refused(413, f"a body may have {service.orders.max_body} bytes here") from error
            raise Refused(502, f"the replica broke off: {error}") from error

    async def _carried(self, wire: Wire, other: Wire, answer: h11.Response, limit: float) -> None:
        """What comes after the head can only be broken off, where the replica breaks off."""
        headers = onward(answer.headers)
        if self.ending:
            headers.append((b"connection", b"close"))
        await wire.send(h11.Response(status_code=answer.status_code, headers=headers, reason=answer.reason))
        chunks = other.body()
        while True:
            async with asyncio.timeout(limit):
                data = await anext(chunks, None)
            if data is None:
                break
            await wire.send(h11.Data(data=data))
        await wire.send(h11.EndOfMessage())

    async def drain(self) -> None:
        """Returns once nobody has an unanswered request here."""
        self.ending = True
        for writer in tuple(self._listeners):
            writer.close()
        for wire in tuple(self._idle):
            wire.abort()
        while self.open:
            await asyncio.sleep(LOOK_S)


class Room:
    """How many bytes of all bodies that wait are kept."""

    def __init__(self, most: int) -> None:
        self.left = most

    def take(self, size: int) -> None:
        self.left -= size

    def give(self, size: int) -> None:
        self.left += size


class Body:
    """A request's body: what was read of it while it waited, then the rest."""

    def __init__(self, wire: Wire, most: int, room: Room) -> None:
        self._wire = wire
        self._most = most
        self._room = room
        self._kept: list[bytes] = []
        self._size = 0
        self._held = 0
        self._whole = False
        self.too_long = False

    async def ahead(self) -> None:
        """Read on while there is room, then see whether its caller is still there. Raises Broken once it is not."""
        while not self._whole and self._held < KEEP_BODY and self._room.left > 0:
            data = await self._next()
            if data is not None:
                self._kept.append(data)
                self._held += len(data)
                self._room.take(len(data))
        if self._whole and not await self._wire.feed():
            raise Broken("its caller is gone")

    async def rest(self) -> AsyncIterator[bytes]:
        kept, self._kept = self._kept, []
        for data in kept:
            yield data
        self.forget()
        while not self._whole:
            more = await self._next()
            if more is not None:
                yield more

    def forget(self) -> None:
        self._kept = []
        self._room.give(self._held)
        self._held = 0

    async def _next(self) -> bytes | None:
        event = await self._wire.event()
        if isinstance(event, h11.Data):
            self._size += len(event.data)
            if self._size > self._most:
                self.too_long = True
                raise Broken("its body is too long", 413)
            return bytes(event.data)
        if not isinstance(event, h11.EndOfMessage):
            raise Broken("its caller is gone")
        self._whole = True
        return None


async def _unless_gone(body: Body, turn: Coroutine[object, object, None]) -> None:
    """Wait for one's turn and read, of the body, what may be kept. Raises Broken when its caller is gone, Refused when it is late."""
    waiting = asyncio.create_task(turn)
    gone = asyncio.create_task(body.ahead())
    try:
        done, _ = await asyncio.wait((waiting, gone), return_when=asyncio.FIRST_COMPLETED)
        if gone in done and waiting not in done:
            gone.result()  # it has read what may be kept
            await asyncio.wait((waiting,))
        waiting.result()
    finally:
        for task in (waiting, gone):
            task.cancel()
        await asyncio.gather(waiting, gone, return_exceptions=True)


def _grpc(request: h11.Request) -> bool:
    """A gRPC call, that the gateway brings as HTTP/1.1: it is held like any, but only told that it may come again."""
    return any(key == b"content-type" and value.startswith(GRPC) for key, value in request.headers)


def _words(refused: Refused, *, grpc: bool) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body. gRPC: a status of its own in the headers, and no body ("Trailers-Only" of its protocol)."""
    if grpc:
        code = GRPC_STATUS.get(refused.status, 13)
        headers = [(b"content-type", GRPC), (b"grpc-status", str(code).encode())]
        headers.append((b"grpc-message", quote(str(refused)).encode()))
        if refused.again:
            headers.append((b"grpc-retry-pushback-ms", PUSHBACK_MS[refused.ready]))
        return 200, headers, b""
    headers = [(b"content-type", b"application/json")]
    if refused.again:
        headers.append((b"retry-after", RETRY_AFTER))
    return refused.status, headers, json.dumps({"error": str(refused)}).encode() + b"\n"


async def _refuse(wire: Wire, refused: Refused, *, grpc: bool = False) -> None:
    """Answer, then read a little of what still comes: closing at once could take the answer away from who still sends."""
    if wire.state.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
        return
    status, headers, text = _words(refused, grpc=grpc)
    headers.append((b"content-length", str(len(text)).encode()))
    if wire.state.their_state is not h11.DONE:
        headers.append((b"connection", b"close"))
    await wire.send(h11.Response(status_code=status, headers=headers))
    await wire.send(h11.Data(data=text))
    await wire.send(h11.EndOfMessage())
    with contextlib.suppress(TimeoutError, Broken):
        async with asyncio.timeout(LINGER_S):
            left = LINGER_BYTES
            while wire.state.their_state is h11.SEND_BODY and left > 0:
                event = await wire.event()
                left -= len(event.data) if isinstance(event, h11.Data) else 0


async def serve(host: str, port: int, folder: Path) -> None:
    activator = Activator(folder)
    door = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # its successor listens before it has ended
    door.bind((host, port))
    requests = await asyncio.start_server(activator.connection, sock=door, limit=BUFFER, backlog=BACKLOG)
    ear = await asyncio.start_unix_server(activator.listener, sock=unix_listener(folder, SOCKET))
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    await asked.wait()
    requests.close()
    ear.close()
    await activator.drain()


def unix_listener(folder: Path, name: str) -> socket.socket:
    """By way of the folder's descriptor: a path to a Unix socket may have but 107 bytes."""
    home = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        (folder / name).unlink(missing_ok=True)
        found = socket.socket(socket.AF_UNIX)
        found.bind(f"/proc/self/fd/{home}/{name}")
        return found
    finally:
        os.close(home)


def more_files() -> None:
    """As many open connections as the system allows it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    arguments = told("penstock.serving.activator", "penstock-activ")
    more_files()
    gc.set_threshold(50_000, 20, 100)  # ten thousand who wait are many objects to look through, and none is garbage
    arguments.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    uvloop.run(serve(arguments.host, arguments.port, arguments.folder))


if __name__ == "__main__":
    main()
