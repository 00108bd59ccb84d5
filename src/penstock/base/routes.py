"""What a room says of its routes: data only, so that rooms know no web framework and every route names its verb."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from penstock.base.resource import Actor


@dataclass(slots=True)
class Call:
    """One request, checked: the actor may do ``Endpoint.verb``, query and body have passed their models."""

    actor: Actor
    path: Mapping[str, str]
    query: Any = None
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)  # names in lower case
    raw: AsyncIterator[bytes] | None = None  # the body's chunks, for endpoints that take bytes
    socket: Any = None  # a WebSocket: receive() -> bytes|str|None, send(bytes|str), close(code, reason)


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer that is sent as it is made."""

    chunks: AsyncIterator[bytes]
    media_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer whose status or headers the endpoint itself chooses (bytes that were sent before, a redirect)."""

    body: bytes = b""
    status: int = 200
    media_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


class Sample(NamedTuple):
    """One value for /metrics, as a room reports it: base units, ``name`` without the prefix ``penstock_``."""

    name: str
    type: Literal["gauge", "counter"]
    help: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One server-sent event (WHATWG HTML, section 9.2); ``id`` is what ``Last-Event-ID`` resumes after."""

    data: Any
    event: str = "message"
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One route. ``verb`` is what tenancy decides on ("jobs.create", "nodes.write", ...)."""

    method: str
    path: str
    verb: str
    handler: Callable[[Call], Awaitable[Any]]
    summary: str
    query: type[Any] | None = None
    body: type[Any] | None = None
    answer: type[Any] | None = None
    status: int = 200
    public: bool = False
    kind: Literal["json", "sse", "text", "bytes", "websocket"] = "json"
    takes_bytes: bool = False  # the body is streamed to the handler as Call.raw instead of parsed
    max_body: int = 1 << 20
