"""The API with small sample endpoints beside the real ones: called in process, or served on a real socket."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from penstock.api import routes, snapshots
from penstock.api.asgi import App, build
from penstock.api.gate import Gate
from penstock.api.serve import HttpServer, bind
from penstock.base.errors import NotFound
from penstock.base.resource import Actor
from penstock.base.routes import Call, Endpoint, ServerEvent, Stream
from penstock.base.settings import Settings
from penstock.store.store import Store
from penstock.tenancy import accounts
from penstock.tenancy import routes as tenancy
from penstock.tenancy.access import Access
from penstock.tenancy.bootstrap import bootstrap, read_token
from penstock.tenancy.plan import decide
from penstock.tenancy.state import User
from tests.stores import Clock

UIDS = {"root": 0, "ann": 1000}


class Thing(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=20)
    count: int = Field(0, ge=0, le=10**9)
    tags: list[str] = Field(default_factory=list, max_length=5)
    deep: dict[str, Any] | None = None


class ThingQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    project: str | None = Field(None, max_length=63)
    limit: int = Field(10, ge=1, le=500)
    phase: list[str] = Field(default_factory=list)
    deep: bool = False


@dataclass
class Samples:
    """Endpoints that stand for a room's; they note what they did."""

    done: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)

    async def make(self, call: Call) -> dict[str, Any]:
        self.done.append(call.body.name)
        return {"name": call.body.name, "user": call.actor.user}

    async def listing(self, call: Call) -> dict[str, Any]:
        return {"items": [], "next_cursor": None, "phase": call.query.phase, "limit": call.query.limit}

    async def show(self, call: Call) -> dict[str, Any]:
        if call.path["name"] == "boom":
            raise RuntimeError("pst_ secret of the inside")
        if call.path["name"] != "there":
            raise NotFound(f"there is no thing {call.path['name']!r}")
        return dict(call.path)

    async def take(self, call: Call) -> dict[str, int]:
        assert call.raw is not None
        if call.path["name"] != "there":
            raise NotFound("there is no such thing")
        return {"size": sum([len(chunk) async for chunk in call.raw])}

    async def text(self, call: Call) -> Stream:
        return Stream(self._lines())

    async def _lines(self) -> AsyncIterator[bytes]:
        try:
            number = 0
            while True:
                yield b"line %d\n" % number
                number += 1
                await asyncio.sleep(0.005)
        finally:
            self.ended.append("text")

    async def ticks(self, call: Call) -> AsyncIterator[ServerEvent]:
        return self._ticks(int(call.headers.get("last-event-id", "0")))

    async def _ticks(self, after: int) -> AsyncIterator[ServerEvent]:
        try:
            while True:
                after += 1
                yield ServerEvent({"tick": after, "text": "two\nlines"}, "tick", str(after))
                await asyncio.sleep(0.005)
        finally:
            self.ended.append("ticks")

    async def echo(self, call: Call) -> None:
        if call.path["name"] != "there":
            raise NotFound("there is no such socket")
        while (data := await call.socket.receive()) is not None:
            await call.socket.send(data)
        self.ended.append("echo")

    def endpoints(self) -> list[Endpoint]:
        base = "/api/v1/projects/{project}/things"
        return [
            Endpoint("POST", base, "jobs.create", self.make, "Make a thing", body=Thing, status=201),
            Endpoint("GET", "/api/v1/things", "jobs.read", self.listing, "List things", query=ThingQuery),
            Endpoint("GET", base + "/{name}", "jobs.read", self.show, "Show a thing"),
            Endpoint("PUT", base + "/{name}/blob", "jobs.write", self.take, "Take bytes", takes_bytes=True),
            Endpoint("GET", base + "/{name}/text", "jobs.read", self.text, "Endless text", kind="text"),
            Endpoint("GET", base + "/{name}/ticks", "jobs.read", self.ticks, "Endless events", kind="sse"),
            Endpoint("GET", base + "/{name}/echo", "jobs.exec", self.echo, "Echo", kind="websocket"),
        ]


@dataclass
class Rig:
    app: App
    store: Store
    access: Access
    clock: Clock
    samples: Samples
    data_dir: str
    settings: Settings
    tokens: dict[str, str]  # by user; "expired" and "revoked" besides
    monotonic: list[float]


@dataclass
class Answered:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@asynccontextmanager
async def rigged(tmp_path: Path, url: str | None = None, **settings: Any) -> AsyncIterator[Rig]:
    """Users: admin; ann (member of p1), vic (viewer of p1), bob (member of p2), eve (in no project)."""
    data_dir = str(tmp_path)
    clock, monotonic = Clock(), [0.0]
    store = Store.open(url or f"sqlite:///{data_dir}/penstock.db", clock=clock)
    access = Access(store, now=clock, monotonic=lambda: monotonic[0])
    try:
        await bootstrap(store, data_dir)
        tokens = await _people(store, clock)
        tokens["admin"] = read_token(data_dir) or ""
        known = Settings(data_dir, **({"snapshot_max_bytes": 1 << 20} | settings))
        samples = Samples()
        snapshots.sweep(data_dir)
        app = _assemble(store, access, known, samples)
        yield Rig(app, store, access, clock, samples, data_dir, known, tokens, monotonic)
    finally:
        access.close()
        await store.close()


def _assemble(store: Store, access: Access, settings: Settings, samples: Samples) -> App:
    house = routes.House(store, settings, "0.0-test")
    gate = Gate(access, decide, settings)

    async def page(request: Request) -> Response:
        actor: Actor | None = request.scope["penstock.actor"]
        return PlainTextResponse(f"hello {actor.user if actor else 'stranger'}")

    async def form(request: Request) -> Response:
        return PlainTextResponse(str(len(await request.body())))

    mounts = [
        Route("/", page),
        Route("/login", page),
        Route("/form", form, methods=["POST"]),
        Route("/static/{path:path}", page),
    ]
    everything = [
        *routes.endpoints(house),
        *tenancy.endpoints(store, look_up=UIDS.get),
        *samples.endpoints(),
    ]
    app = build(
        everything,
        authenticate=access,
        decide=decide,
        settings=settings,
        extra_mounts=mounts,
        public_paths=("/login", "/static/"),
    )
    gate.app = house.app = app
    return app


async def _people(store: Store, clock: Clock) -> dict[str, str]:
    roles = {"ann": ("p1", "member"), "vic": ("p1", "viewer"), "bob": ("p2", "member"), "eve": None}
    secrets = {name: accounts.new_token(clock.now) for name in (*roles, "expired", "revoked")}

    def make(tx: Any) -> None:
        for project in ("p1", "p2"):
            accounts.add_project(tx, "system", project)
        for name, place in roles.items():
            accounts.add_user(tx, "system", User(name, "", tx.now))
            if place:
                accounts.set_member(tx, "system", place[0], name, place[1])
        for name, secret in secrets.items():
            ends = clock.now if name == "expired" else None
            owner = name if name in roles else "ann"
            accounts.add_token(tx, "system", owner, "test", secret=secret, expires_at=ends)
        accounts.revoke_token(tx, "system", secrets["revoked"].id, owner=None)

    await store.write(make)
    return {name: secret.text for name, secret in secrets.items()}


async def call(
    app: App,
    method: str,
    path: str,
    *,
    token: str | None = None,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    until: int | Callable[[bytes], bool] | None = None,
) -> Answered:
    """One request in process. ``until`` so many bytes, or so much as it says, of a stream the client stays."""
    enough = until if callable(until) else lambda body: until is not None and len(body) >= until
    target, _, query = path.partition("?")
    named = {"host": "127.0.0.1:7070"} | ({"authorization": f"Bearer {token}"} if token else {}) | dict(headers or {})
    scope = {
        "type": "http",
        "method": method,
        "path": target,
        "raw_path": target.encode(),
        "query_string": query.encode(),
        "headers": [(n.lower().encode("latin-1"), v.encode("latin-1")) for n, v in named.items()],
        "server": ("127.0.0.1", 7070),
        "http_version": "1.1",
        "scheme": "http",
        "root_path": "",
    }
    gone = asyncio.Event()
    waiting = [{"type": "http.request", "body": body, "more_body": False}]
    answer = Answered(0, {}, b"")

    async def receive() -> dict[str, Any]:
        if waiting:
            return waiting.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {n.decode(): v.decode("latin-1") for n, v in message["headers"]}
        else:
            answer.body += message.get("body", b"")
            if enough(answer.body):
                gone.set()

    async with asyncio.timeout(20):
        await app(scope, receive, send)
    return answer


@contextmanager
def served(tmp_path: Path, **settings: Any) -> Iterator[tuple[HttpServer, Rig]]:
    """On a real socket, in a thread with a loop of its own."""
    ready, end = threading.Event(), threading.Event()
    found: list[Any] = []

    async def run() -> None:
        async with rigged(tmp_path, **settings) as rig:
            server = HttpServer(rig.app, bind("127.0.0.1", 0), rig.settings)
            await server.start()
            found.extend((server, rig))
            ready.set()
            await asyncio.to_thread(end.wait)
            await server.stop()

    failed: list[BaseException] = []

    def thread() -> None:
        try:
            asyncio.run(run())
        except BaseException as exc:  # noqa: BLE001 - handed to the test below
            failed.append(exc)
            ready.set()

    worker = threading.Thread(target=thread)
    worker.start()
    ready.wait(20)
    try:
        if failed:
            raise failed[0]
        yield found[0], found[1]
    finally:
        end.set()
        worker.join(20)
    if failed:
        raise failed[0]
