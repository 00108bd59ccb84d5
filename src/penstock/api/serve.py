"""The server's socket and its loop: uvicorn, with a bound on what a connection may send before it has asked something."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
from collections.abc import Iterator
from typing import Any

from uvicorn import Config, Server
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from penstock.api.asgi import App
from penstock.base.errors import Conflict, InvalidInput
from penstock.base.settings import Settings

_BACKLOG = 1024
HEADER_BYTES = 64 * 1024  # request line and headers together
HEADER_S = 15.0  # how long they may take
_KEEP_ALIVE_S = 75  # longer than clients keep idle connections, so that the client closes first
_SHUTDOWN_S = 3  # for requests under way; streams are ended at once
_FRAME_BYTES = 1 << 20  # the largest WebSocket message
_TICK_S = 1.0
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_LOOPBACK = ("localhost", "::1")


def check_exposure(settings: Settings) -> None:
    """A server that others can reach speaks TLS, or was told not to. Raises InvalidInput."""
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise InvalidInput("--tls-cert and --tls-key belong together", hint="Give both, or neither.")
    if settings.tls_cert or settings.insecure or is_loopback(settings.host):
        return
    raise InvalidInput(
        f"--host {settings.host} can be reached from other machines, and tokens would cross the network in the clear",
        hint="Give --tls-cert and --tls-key, or say --insecure if a proxy in front does TLS.",
    )


def is_loopback(host: str) -> bool:
    return host in _LOOPBACK or host.startswith("127.")


def bind(host: str, port: int) -> socket.socket:
    """A listening socket (port 0: a free one). Raises Conflict (who holds the port, where that can be known)."""
    if not 0 <= port <= 65535:
        raise InvalidInput(f"{port} is not a port", hint="Give --port a number from 0 to 65535; 0 takes a free one.")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, OverflowError, UnicodeError) as exc:
        raise InvalidInput(f"cannot listen on {host!r}: {exc}", hint="Give --host an address of this machine.") from exc
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError as exc:
        sock.close()
        raise _not_bound(host, port, exc) from exc
    return sock


def _not_bound(host: str, port: int, exc: OSError) -> Exception:
    if exc.errno == errno.EADDRINUSE:
        holder = who_listens(port)
        by = f" by {holder}" if holder else ""
        return Conflict(
            f"port {port} of {host} is taken{by}", hint="Give another one with --port; 0 takes one that is free."
        )
    if exc.errno == errno.EACCES:
        return InvalidInput(f"port {port} may not be taken by this user", hint="Give a --port above 1023.")
    return InvalidInput(
        f"cannot listen on {host} port {port}: {exc.strerror}", hint="Give --host an address of this machine."
    )


def who_listens(port: int) -> str | None:
    """``"pid 123 (python penstock up)"``; None where the kernel does not tell us (another user's process)."""
    inodes = set(_listening_inodes(port))
    for entry in os.listdir("/proc") if inodes else ():
        if not entry.isdigit():
            continue
        try:
            links = (os.readlink(f"/proc/{entry}/fd/{fd}") for fd in os.listdir(f"/proc/{entry}/fd"))
            if inodes.isdisjoint(links):
                continue
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                words = file.read(4096).replace(b"\0", b" ").decode("utf-8", "replace").strip()
        except OSError:
            continue  # it has ended, or is not ours to look into
        return f"pid {entry} ({words[:80]})"
    return None


def _listening_inodes(port: int) -> Iterator[str]:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table, encoding="ascii") as file:
                rows = [line.split() for line in file][1:]
        except OSError:
            continue
        for row in rows:
            if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port:  # 0A: LISTEN
                yield f"socket:[{row[9]}]"


class _Protocol(HttpToolsProtocol):
    """uvicorn's, which bounds neither the size of headers nor the time that they take."""

    _heard = 0  # bytes of the request line and headers that are coming
    _in_body = False
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # because TCP gives asyncio.Transport, as uvicorn says
        super().connection_made(transport)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._in_body:
            self._heard += len(data)
        super().data_received(data)
        if self._heard > HEADER_BYTES and not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        self._await_headers()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._stop_timer()
        self._heard, self._in_body = 0, True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._heard, self._in_body = 0, False
        super().on_message_complete()

    def _await_headers(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(HEADER_S, self._too_slow)

    def _too_slow(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Quiet(Server):
    """Signals are ``app.py``'s business, and an idle server wakes once a second, not ten times."""

    stopping: asyncio.Event

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        counter = 0
        while not await self.on_tick(counter):
            counter = (counter + 10) % 864000  # on_tick renews the Date header at multiples of ten
            try:
                async with asyncio.timeout(_TICK_S):
                    await self.stopping.wait()
            except TimeoutError:
                pass


def url_of(sock: socket.socket, settings: Settings) -> str:
    """The address that a client on this machine uses."""
    scheme = "https" if settings.tls_cert else "http"
    shown = "127.0.0.1" if settings.host in ("0.0.0.0", "::", "") else settings.host  # noqa: S104 - not bound here
    return f"{scheme}://{f'[{shown}]' if ':' in shown else shown}:{sock.getsockname()[1]}"


class HttpServer:
    """Serves ``app`` on ``sock`` from ``start`` to ``stop``; both in the running loop."""

    def __init__(self, app: App, sock: socket.socket, settings: Settings) -> None:
        self.app = app
        self.port: int = sock.getsockname()[1]
        self._sock = sock
        try:
            self._server = _Quiet(_config(app, settings))
        except InvalidInput:
            sock.close()
            raise
        self._server.stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.url = url_of(sock, settings)

    async def start(self) -> None:
        """Returns once requests are answered."""
        self._server.lifespan = self._server.config.lifespan_class(self._server.config)
        await self._server.startup(sockets=[self._sock])
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        await self._server.main_loop()
        await self._server.shutdown(sockets=[self._sock])

    async def stop(self) -> None:
        """No new connections, streams ended, requests under way given a moment."""
        self.app.close()
        self._server.should_exit = True
        self._server.stopping.set()
        if self._task is not None:
            await self._task
        else:
            self._sock.close()


def _config(app: App, settings: Settings) -> Config:
    options: dict[str, Any] = {}
    if settings.tls_cert:
        options = {"ssl_certfile": settings.tls_cert, "ssl_keyfile": settings.tls_key}
    config = Config(
        app,
        http=_Protocol,
        ws="websockets-sansio",
        ws_max_size=_FRAME_BYTES,
        ws_per_message_deflate=False,
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # whoever asks is whoever the token says, at whatever address
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_SHUTDOWN_S,
        backlog=_BACKLOG,
        **options,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as exc:
        raise InvalidInput(f"the TLS certificate or key cannot be used: {exc}", hint="Both are PEM files.") from exc
    return config
