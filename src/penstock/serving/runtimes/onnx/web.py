"""The HTTP side: an ASGI application whose path from bytes to the queue is short on purpose."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from penstock.base.version import VERSION
from penstock.serving.otlp import Exporter
from penstock.serving.runtimes.onnx import rest
from penstock.serving.runtimes.onnx.connection import CYCLE
from penstock.serving.runtimes.onnx.errors import Refused, invalid, not_found, unavailable
from penstock.serving.runtimes.onnx.queue import Timing
from penstock.serving.runtimes.onnx.repository import Repository
from penstock.serving.runtimes.onnx.spans import follow
from penstock.serving.runtimes.onnx.statistics import Seen, page

log = logging.getLogger("penstock.onnx")
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

EXTENSIONS = (
    "binary_tensor_data", "model_configuration", "model_repository", "statistics", "parameters",
)  # fmt: skip
SERVER = {"name": "penstock-onnx", "version": VERSION, "extensions": list(EXTENSIONS)}
_ONE_PIECE = 1 << 16
_SMALL = 1 << 20  # of a body that is no inference request
_COMPRESS_FROM = 256  # bytes: a smaller answer grows


def _no() -> bool:
    return False


class Web:
    """``held``: bytes of bodies under way, bounded, so that many large requests at once are refused and not swapped."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        self.stopping = False
        self.max_body = repository.limits.max_body
        self.patience = repository.limits.request_timeout
        self.most_held = max(4 * self.max_body, 256 << 20)
        self.held = 0
        self.exporter: Exporter | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            if scope["method"] == "POST" and scope["path"].endswith("/infer"):
                status, headers, body = await self._infer(scope, receive)
            else:
                status, headers, body = await self._other(scope, receive)
        except Refused as error:
            status, headers, body = refusal(error)
        except _Gone:
            return
        if self.stopping:
            headers.append((b"connection", b"close"))
        headers.append((b"content-length", b"%d" % len(body)))
        cycle = scope.get(CYCLE)
        if cycle is not None and len(body) < _ONE_PIECE:
            cycle.transport.hold = not cycle.disconnected and scope["method"] != "HEAD"
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    # ------------------------------------------------------------------------------------------------------- infer

    async def _infer(self, scope: Message, receive: Receive) -> tuple[int, Headers, bytes]:
        parts = scope["path"].split("/")
        if len(parts) == 5 and parts[1] == "v2" and parts[2] == "models":
            version = self.repository.version(parts[3])
        elif len(parts) == 7 and parts[1] == "v2" and parts[2] == "models" and parts[4] == "versions":
            version = self.repository.version(parts[3], parts[5])
        else:
            raise not_found(f"there is nothing at {scope['path']:.200}")
        version.check_ready()
        found = _found(scope["headers"])
        body = await self._body(scope, receive, found, self.max_body)
        cycle = scope.get(CYCLE)
        held = len(body)
        self.held += held
        try:
            encoding = found.get(b"content-encoding")
            if encoding is not None and encoding != b"identity":
                body = rest.inflate(body, encoding.decode("latin-1").strip().lower(), self.max_body)
            try:
                asked = rest.parse(body, _length(found.get(b"inference-header-content-length")), version)
            except Refused:
                version.invalid()
                raise
            gone = _no if cycle is None else lambda: cycle.disconnected
            begun = time.time_ns()
            outputs, timing = await version.infer(asked.tensors, asked.outputs, asked.timeout, gone)
            if self.exporter is not None:
                follow(self.exporter, found.get(b"traceparent"), version.label, (begun, time.time_ns()), timing)
        finally:
            self.held -= held
        body, length = rest.render(version, asked, outputs)
        return _answer(found, body, length, timing)

    async def _body(self, scope: Message, receive: Receive, found: Mapping[bytes, bytes], most: int) -> bytes:
        """The request's body, within its bounds of size and time. Raises Refused."""
        told = found.get(b"content-length")
        if told is not None and int(told) > most:
            raise Refused(413, f"the body has {int(told)} bytes; at most {most} are taken")
        if self.held + int(told or 0) > self.most_held:
            raise unavailable(f"{self.held} bytes of requests are under way already")
        cycle = scope.get(CYCLE)
        if cycle is not None and not cycle.more_body:
            return _piece(await receive())
        try:
            async with asyncio.timeout(self.patience):
                return await self._pieces(receive, most)
        except TimeoutError:
            raise Refused(408, f"the body did not come within {self.patience:g} s") from None

    async def _pieces(self, receive: Receive, most: int) -> bytes:
        whole = bytearray()
        try:
            while True:
                message = await receive()
                piece = _piece(message)
                whole += piece
                self.held += len(piece)
                if len(whole) > most:
                    raise Refused(413, f"the body has more than {most} bytes")
                if self.held > self.most_held:
                    raise unavailable(f"{self.held} bytes of requests are under way already")
                if not message.get("more_body"):
                    return bytes(whole)
        finally:
            self.held -= len(whole)

    # ------------------------------------------------------------------------------------------------ everything else

    async def _other(self, scope: Message, receive: Receive) -> tuple[int, Headers, bytes]:
        path, method = scope["path"].rstrip("/"), scope["method"]
        if path == "/metrics" and method in ("GET", "HEAD"):
            return 200, [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")], self.metrics().encode()
        parts = path.split("/")[1:]
        if not parts or parts[0] != "v2":
            raise not_found(f"there is nothing at {path:.200}")
        if parts[1:2] == ["repository"]:
            body = await self._body(scope, receive, _found(scope["headers"]), _SMALL)
            return _json(await self._repository(parts[2:], method, body))
        if method not in ("GET", "HEAD"):
            raise Refused(405, f"{method:.20} is not served at {path:.200}")
        return _json(self._read(parts[1:], path))

    def _read(self, parts: list[str], path: str) -> Any:
        match parts:
            case []:
                return SERVER
            case ["health", "live"]:
                return {"live": True}
            case ["health", "ready"]:
                self.ready()
                return {"ready": True}
            case ["models", "stats"]:
                return {
                    "model_stats": [one.statistics.to_dict(one.name, one.version) for one in self.repository.loaded()]
                }
            case ["models", name, *rest_of]:
                return self._model(name, rest_of, path)
        raise not_found(f"there is nothing at {path:.200}")

    def _model(self, name: str, parts: list[str], path: str) -> Any:
        wanted = ""
        if parts[:1] == ["versions"] and len(parts) > 1:
            wanted, parts = parts[1], parts[2:]
        if parts == ["stats"]:
            seen = self.repository.counted(name, wanted)
            return {"model_stats": [one.statistics.to_dict(name, one.version) for one in seen]}
        version = self.repository.version(name, wanted)
        if parts == ["ready"]:
            if not version.ready or self.stopping:
                raise unavailable(f"{version.label} is {version.state}: {version.reason or 'the server stops'}")
            return {"name": name, "ready": True}
        if not version.inputs:
            raise unavailable(f"{version.label} is {version.state}: {version.reason or 'it loads'}")
        match parts:
            case []:
                return rest.metadata(version, [one.version for one in self.repository.versions(name)])
            case ["config"]:
                return rest.config(version)
        raise not_found(f"there is nothing at {path:.200}")

    async def _repository(self, parts: list[str], method: str, body: bytes) -> Any:
        if method != "POST":
            raise Refused(405, f"{method:.20} is not served there: POST")
        asked = rest.read_json(body) if body else {}
        match parts:
            case ["index"]:
                return self.repository.index(ready=bool(asked.get("ready")))
            case ["models", name, "load"]:
                parameters = asked.get("parameters") or {}
                if not isinstance(parameters, dict):
                    raise invalid("parameters: is an object")
                await self.repository.load(name, parameters)
                return None
            case ["models", name, "unload"]:
                await self.repository.unload(name)
                return None
        raise not_found("there is nothing there: index, models/NAME/load, models/NAME/unload")

    def ready(self) -> None:
        """Raises Refused while requests should go elsewhere."""
        if self.stopping:
            raise unavailable("the server stops")
        self.repository.ready()

    def metrics(self) -> str:
        return page(
            Seen(one.name, one.version, one.statistics, one.ready, one.queue.waiting, one.queue.running)
            for one in self.repository.loaded()
        )


class _Gone(Exception):
    """The caller hung up before its request was whole."""


def _piece(message: Message) -> bytes:
    if message["type"] != "http.request":
        raise _Gone
    body: bytes = message["body"]
    return body


_WANTED = frozenset({
    b"content-length", b"content-encoding", b"inference-header-content-length", b"accept-encoding", b"traceparent",
})  # fmt: skip


def _found(headers: Headers) -> dict[bytes, bytes]:
    return {name: value for name, value in headers if name in _WANTED}


def _length(value: bytes | None) -> int | None:
    if value is None:
        return None
    if not value.isdigit() or len(value) > 18:
        raise invalid(f"Inference-Header-Content-Length: {value[:40].decode('latin-1')!r} is no number of bytes")
    return int(value)


def _answer(
    found: Mapping[bytes, bytes], body: bytes, length: int | None, timing: Timing
) -> tuple[int, Headers, bytes]:
    headers: Headers = [(b"content-type", b"application/json" if length is None else b"application/octet-stream")]
    if length is not None:
        headers.append((b"inference-header-content-length", b"%d" % length))
    accepted = found.get(b"accept-encoding")
    if accepted is not None and len(body) >= _COMPRESS_FROM:
        words = {word.split(b";")[0].strip() for word in accepted.split(b",")}
        for encoding in ("gzip", "deflate"):
            if encoding.encode() in words:
                body = rest.deflate(body, encoding)
                headers.append((b"content-encoding", encoding.encode()))
                break
    if b"traceparent" in found:
        headers.append((b"server-timing", server_timing(timing).encode()))
    return 200, headers, body


def server_timing(timing: Timing) -> str:
    """Where a traced request's time went, in milliseconds, and how many rows its batch had."""
    into, infer, out = (ns / 1e6 for ns in timing.compute)
    return (
        f'queue;dur={timing.queue / 1e6:.3f}, batch;dur={into + out:.3f};desc="{timing.rows}", compute;dur={infer:.3f}'
    )


def _json(value: Any) -> tuple[int, Headers, bytes]:
    body = b"" if value is None else rest.json_body(value)
    return 200, [(b"content-type", b"application/json")], body


def refusal(error: Refused) -> tuple[int, Headers, bytes]:
    headers: Headers = [(b"content-type", b"application/json")]
    if error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after))
    if error.status in (408, 413):
        headers.append((b"connection", b"close"))  # the rest of its body is not read
    return error.status, headers, json.dumps({"error": error.message}).encode()
