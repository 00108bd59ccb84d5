"""A WebSocket as rooms see it (``Call.socket``): receive, send, close."""

from __future__ import annotations

from pydantic_core import to_json

from penstock.api.answers import PROBLEM, Receive, Scope, Send
from penstock.base.errors import PenstockError

UNAUTHENTICATED = 4401
_GOING_AWAY = 1001
_REASON_BYTES = 123  # RFC 6455, section 5.5: a control frame holds 125, the code takes 2


class Socket:
    """The handshake is answered at the first ``receive`` or ``send``: until then a refusal is plain HTTP."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self.accepted = False
        self.closed = False

    async def receive(self) -> bytes | str | None:
        """The next frame's content; None once the other side has closed."""
        await self.accept()
        if self.closed:
            return None
        message = await self._receive()
        if message["type"] != "websocket.receive":
            self.closed = True
            return None
        data: bytes | str | None = message.get("bytes")
        return data if data is not None else str(message.get("text") or "")

    async def send(self, data: bytes | str) -> None:
        """A binary or a text frame. After the other side has closed it is dropped."""
        await self.accept()
        if self.closed:
            return
        try:
            await self._send({"type": "websocket.send", "text" if isinstance(data, str) else "bytes": data})
        except OSError:
            self.closed = True

    async def close(self, code: int = 1000, reason: str = "") -> None:
        await self.accept()
        if not self.closed:
            self.closed = True
            cut = reason.encode()[:_REASON_BYTES].decode("utf-8", "ignore")
            try:
                await self._send({"type": "websocket.close", "code": code, "reason": cut})
            except OSError:
                pass  # the other side was first

    async def accept(self) -> None:
        if self.accepted:
            return
        self.accepted = True
        await self._receive()  # websocket.connect
        await self._send({"type": "websocket.accept"})

    async def refuse(self, error: PenstockError, status: int) -> None:
        """Before the handshake as an HTTP answer where the server can; afterwards as a close with 4000 + status."""
        if self.accepted or "websocket.http.response" not in (self._scope.get("extensions") or {}):
            await self.close(4000 + status, error.message)
            return
        self.accepted = self.closed = True
        await self._receive()
        headers = [(b"content-type", PROBLEM.encode())]
        await self._send({"type": "websocket.http.response.start", "status": status, "headers": headers})
        await self._send({"type": "websocket.http.response.body", "body": to_json(error.to_dict())})

    async def go_away(self) -> None:
        """The server stops, or the caller's access has ended."""
        await self.close(_GOING_AWAY, "the server ended this session")
