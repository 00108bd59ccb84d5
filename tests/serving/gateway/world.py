"""Replicas, callers and a gateway with the real Envoy, for the tests beside this."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from penstock.serving.gateway.publish import Publisher
from penstock.serving.gateway.spec import Backend, Gateway, Match, ServiceRoute, VersionRoute


def looped(test: Callable[[Path], Coroutine[None, None, None]]) -> Callable[[Path], None]:
    @functools.wraps(test)
    def run(tmp_path: Path) -> None:
        asyncio.run(test(tmp_path))

    return run


Answer = Callable[[str, Mapping[str, str]], Awaitable[tuple[int, bytes]]]


async def _ok(path: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
    return 200, b"{}"


@dataclass
class Upstream:
    """A replica as the gateway sees one; it notes what it is asked."""

    answer: Answer = _ok
    port: int = 0
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    writers: set[asyncio.StreamWriter] = field(default_factory=set)
    server: asyncio.Server | None = None

    async def start(self) -> Upstream:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in head[1:] if ": " in line)}
                await reader.readexactly(int(headers.get("content-length", 0)))
                self.seen.append((head[0].split(" ")[1], headers))
                status, body = await self.answer(head[0].split(" ")[1], headers)
                writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body))
                await writer.drain()
        self.writers.discard(writer)
        writer.close()

    async def die(self) -> None:
        """As by SIGKILL: its port refuses, its connections are cut."""
        assert self.server is not None
        self.server.close()
        for writer in list(self.writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    def backend(self) -> Backend:
        return Backend(str(self.port), "127.0.0.1", self.port)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def call(port: int, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        more = "".join(f"{key}: {value}\r\n" for key, value in {"host": "gateway", **(headers or {})}.items())
        writer.write(f"POST {path} HTTP/1.1\r\n{more}connection: close\r\ncontent-length: 2\r\n\r\n{{}}".encode())
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        found = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:] if line)}
        length = found.get("content-length")
        body = await reader.read() if length is None else await reader.readexactly(int(length))
        return int(lines[0].split(" ")[1]), found, body
    finally:
        writer.close()


@dataclass
class World:
    publisher: Publisher
    base: Gateway
    upstreams: list[Upstream] = field(default_factory=list)

    @property
    def port(self) -> int:
        return self.base.port

    async def upstream(self, answer: Answer = _ok) -> Upstream:
        self.upstreams.append(await Upstream(answer).start())
        return self.upstreams[-1]

    async def publish(self, *services: ServiceRoute) -> None:
        await self.publisher.publish(replace(self.base, services=services))

    async def call(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
        return await call(self.port, path, headers)


@contextlib.asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    publisher = Publisher(folder / "gateway", concurrency=1)
    await publisher.start()
    base = Gateway("127.0.0.1", free_port(), access_log=str(folder / "access.log"))
    here = World(publisher, base)
    try:
        yield here
    finally:
        await publisher.stop(grace=1.0)
        await publisher.close()
        for upstream in here.upstreams:
            await upstream.die()


def service(*upstreams: Upstream, name: str = "digits", **fields: object) -> ServiceRoute:
    versions = (VersionRoute(1, tuple(upstream.backend() for upstream in upstreams)),)
    whole = {"matches": (Match("", f"/default/{name}/"),), "versions": versions, **fields}
    return ServiceRoute("default", name, **whole)  # type: ignore[arg-type]


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.02)


async def is_(condition: Callable[[], bool]) -> bool:
    return condition()
