"""A replica that costs next to nothing, and callers that do: processes of serving_gateway.py.

`replica NAME DELAY_MS [WHERE]` answers each request with its name after a while, and `/count` with how many there were;
`load PORT PATH CONNECTIONS FILE` asks one request after the other on each connection until it is told to stop (SIGTERM), and
writes when each was sent, when it was answered, and how.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from array import array
from pathlib import Path
from typing import cast

import uvloop

FAILED = 255


class Replica(asyncio.Protocol):
    name = b""
    delay = 0.0
    count = 0
    leaving = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class
        self.left = b""

    def data_received(self, data: bytes) -> None:
        self.left += data
        while b"\r\n\r\n" in self.left:
            head, _, rest = self.left.partition(b"\r\n\r\n")
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            size = int(length or b"0")
            if len(rest) < size:
                return
            self.left = rest[size:]
            if head.startswith(b"GET /count"):
                self.answer(b"%d" % Replica.count)
                continue
            Replica.count += 1
            asyncio.get_running_loop().call_later(self.delay, self.answer, self.name)

    def answer(self, body: bytes) -> None:
        close = b"connection: close\r\n" if Replica.leaving else b""
        self.transport.write(b"HTTP/1.1 200 OK\r\n%scontent-length: %d\r\n\r\n%s" % (close, len(body), body))


async def replica(name: str, delay: str) -> None:
    Replica.name, Replica.delay = name.encode(), float(delay) / 1000
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    server = await loop.create_server(Replica, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    loop.add_signal_handler(signal.SIGTERM, told.set)
    await told.wait()
    Replica.leaving = True
    await asyncio.sleep(0.2)  # out of the routes for a while already: what it has is answered


class Caller(asyncio.Protocol):
    """One request after the other; a broken connection is a failed request, and is opened again."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.left = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class
        self.send()

    def send(self) -> None:
        self.sent = time.monotonic()
        self.transport.write(self.load.request)

    def data_received(self, data: bytes) -> None:
        self.left += data
        head, found, body = self.left.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        if not found or len(body) < int(length or b"0"):
            return
        self.left = b""
        self.load.note(self.sent, int(body[:1]) if head.startswith(b"HTTP/1.1 200") else FAILED)
        if self.load.over:
            self.sent = 0.0
            self.transport.close()
        else:
            self.send()

    def connection_lost(self, error: Exception | None) -> None:
        if self.sent:
            self.load.note(self.sent, FAILED)
        self.load.lost()


class Load:
    def __init__(self, port: int, path: str) -> None:
        self.port = port
        body = b'{"inputs": []}'
        self.request = b"POST %s HTTP/1.1\r\nhost: gateway\r\ncontent-length: %d\r\n\r\n%s" % (
            path.encode(),
            len(body),
            body,
        )
        self.sent, self.ended, self.version = array("d"), array("d"), bytearray()
        self.over = False
        self.open = 0

    def note(self, sent: float, version: int) -> None:
        self.sent.append(sent)
        self.ended.append(time.monotonic())
        self.version.append(version)

    def lost(self) -> None:
        self.open -= 1
        if not self.over:
            self.opening = asyncio.ensure_future(self.connect())

    async def connect(self) -> None:
        self.open += 1
        await asyncio.get_running_loop().create_connection(lambda: Caller(self), "127.0.0.1", self.port)

    def stop(self) -> None:
        self.over = True

    def write(self, file: Path) -> None:
        file.write_bytes(self.sent.tobytes() + self.ended.tobytes() + bytes(self.version))


async def load(port: str, path: str, connections: str, file: str) -> None:
    work = Load(int(port), path)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, work.stop)
    await asyncio.gather(*(work.connect() for _ in range(int(connections))))
    print("begun", flush=True)
    while work.open:
        await asyncio.sleep(0.01)
    work.write(Path(file))


if __name__ == "__main__":
    uvloop.run(replica(*sys.argv[2:]) if sys.argv[1] == "replica" else load(*sys.argv[2:]))
