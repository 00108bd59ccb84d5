"""Telemetry over HTTP: what agents push, and a node's recent history.

A push passes no pydantic model: 2,000 agents send 200 a second, and ``push.decode`` bounds what they may hold.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from penstock.base.quantities import format_time
from penstock.base.routes import Call, Endpoint, Reply
from penstock.fleet import inventory
from penstock.telemetry import charts, push
from penstock.telemetry.room import Telemetry

MOST_BYTES = 2 << 20  # of one push


class Window(BaseModel):
    model_config = ConfigDict(extra="forbid")
    minutes: float = Field(60.0, gt=0, le=24 * 60, allow_inf_nan=False, description="how far back")


def endpoints(room: Telemetry) -> list[Endpoint]:
    async def take(call: Call) -> Reply:
        assert call.raw is not None
        body = b"".join([chunk async for chunk in call.raw])
        answer = await room.take(call.actor, push.decode(body))
        return Reply(json.dumps(push.encode_answer(answer), separators=(",", ":")).encode())

    async def history(call: Call) -> dict[str, Any]:
        name = call.path["name"]
        await room.store.read(lambda conn: inventory.get(conn, name))
        return recent(room, name, call.query.minutes)

    return [
        Endpoint(
            "POST",
            "/api/v1/telemetry/push",
            "telemetry.push",
            take,
            "What a node's agent has seen: samples and findings",
            takes_bytes=True,
            max_body=MOST_BYTES,
        ),
        Endpoint(
            "GET",
            "/api/v1/nodes/{name}/telemetry",
            "nodes.read",
            history,
            "A node's recent samples, as charts of lines",
            query=Window,
        ),
    ]


def recent(room: Telemetry, name: str, minutes: float) -> dict[str, Any]:
    """A node's last minutes as JSON; ``agent`` null: it has not been heard of."""
    now = room.store.clock()
    heard = room.heard.get(name)
    agent = None
    if heard is not None:
        agent = {
            "heard_at": format_time(heard.at),
            "version": heard.version,
            "clock_behind_s": round(heard.offset, 3),
            "sources": dict(heard.sources),
        }
    found = charts.charts(room.series(name, now - minutes * 60, now))
    return {"node": name, "at": format_time(now), "agent": agent, "charts": [chart.to_dict() for chart in found]}
