"""The ASGI application: every request is checked, authenticated, authorised, validated, in this order, and only then done.

Pure ASGI throughout: a request to an endpoint passes no middleware stack. Starlette serves what the console mounts.
What is open without a token is named: endpoints with ``public``, and ``public_paths``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote, urlencode

from pydantic import BaseModel
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Router

from penstock.api import inputs
from penstock.api.answers import Message, Receive, Refused, Scope, Send, encoded, guarded, refusal, transmit, whole
from penstock.api.guard import Guard, credential, fold
from penstock.api.live import Live
from penstock.api.metrics import Latencies
from penstock.api.paths import Paths, raw_path
from penstock.api.sse import MEDIA_TYPE, frames
from penstock.api.websocket import UNAUTHENTICATED, Socket
from penstock.base.errors import Forbidden, NotFound, PenstockError, Problem, TooLarge, Unauthenticated
from penstock.base.ids import NAME_RULE, new_id
from penstock.base.resource import Actor
from penstock.base.routes import Call, Endpoint, Stream
from penstock.base.settings import Settings
from penstock.base.text import one_line

Authenticate = Callable[[str, Any], Awaitable[Actor | None]]  # what was shown, "bearer" or "cookie"
NOBODY = Actor("")
_WEBSOCKET = "WEBSOCKET"
_FORM_BYTES = 64 * 1024  # bodies to mounted routes: forms


class Decide(Protocol):
    def __call__(self, actor: Actor, verb: str, project: str | None = None) -> bool: ...


@dataclass(frozen=True, slots=True)
class _Route:
    endpoint: Endpoint
    query: inputs.Query


@dataclass(slots=True)
class _Request:
    """One HTTP request on its way through."""

    scope: Scope
    headers: dict[bytes, bytes]
    receive: Receive
    send: Send
    actor: Actor | None = None
    shown: tuple[str, str] | None = None
    started: bool = False  # an answer is under way, so no other can be given

    @property
    def head(self) -> bool:
        return bool(self.scope["method"] == "HEAD")


def cookie_name(settings: Settings) -> str:
    """Browsers do not tell the ports of one machine apart, so each data folder's server has a cookie of its own."""
    return "penstock_" + f"{hash_of(settings.data_dir):08x}"


def hash_of(text: str) -> int:
    """FNV-1a, 32 bits: stable between starts, and nothing here needs more."""
    value = 0x811C9DC5
    for byte in text.encode("utf-8", "surrogateescape"):
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value


def build(
    endpoints: Sequence[Endpoint],
    *,
    authenticate: Authenticate,
    decide: Decide,
    settings: Settings,
    extra_mounts: Sequence[BaseRoute] = (),
    public_paths: Sequence[str] = (),
    late: Callable[[], Sequence[Endpoint]] | None = None,
) -> App:
    """``public_paths`` of the mounts need no token: whole paths, or with a closing ``/`` all beneath. ``late``: endpoints, none of
    them public, that are added when a path of the API is asked for that no other has.
    """
    app = App(endpoints, authenticate, decide, settings, extra_mounts, public_paths)
    app.late = late
    return app


class App:
    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        authenticate: Authenticate,
        decide: Decide,
        settings: Settings,
        mounts: Sequence[BaseRoute],
        public_paths: Sequence[str],
    ) -> None:
        self.late: Callable[[], Sequence[Endpoint]] | None = None
        self.live = Live()
        self.latencies = Latencies()
        self.cookie = cookie_name(settings)
        self._authenticate = authenticate
        self._decide = decide
        self._guard = Guard((settings.host, *settings.allowed_hosts))
        self._paths: Paths[_Route] = Paths()
        self._endpoints: list[Endpoint] = []
        self._add(endpoints)
        self._open = {e.path.encode() for e in endpoints if e.public}
        self._open |= {p.encode() for p in public_paths if not p.endswith("/")}
        self._open_below = tuple(p.encode() for p in public_paths if p.endswith("/"))
        self._login = "/login" if b"/login" in self._open else None
        self._mounted = Router(list(mounts), redirect_slashes=False, default=_not_here) if mounts else None

    def _add(self, endpoints: Sequence[Endpoint]) -> None:
        for endpoint in endpoints:
            method = _WEBSOCKET if endpoint.kind == "websocket" else endpoint.method
            self._paths.add(method, endpoint.path, _Route(endpoint, inputs.Query(endpoint.query)))
        self._endpoints += endpoints

    def endpoints(self) -> Sequence[Endpoint]:
        """All of them, the late ones too."""
        if self.late is not None:
            late, self.late = self.late(), None
            hidden = [each.path for each in late if self._paths.find(each.path.encode()) is not None]
            if hidden:  # such a path would answer 405 until something else had brought the late ones
                raise ValueError(f"endpoints that come late need paths that no early one has: {', '.join(hidden)}")
            self._add(late)
        return self._endpoints

    def _find(self, raw: bytes) -> tuple[dict[str, _Route], dict[str, str]] | None:
        found = self._paths.find(raw)
        if found is None and self.late is not None and raw.startswith(b"/api/"):
            self.endpoints()
            found = self._paths.find(raw)
        return found

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, guarded(send))
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, guarded(send))
        else:
            await _lifespan(receive, send)

    def close(self) -> None:
        """End the open streams: the server stops."""
        self.live.close()

    def signed_in(self, connection: Any) -> Actor | None:
        """For mounted routes: who sent this Starlette request, as found out before it got there."""
        actor: Actor | None = connection.scope.get("penstock.actor")
        return actor

    async def ask(
        self,
        method: str,
        path: str,
        actor: Actor,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
    ) -> Any:
        """Call an endpoint from inside the server, with the checks that a request passes. ``path`` is percent-encoded."""
        found = self._find(path.encode())
        if found is None or method not in found[0]:
            raise NotFound(f"there is no {method} {path}")
        route, path_values = found[0][method], found[1]
        problems: list[Problem] = []
        given = {key: value for key, value in (query or {}).items() if value is not None}
        parameters = route.query.read(urlencode(given, doseq=True).encode(), problems)
        self._allow(actor, route.endpoint, path_values, parameters)
        model = route.endpoint.body
        content = inputs.read_model(model, to_json(body), problems) if model else None
        inputs.raise_all(problems)
        result = await route.endpoint.handler(Call(actor, path_values, parameters, content))
        return result.model_dump(mode="json") if isinstance(result, BaseModel) else result

    # ---- HTTP

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = _Request(scope, {}, receive, send)
        try:
            request.headers = fold(scope["headers"])
            await self._serve(request)
        except ConnectionResetError:
            return  # the client has gone: nobody to answer
        except Exception as exc:  # noqa: BLE001 - the API's edge: whatever it was becomes a problem document
            answer = refusal(exc, new_id(time.time(), os.urandom(10)))
            if not request.started:
                await transmit(send, self._to_login(request, answer.status) or answer, head=request.head)
            # An answer under way is cut off: the missing end tells the client.

    async def _serve(self, request: _Request) -> None:
        scope, headers = request.scope, request.headers
        self._guard.check(scope, headers)
        raw = raw_path(scope)
        request.shown = credential(headers, self.cookie)
        request.actor = await self._authenticate(*request.shown) if request.shown else None
        if request.actor is None and not self._is_open(raw):
            raise Unauthenticated("this needs a valid token" if request.shown else "this needs a token")
        found = self._find(raw)
        if found is None:
            await self._serve_mounted(request, raw)
            return
        methods, path = found
        route = methods.get(scope["method"]) or (methods.get("GET") if request.head else None)
        if route is None:
            await transmit(request.send, _no_such_method(scope["method"], methods), head=request.head)
            return
        await self._serve_endpoint(request, route, path)

    async def _serve_endpoint(self, request: _Request, route: _Route, path: dict[str, str]) -> None:
        endpoint, started = route.endpoint, time.perf_counter()
        problems: list[Problem] = []
        query = route.query.read(request.scope.get("query_string", b""), problems)
        actor = request.actor or NOBODY
        project = self._allow(actor, endpoint, path, query)
        call = Call(actor, path, query, headers={})
        if endpoint.takes_bytes or endpoint.body is not None:
            await _take_body(request, endpoint, call, problems)
        inputs.raise_all(problems)
        call.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers.items()}
        result = await endpoint.handler(call)
        if endpoint.kind == "sse":
            result = Stream(frames(result), MEDIA_TYPE, {"x-accel-buffering": "no"})
        if isinstance(result, Stream):
            await self._serve_stream(request, endpoint, project, result)
            return
        answer = whole(result, endpoint.status)
        self.latencies.observe(endpoint.method, endpoint.path, answer.status, time.perf_counter() - started)
        request.started = True
        await transmit(request.send, answer, head=request.head)

    def _allow(self, actor: Actor, endpoint: Endpoint, path: Mapping[str, str], query: Any) -> str | None:
        """The project that was decided on. Not-yours looks the same as not-there."""
        if endpoint.public:
            return None
        project = path.get("project") or getattr(query, "project", None)
        named = project is None or NAME_RULE.fullmatch(project) is not None
        if named and self._decide(actor, endpoint.verb, project):
            return project
        if not named or (project is not None and not self._decide(actor, "projects.read", project)):
            raise NotFound(f"there is no project {one_line(project or '', 80)!r}")
        raise Forbidden(f"{actor.user} may not do {endpoint.verb}" + (f" in {project}" if project else ""))

    async def _serve_stream(self, request: _Request, endpoint: Endpoint, project: str | None, stream: Stream) -> None:
        user = request.actor.user if request.actor else ""
        self.live.check(user)
        head = [(b"content-type", stream.media_type.encode("latin-1")), *encoded(stream.headers)]
        request.started = True
        await request.send({"type": "http.response.start", "status": endpoint.status, "headers": head})
        try:
            if not request.head:
                still = self._still(request.shown, endpoint, project)
                await self.live.run(user, _pour(stream, request.send), request.receive, still)
        finally:
            close = getattr(stream.chunks, "aclose", None)
            if close is not None:
                await close()
        await request.send({"type": "http.response.body", "body": b""})

    def _still(
        self, shown: tuple[str, str] | None, endpoint: Endpoint, project: str | None
    ) -> Callable[[], Awaitable[bool]]:
        async def still() -> bool:
            if endpoint.public or shown is None:
                return endpoint.public
            actor = await self._authenticate(*shown)
            return actor is not None and self._decide(actor, endpoint.verb, project)

        return still

    async def _serve_mounted(self, request: _Request, raw: bytes) -> None:
        if self._mounted is None or raw.startswith(b"/api/"):
            raise NotFound("there is nothing at this path")
        request.scope["penstock.actor"] = request.actor

        async def send(message: Message) -> None:
            request.started = True
            await request.send(message)

        try:
            await self._mounted(request.scope, _bounded(request.receive), send)
        except HTTPException as exc:
            raise Refused(exc.status_code, exc.detail, headers=(exc.headers or {}).items()) from exc

    def _is_open(self, raw: bytes) -> bool:
        return raw in self._open or raw.startswith(self._open_below)

    def _to_login(self, request: _Request, status: int) -> Any:
        """A person who opens a page without being signed in is sent to the login page, with the way back."""
        wants_page = b"text/html" in request.headers.get(b"accept", b"") or b"hx-request" in request.headers
        if status != 401 or self._login is None or not wants_page or request.scope["method"] != "GET":
            return None
        raw = raw_path(request.scope)
        if raw.startswith(b"/api/"):
            return None
        if b"hx-request" in request.headers:
            answer = whole("", 401)
            answer.headers.append((b"hx-redirect", self._login.encode()))
            return answer
        answer = whole("", 303)
        back = quote(raw.decode("latin-1"), safe="")
        answer.headers.append((b"location", f"{self._login}?next={back}".encode("latin-1")))
        return answer

    # ---- WebSockets

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        socket = Socket(scope, receive, send)
        try:
            headers = fold(scope["headers"])
            self._guard.check(scope, headers)
            shown = credential(headers, self.cookie)
            actor = await self._authenticate(*shown) if shown else None
            if actor is None:
                await socket.close(UNAUTHENTICATED, "this needs a valid token")
                return
            await self._session(scope, headers, actor, shown, socket)
        except Refused as exc:
            await socket.refuse(exc.error, exc.status)
        except PenstockError as exc:
            await socket.refuse(exc, exc.status)
        except Exception as exc:  # noqa: BLE001 - the API's edge, as above
            incident = new_id(time.time(), os.urandom(10))
            refusal(exc, incident)
            await socket.refuse(PenstockError(f"internal error, incident {incident}"), 500)

    async def _session(
        self,
        scope: Scope,
        headers: dict[bytes, bytes],
        actor: Actor,
        shown: tuple[str, str] | None,
        socket: Socket,
    ) -> None:
        found = self._find(raw_path(scope))
        route = found[0].get(_WEBSOCKET) if found else None
        if found is None or route is None:
            raise NotFound("there is no WebSocket at this path")
        problems: list[Problem] = []
        query = route.query.read(scope.get("query_string", b""), problems)
        project = self._allow(actor, route.endpoint, found[1], query)
        inputs.raise_all(problems)
        self.live.check(actor.user)
        plain = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers.items()}
        call = Call(actor, found[1], query, headers=plain, socket=socket)
        still = self._still(shown, route.endpoint, project)
        ended = await self.live.run(actor.user, _handle(route.endpoint, call), None, still)
        await (socket.close() if ended else socket.go_away())


async def _handle(endpoint: Endpoint, call: Call) -> None:
    await endpoint.handler(call)


async def _pour(stream: Stream, send: Send) -> None:
    async for chunk in stream.chunks:
        if chunk:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})


async def _take_body(request: _Request, endpoint: Endpoint, call: Call, problems: list[Problem]) -> None:
    inputs.check_body_headers(request.headers, json=not endpoint.takes_bytes, most=endpoint.max_body)
    if endpoint.takes_bytes:
        call.raw = inputs.chunks(request.receive, endpoint.max_body)
        return
    assert endpoint.body is not None
    raw = await inputs.whole_body(request.receive, endpoint.max_body)
    call.body = inputs.read_model(endpoint.body, raw, problems)


def _no_such_method(method: str, methods: Mapping[str, _Route]) -> Any:
    if set(methods) == {_WEBSOCKET}:
        raise Refused(426, "this path is a WebSocket", headers=[("upgrade", "websocket"), ("connection", "upgrade")])
    known = {name for name in methods if name != _WEBSOCKET} | {"OPTIONS"}
    if "GET" in known:
        known.add("HEAD")
    allow = ", ".join(sorted(known))
    if method == "OPTIONS":
        answer = whole(None, 204)
        answer.headers.append((b"allow", allow.encode()))
        return answer
    raise Refused(405, f"this path does not know {method[:20]}", hint=f"It knows {allow}.", headers=[("allow", allow)])


def _bounded(receive: Receive) -> Receive:
    left = _FORM_BYTES

    async def receiver() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise TooLarge(f"the body is larger than {_FORM_BYTES} bytes")
        return message

    return receiver


async def _not_here(_scope: Any, _receive: Any, _send: Any) -> None:
    raise NotFound("there is no such page")


async def _lifespan(receive: Receive, send: Send) -> None:
    """Nothing of ours hangs on it; ``app.py`` starts and stops the house."""
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return
