"""The front process: sockets, signals, and the order in which things begin and end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from uvicorn import Config, Server

from penstock.serving.otlp import Exporter
from penstock.serving.runtimes.onnx.connection import Connection
from penstock.serving.runtimes.onnx.remote import Remote
from penstock.serving.runtimes.onnx.repository import Repository
from penstock.serving.runtimes.onnx.version import Limits
from penstock.serving.runtimes.onnx.web import Web

log = logging.getLogger("penstock.onnx")
NOT_BOUND = 6  # exit status
_BACKLOG = 2048
_KEEP_ALIVE_S = 75
_TICK_S = 1.0


@dataclass(frozen=True, slots=True)
class Options:
    """The command line. ``grpc`` None: not served."""

    folder: str | None
    named: dict[tuple[str, str], str]
    host: str
    http: int
    grpc: int | None
    limits: Limits
    grace: float
    otlp: tuple[str, int] | None = None  # where spans are sent


class _Uvicorn(Server):
    """Signals are ours, and an idle server wakes once a second."""

    stopping: asyncio.Event

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        counter = 0
        while not await self.on_tick(counter):
            counter = (counter + 10) % 864000
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):
                    await self.stopping.wait()


def bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock


async def run(options: Options, sock: socket.socket) -> int:
    """Serve until SIGTERM or SIGINT; then answer what is there."""
    repository = Repository(options.folder, options.named, options.limits)
    repository.start_all()
    web = Web(repository)
    if options.otlp is not None:
        web.exporter = Exporter(*options.otlp, "penstock-onnx")
        web.exporter.start()
    config = Config(
        web,
        http=Connection,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, int(options.grace)),
        backlog=_BACKLOG,
    )
    config.load()
    server = _Uvicorn(config)
    server.stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stopping.set)
    remote = None
    if options.grpc is not None:
        remote = Remote(web)
        try:
            await remote.start(f"{options.host}:{options.grpc}")
        except RuntimeError:
            log.error("cannot listen on %s port %d, for gRPC: it is taken", options.host, options.grpc)
            sock.close()
            await repository.close(0)
            return NOT_BOUND
    server.lifespan = config.lifespan_class(config)
    await server.startup(sockets=[sock])
    told = f"HTTP on {options.host}:{sock.getsockname()[1]}"
    log.info("%s%s", told, f", gRPC on port {remote.port}" if remote is not None else "")
    serving = asyncio.create_task(server.main_loop())
    await server.stopping.wait()
    web.stopping = True
    server.should_exit = True
    await serving
    stops = [server.shutdown(sockets=[sock])]
    if remote is not None:
        stops.append(remote.stop(options.grace))
    await asyncio.gather(*stops)
    await repository.close(options.grace)
    if web.exporter is not None:
        await web.exporter.close()
    log.info("stopped")
    return 0
