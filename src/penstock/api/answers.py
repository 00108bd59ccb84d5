"""From what an endpoint returns to bytes and headers; every refusal as application/problem+json."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticSerializationError, to_json

from penstock.base.errors import InvalidInput, OutOfSpace, PenstockError
from penstock.base.routes import Reply

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]
Scope = MutableMapping[str, Any]
Headers = list[tuple[bytes, bytes]]

log = logging.getLogger("penstock.api")

PROBLEM = "application/problem+json"
_JSON = (b"content-type", b"application/json")
# No inline script or style, nothing from elsewhere, no framing, no guessing of types, no address given away.
SECURITY: Headers = [
    (
        b"content-security-policy",
        b"default-src 'self'; base-uri 'none'; object-src 'none'; form-action 'self'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    # Not "no-referrer": browsers then send `Origin: null` with the console's own forms.
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
_SECURITY_NAMES = frozenset(name for name, _ in SECURITY)
_NO_STORE = (b"cache-control", b"no-store")


class Refused(Exception):
    """A refusal in HTTP's own terms (400, 405, 408, 415, 426), which the house's errors do not know."""

    def __init__(self, status: int, message: str, *, hint: str = "", headers: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.error = InvalidInput(message, hint=hint or None)
        self.headers = tuple(headers)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer, ready to be sent."""

    status: int
    headers: Headers
    body: bytes = b""


def guarded(send: Send) -> Send:
    """``send`` that puts the security headers on whatever is answered, also by mounted applications."""

    async def sender(message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            headers = [(n, v) for n, v in message.get("headers", ()) if n.lower() not in _SECURITY_NAMES]
            if not any(name.lower() == b"cache-control" for name, _ in headers):
                headers.append(_NO_STORE)
            message["headers"] = headers + SECURITY
        await send(message)

    return sender


async def transmit(send: Send, answer: Answer, *, head: bool = False) -> None:
    """HTTP's two messages. ``head`` keeps the body back."""
    await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
    await send({"type": "http.response.body", "body": b"" if head else answer.body})


def whole(result: Any, status: int, media_type: str | None = None) -> Answer:
    """JSON for all but ``Reply``, text, bytes and nothing (204)."""
    if result is None:
        return Answer(status if status != 200 else 204, [])
    if isinstance(result, Reply):
        return _text(result.body, result.status, result.media_type, result.headers)
    if isinstance(result, str | bytes):
        body = result.encode() if isinstance(result, str) else result
        return _text(body, status, media_type or "text/plain; charset=utf-8", {})
    body = to_json(result, inf_nan_mode="null")
    return Answer(status, [_JSON, (b"content-length", b"%d" % len(body))], body)


def encoded(headers: Mapping[str, str]) -> Headers:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


def _text(body: bytes, status: int, media_type: str, headers: Mapping[str, str]) -> Answer:
    head: Headers = [(b"content-type", media_type.encode("latin-1")), (b"content-length", b"%d" % len(body))]
    if status in (204, 304):
        head = []
    named = {name.lower() for name in headers}
    return Answer(status, [h for h in head if h[0].decode() not in named] + encoded(headers), body)


def problem(error: PenstockError, status: int | None = None, extra: Iterable[tuple[str, str]] = ()) -> Answer:
    body = _refused(error.to_dict())
    headers = [
        (b"content-type", PROBLEM.encode()),
        (b"content-length", b"%d" % len(body)),
        *encoded(dict(extra)),
    ]
    status = status or error.status
    if status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="penstock"'))
    if status == 429:
        headers.append((b"retry-after", b"1"))
    return Answer(status, headers, body)


def _refused(said: Mapping[str, Any]) -> bytes:
    """What was refused is quoted, and may hold what UTF-8 cannot write: half a surrogate pair that YAML let through."""
    try:
        return to_json(said, inf_nan_mode="null")
    except PydanticSerializationError:
        return json.dumps(said, default=str).encode()


def refusal(exc: Exception, incident: str) -> Answer:
    """The answer to whatever was raised. What nobody foresaw goes to the log; the caller gets its incident's id."""
    if isinstance(exc, Refused):
        return problem(exc.error, exc.status, exc.headers)
    if isinstance(exc, PenstockError):
        return problem(exc)
    if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return problem(OutOfSpace(f"the server cannot write: {exc.strerror}"))
    log.error("incident %s", incident, exc_info=exc)
    internal = PenstockError(
        f"internal error, incident {incident}", hint="The server's log has the traceback under that id."
    )
    return problem(internal)
