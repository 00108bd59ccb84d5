"""uvicorn's HTTP connection: its headers bounded in size and time, its answers sent in one piece."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_BYTES = 64 * 1024
HEADER_S = 15.0
CYCLE = "penstock.cycle"
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\ncontent-length: 61\r\n"
    b'connection: close\r\n\r\n{"error":"the request line and headers exceed 65536 bytes"}  '
)


class Corked:
    """A transport that keeps an answer's head until its body comes: one system call instead of two, a tenth of the front's time."""

    __slots__ = ("_head", "_transport", "hold")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""
        self.hold = False

    def write(self, data: bytes) -> None:
        if self.hold:
            self.hold, self._head = False, data
        elif self._head:
            head, self._head = self._head, b""
            self._transport.write(head + data)
        else:
            self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Connection(HttpToolsProtocol):
    """``scope[CYCLE]`` is uvicorn's request under way: ``disconnected`` and ``more_body`` say what no message does in time."""

    _heard = 0
    _in_body = False
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # because TCP gives asyncio.Transport, as uvicorn says
        super().connection_made(Corked(transport))  # type: ignore[arg-type]  # because it is a transport in all that uvicorn calls
        self._timer = self.loop.call_later(HEADER_S, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._in_body:
            if self._timer is None:
                self._timer = self.loop.call_later(HEADER_S, self._too_slow)
            self._heard += len(data)
            if self._heard > HEADER_BYTES and self._within(data):
                self._refuse()
                return
        super().data_received(data)

    def _within(self, data: bytes) -> bool:
        """Whether these bytes are still headers: a body that came along may be as large as it likes."""
        before = self._heard - len(data)
        if before > HEADER_BYTES:
            return True
        end = data.find(b"\r\n\r\n")
        return end == -1 or before + end > HEADER_BYTES

    def _refuse(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
            self.transport.close()

    def on_headers_complete(self) -> None:
        self._stop_timer()
        self._heard, self._in_body = 0, True
        super().on_headers_complete()
        self.scope[CYCLE] = self.cycle  # type: ignore[literal-required]  # because the scope's type is closed, ASGI's is not

    def on_message_complete(self) -> None:
        self._heard, self._in_body = 0, False
        super().on_message_complete()

    def _too_slow(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
