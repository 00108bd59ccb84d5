"""Spans of requests that somebody follows, sent to an OpenTelemetry collector (OTLP over HTTP, as JSON).

A request is followed where its ``traceparent`` (W3C) says that it is sampled: the gateway decides that, nobody here. Sending
holds up no request: spans wait in a bounded list, and those of a collector that does not answer are dropped and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

from penstock.base.version import VERSION
from penstock.serving.wire import Asked, Broken, NoConnection, ask, connect

log = logging.getLogger("penstock.otlp")

MOST = 4096  # spans that wait
BATCH = 512
EACH_S = 1.0
ANSWER_S = 5.0
_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
SERVER, INTERNAL = 2, 1


@dataclass(frozen=True, slots=True)
class Parent:
    """Whose span a new one belongs to, in hexadecimal digits."""

    trace: str
    span: str


@dataclass(frozen=True, slots=True)
class Span:
    """Times in nanoseconds since the epoch."""

    name: str
    parent: Parent
    begun: int
    ended: int
    kind: int = INTERNAL
    attributes: Mapping[str, str | int] = field(default_factory=dict)
    id: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def own(self) -> Parent:
        """What spans below this one name as theirs."""
        return Parent(self.parent.trace, self.id)


def parse_address(text: str) -> tuple[str, int]:
    """HOST:PORT, or http://HOST:PORT as OpenTelemetry's own variable has it. Raises ValueError."""
    host, _, port = text.removeprefix("http://").rstrip("/").rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or "/" in host or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"{text!r}: is HOST:PORT")
    return host, int(port)


def followed(traceparent: bytes | str | None) -> Parent | None:
    """None: nobody follows this request, or the header is none."""
    if traceparent is None:
        return None
    text = traceparent.decode("latin-1") if isinstance(traceparent, bytes) else traceparent
    found = _PARENT.fullmatch(text.strip())
    if found is None or not int(found[3], 16) & 1 or not int(found[1], 16) or not int(found[2], 16):
        return None
    return Parent(found[1], found[2])


def document(service: str, attributes: Mapping[str, str], spans: Sequence[Span]) -> bytes:
    """An ExportTraceServiceRequest in OTLP's JSON."""
    told = [
        {
            "traceId": span.parent.trace,
            "spanId": span.id,
            "parentSpanId": span.parent.span,
            "name": span.name,
            "kind": span.kind,
            "startTimeUnixNano": str(span.begun),
            "endTimeUnixNano": str(span.ended),
            "attributes": _attributes(span.attributes),
        }
        for span in spans
    ]
    resource = {"attributes": _attributes({"service.name": service, "service.version": VERSION, **attributes})}
    scopes = [{"scope": {"name": "penstock", "version": VERSION}, "spans": told}]
    return json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": scopes}]}, separators=(",", ":")).encode()


def _attributes(given: Mapping[str, str | int]) -> list[dict[str, object]]:
    return [
        {"key": key, "value": {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}}
        for key, value in given.items()
    ]


class Exporter:
    """One process' way to its collector. ``dropped``: spans that came to nothing."""

    def __init__(self, host: str, port: int, service: str, attributes: Mapping[str, str] | None = None) -> None:
        self._where = host, port
        self._service = service
        self._attributes = dict(attributes or {})
        self._waiting: list[Span] = []
        self._task: asyncio.Task[None] | None = None
        self.dropped = 0

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    def add(self, *spans: Span) -> None:
        room = MOST - len(self._waiting)
        self._waiting.extend(spans[:room])
        self.dropped += max(0, len(spans) - room)

    async def close(self) -> None:
        """Send what waits, if that takes no longer than one answer may."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._flush()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(EACH_S)
            await self._flush()

    async def _flush(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
            try:
                async with asyncio.timeout(ANSWER_S):
                    status = await self._send(document(self._service, self._attributes, batch))
            except (NoConnection, Broken, TimeoutError) as error:
                self._lost(batch, str(error) or "no answer")
                return
            if status >= 300:
                self._lost(batch, f"status {status}")

    def _lost(self, batch: Sequence[Span], why: str) -> None:
        if not self.dropped:
            log.warning("spans are lost: the collector at %s:%d: %s", *self._where, why)
        self.dropped += len(batch)

    async def _send(self, body: bytes) -> int:
        async def once() -> AsyncIterator[bytes]:
            yield body

        wire = await connect(*self._where)
        try:
            host = f"{self._where[0]}:{self._where[1]}".encode()
            kind, length = (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())
            asked = Asked(b"POST", b"/v1/traces", ((b"host", host), kind, length, (b"connection", b"close")))
            answer = await ask(wire, asked, once())
            with contextlib.suppress(Broken):
                async for _ in wire.body():
                    pass
            return answer.status_code
        finally:
            await wire.close()
