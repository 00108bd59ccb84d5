"""Over HTTP: a node's token opens one door, and a push that is cut off, too large or of another node is refused in words."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from penstock.base.errors import Unauthenticated
from penstock.engines.spec import NodeOffer
from penstock.fleet import inventory
from penstock.telemetry import push, routes
from penstock.telemetry.room import Telemetry
from tests.api.rig import Answered, Rig, call, rigged
from tests.telemetry.agents import Agent

PUSH = "/api/v1/telemetry/push"


def run(tmp_path: Path, test: Callable[[Rig, Telemetry, str], Awaitable[None]]) -> None:
    """``test`` is handed the token of node-1's agent."""

    async def whole() -> None:
        async with rigged(tmp_path) as rig:
            room = Telemetry(rig.store)
            rig.app.late = lambda: routes.endpoints(room)
            offers = [NodeOffer(f"node-{number}", 8.0, 1 << 40) for number in (1, 2)]
            await rig.store.write(lambda tx: inventory.sync(tx, "local", offers))
            made = await ask(rig, "admin", "POST", "/api/v1/tokens", {"node": "node-1", "name": "agent"})
            assert made.json()["node"] == "node-1"
            await test(rig, room, made.json()["token"])

    asyncio.run(whole())


async def ask(rig: Rig, who: str, method: str, path: str, body: Any = None) -> Answered:
    content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    return await call(rig.app, method, path, token=rig.tokens.get(who, who), body=content)


def test_a_nodes_token_opens_one_door(tmp_path: Path) -> None:
    async def test(rig: Rig, room: Telemetry, token: str) -> None:
        agent = Agent("node-1")
        taken = await ask(rig, token, "POST", PUSH, push.encode(agent.push(rig.clock.now)))
        assert (taken.status, taken.json()) == (200, {"sequence": 1, "series_wanted": False})
        assert push.decode_answer(taken.body).sequence == 1
        for method, path in (
            ("GET", "/api/v1/whoami"),
            ("GET", "/api/v1/nodes/node-1/telemetry"),
            ("POST", "/api/v1/tokens"),
        ):
            assert (await ask(rig, token, method, path)).status == 403, path
        with pytest.raises(Unauthenticated, match="opens no console"):
            await rig.access.log_in(token)
        other = await ask(rig, token, "POST", PUSH, push.encode(Agent("node-2").push(rig.clock.now)))
        assert other.status == 403
        assert (await ask(rig, "ann", "POST", PUSH, push.encode(agent.push(rig.clock.now)))).status == 403
        assert (await ask(rig, "ann", "POST", "/api/v1/tokens", {"node": "node-1"})).status == 403
        assert (await call(rig.app, "POST", PUSH, body=b"{}")).status == 401

    run(tmp_path, test)


def test_a_revoked_token_is_nobodys(tmp_path: Path) -> None:
    async def test(rig: Rig, _room: Telemetry, token: str) -> None:
        listed = (await ask(rig, "admin", "GET", "/api/v1/tokens")).json()["items"]
        (mine,) = [each["id"] for each in listed if each["node"] == "node-1"]
        assert (await ask(rig, "admin", "DELETE", f"/api/v1/tokens/{mine}")).status == 204
        assert (await ask(rig, token, "POST", PUSH, push.encode(Agent("node-1").push(rig.clock.now)))).status == 401

    run(tmp_path, test)


def test_what_is_no_push_is_refused_in_words(tmp_path: Path) -> None:
    async def test(rig: Rig, room: Telemetry, token: str) -> None:
        whole = push.encode(Agent("node-1").push(rig.clock.now))
        for length in range(0, len(whole), len(whole) // 60):
            answer = await ask(rig, token, "POST", PUSH, whole[:length])
            assert answer.status == 422, whole[:length]
            assert "no push of an agent" in answer.json()["message"]
        for odd in (
            b"[]",
            b"null",
            b"{}",
            b"\xff\xfe",
            b"[" * 100_000,
            b'{"format": 1e999}',
            b'{"format": ' + b"9" * 5000,
        ):
            assert (await ask(rig, token, "POST", PUSH, odd)).status == 422, odd[:40]
        assert (await ask(rig, token, "POST", PUSH, b" " * (routes.MOST_BYTES + 1))).status == 413
        assert not room.heard
        assert (await ask(rig, "admin", "POST", PUSH, push.encode(Agent("node-9").push(rig.clock.now)))).status == 404

    run(tmp_path, test)


def test_a_nodes_history_is_read(tmp_path: Path) -> None:
    async def test(rig: Rig, room: Telemetry, token: str) -> None:
        path = "/api/v1/nodes/node-1/telemetry"
        silent = (await ask(rig, "eve", "GET", path)).json()
        assert (silent["agent"], silent["charts"]) == (None, [])
        agent = Agent("node-1", gpus=2)
        for named in (True, False, False):
            await ask(rig, token, "POST", PUSH, push.encode(agent.push(rig.clock.now, named=named)))
            rig.clock.now += 10
        found = (await ask(rig, "eve", "GET", path + "?minutes=5")).json()
        assert found["agent"]["version"] == "0.1"
        assert {chart["id"] for chart in found["charts"]} >= {
            "gpu_power",
            "gpu_temperature",
            "cpu",
            "memory",
            "pressure",
        }
        (power,) = [chart for chart in found["charts"] if chart["id"] == "gpu_power"]
        assert len(power["lines"]) == 2
        assert [value for _, value in power["lines"][0]["samples"]] == [640.0] * 3
        assert (await ask(rig, "eve", "GET", "/api/v1/nodes/node-9/telemetry")).status == 404

    run(tmp_path, test)
