"""Streams and WebSockets over a real socket: resumed, ended by the client, by the server, by a revoked token."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from penstock.api import sse
from penstock.api.live import MOST_PER_USER, Live
from penstock.base.errors import Busy, NotFound
from penstock.base.reasons import Reason
from penstock.base.resource import Ref
from penstock.base.routes import ServerEvent
from penstock.tenancy import accounts
from tests.api.rig import Rig, call, rigged, served
from tests.api.test_doors import run

THERE = "/api/v1/projects/p1/things/there"


@contextmanager
def asked(port: int, path: str, token: str, method: str = "GET", **headers: str) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request(method, path, headers={"Authorization": f"Bearer {token}"} | named)
        with connection.getresponse() as response:
            yield response
    finally:
        connection.close()


def next_event(response: http.client.HTTPResponse) -> dict[str, str]:
    """Comments are passed over; {} at the end of the stream."""
    fields: dict[str, str] = {}
    while line := response.readline().decode():
        name, _, value = line.rstrip("\n").partition(": ")
        if line == "\n" and fields:
            return fields
        if name in ("id", "event", "data"):
            fields[name] = value
    return {}


def soon(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


def test_a_stream_of_events_goes_on_where_it_was_left(tmp_path: Path) -> None:
    with served(tmp_path) as (server, rig):
        with asked(server.port, THERE + "/ticks", rig.tokens["ann"], last_event_id="41") as response:
            assert response.getheader("content-type") == "text/event-stream"
            first, second = next_event(response), next_event(response)
            assert (first["id"], second["id"], first["event"]) == ("42", "43", "tick")
            assert json.loads(first["data"])["text"] == "two\nlines"
            assert rig.samples.ended == []
        soon(lambda: rig.samples.ended == ["ticks"])
        soon(lambda: len(rig.app.live) == 0)


def test_streams_end_with_their_token(tmp_path: Path) -> None:
    text = THERE + "/text"
    with (
        served(tmp_path) as (server, rig),
        asked(server.port, text, rig.tokens["vic"]) as kept,
        asked(server.port, text, rig.tokens["ann"]) as lost,
    ):
        assert kept.readline() == lost.readline() == b"line 0\n"
        token_id = rig.tokens["ann"].split("_")[1]
        with asked(server.port, f"/api/v1/tokens/{token_id}", rig.tokens["admin"], "DELETE") as revoked:
            assert revoked.status == 204
        started = time.monotonic()
        while lost.readline():
            pass
        assert time.monotonic() - started < 2  # 0.4 s between two looks, on a noisy machine
        assert kept.readline()


def test_streams_end_when_the_server_stops(tmp_path: Path) -> None:
    with served(tmp_path) as (server, rig):
        stack = ExitStack()
        kept = stack.enter_context(asked(server.port, THERE + "/text", rig.tokens["vic"]))
        assert kept.readline() == b"line 0\n"
        stopping = time.monotonic()
    with stack:
        while kept.readline():
            pass
    assert time.monotonic() - stopping < 5
    assert rig.samples.ended == ["text"]


def echo(port: int, **more: Any) -> ClientConnection:
    path = more.pop("path", THERE + "/echo")
    token = more.pop("token", None)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    headers |= more.pop("headers", {})
    socket: ClientConnection = connect(
        f"ws://127.0.0.1:{port}{path}", additional_headers=headers, compression=None, **more
    )
    return socket


def test_websockets_echo_and_end(tmp_path: Path) -> None:
    with served(tmp_path) as (server, rig):
        with echo(server.port, token=rig.tokens["ann"]) as socket:
            socket.send("text")
            socket.send(b"\x00bytes")
            assert (socket.recv(), socket.recv()) == ("text", b"\x00bytes")
        soon(lambda: rig.samples.ended == ["echo"])
        stack = ExitStack()
        last = stack.enter_context(echo(server.port, token=rig.tokens["ann"]))
        last.send("still there")
        assert last.recv() == "still there"
    with stack, pytest.raises(ConnectionClosed):
        last.recv(timeout=10)
    assert last.close_code in (1001, 1012)  # going away, service restart


def test_websockets_are_as_closed_as_everything_else(tmp_path: Path) -> None:
    with served(tmp_path) as (server, rig):
        for token in (None, "pst_x", rig.tokens["revoked"], rig.tokens["expired"]):
            for path in (THERE + "/echo", "/nothing"):
                with echo(server.port, token=token, path=path) as socket, pytest.raises(ConnectionClosed):
                    socket.recv(timeout=10)
                assert socket.close_code == 4401
        for wanted, more in (
            (403, {"headers": {"Origin": "http://attacker.example"}}),
            (403, {"headers": {"Sec-Fetch-Site": "cross-site"}}),
            (404, {"path": "/nothing"}),
            (404, {"path": "/api/v1/projects/p2/things/there/echo"}),
            (404, {"path": "/api/v1/projects/p1/things/other/echo"}),
            (422, {"path": THERE + "/echo?x=1"}),
            (404, {"path": "/api/v1/whoami"}),
        ):
            with pytest.raises(InvalidStatus) as caught:
                echo(server.port, token=rig.tokens["ann"], **more)
            assert caught.value.response.status_code == wanted, more
            assert b'"code"' in (caught.value.response.body or b"")
        with pytest.raises(InvalidStatus) as caught:
            echo(server.port, token=rig.tokens["vic"])
        assert caught.value.response.status_code == 403
        upgrade = {
            "Host": "attacker.example",
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        }
        with asked(server.port, THERE + "/echo", rig.tokens["ann"], **upgrade) as foreign:
            assert foreign.status == 403


def holds(most: int, body: bytes) -> bool:
    return body.count(b"id: ") >= most


def test_watch_replays_and_goes_on_without_gap_or_repetition(tmp_path: Path) -> None:
    """A writer and several watchers, each torn off again and again, each ends with every event once and in order."""

    async def test(rig: Rig) -> None:
        total = 300
        first = (await rig.store.read(lambda c: c.exec_driver_sql("select max(seq) from events").scalar())) or 0
        wanted = list(range(1, first + total + 1))

        async def write() -> None:
            for number in range(total):
                ref = Ref("Job", f"j{number}", "p1", str(number))
                await rig.store.write(methodcaller("emit", ref, Reason.Created, actor="ann"))

        async def follow(step: int) -> list[int]:
            seen: list[int] = []
            while len(seen) < len(wanted):
                most = min(step, len(wanted) - len(seen))
                headers = {"last-event-id": str(seen[-1] if seen else 0)}
                answer = await call(
                    rig.app,
                    "GET",
                    "/api/v1/events/watch",
                    token=rig.tokens["admin"],
                    headers=headers,
                    until=partial(holds, most),
                )
                seen += [int(line[4:]) for line in answer.body.decode().splitlines() if line.startswith("id: ")]
            return seen

        results = await asyncio.gather(write(), *(follow(step) for step in (1, 7, 1000)))
        for seen in results[1:]:
            assert seen == wanted

    run(tmp_path, test)


def test_watch_shows_only_ones_own_projects(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        for project in ("p2", "p1", ""):
            await rig.store.write(methodcaller("emit", Ref("Job", "j", project), Reason.Created, actor="x"))
        page = await call(rig.app, "GET", "/api/v1/events?newest=true&limit=500", token=rig.tokens["ann"])
        assert {item["project"] for item in page.json()["items"]} == {"p1"}
        all_of_them = await call(rig.app, "GET", "/api/v1/events?limit=500", token=rig.tokens["admin"])
        assert {item["project"] for item in all_of_them.json()["items"]} >= {"p1", "p2", ""}
        other = await call(rig.app, "GET", "/api/v1/events?project=p2", token=rig.tokens["ann"])
        assert other.status == 404
        watched = await call(rig.app, "GET", "/api/v1/events/watch?after=0", token=rig.tokens["ann"], until=400)
        assert b'"project":"p1"' in watched.body and b'"project":"p2"' not in watched.body
        bad = await call(
            rig.app, "GET", "/api/v1/events/watch", token=rig.tokens["ann"], headers={"last-event-id": "x"}
        )
        assert bad.status == 422

    run(tmp_path, test)


def test_events_page_through(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        for newest in ("false", "true"):
            seen: list[int] = []
            cursor = ""
            while True:
                path = f"/api/v1/events?limit=3&newest={newest}{cursor}"
                page = (await call(rig.app, "GET", path, token=rig.tokens["admin"])).json()
                seen += [item["seq"] for item in page["items"]]
                if page["next_cursor"] is None:
                    break
                cursor = f"&cursor={page['next_cursor']}"
            assert seen == sorted(seen, reverse=newest == "true") and len(set(seen)) == len(seen) > 10
        verified = (await call(rig.app, "GET", "/api/v1/audit/verify", token=rig.tokens["admin"])).json()
        assert verified["ok"] and verified["rows"] == len(seen) == verified["head"]["seq"]

    run(tmp_path, test)


def test_heartbeats_errors_and_frames() -> None:
    async def test() -> None:
        release = asyncio.Event()

        async def events() -> Any:
            yield ServerEvent({"a": float("nan")}, "an\nevent", "1\n2")
            await release.wait()
            raise NotFound("gone")

        frames = sse.frames(events(), 0.01)
        assert await anext(frames) == b"retry: 2000\n\n"
        assert await anext(frames) == b'event: an event\nid: 1 2\ndata: {"a":null}\n\n'
        assert await anext(frames) == b":\n\n"
        release.set()
        rest = [frame async for frame in frames]
        assert rest[-1].startswith(b"event: error\ndata: ") and b"NotFound" in rest[-1]

    asyncio.run(test())


def test_one_user_cannot_hold_every_stream() -> None:
    async def test() -> None:
        live = Live()
        live._count["ann"] = MOST_PER_USER
        with pytest.raises(Busy):
            live.check("ann")
        live.check("bob")

    asyncio.run(test())


def test_a_role_withdrawn_ends_the_stream(tmp_path: Path) -> None:
    async def test() -> None:
        async with rigged(tmp_path) as rig:
            task = asyncio.create_task(call(rig.app, "GET", THERE + "/text", token=rig.tokens["ann"]))
            while not len(rig.app.live):
                await asyncio.sleep(0.01)
            await rig.store.write(lambda tx: accounts.set_member(tx, "admin", "p1", "ann", None))
            answer = await asyncio.wait_for(task, 5)
            assert answer.body.startswith(b"line 0\n")
            assert rig.samples.ended == ["text"]

    asyncio.run(test())
