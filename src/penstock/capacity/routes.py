"""Replays over HTTP: who is responsible for the fleet asks what would have been, and everybody who may see it reads it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Connection

from penstock.base.routes import Call, Endpoint
from penstock.capacity.asked import TRACE_NAME, ReplayForm
from penstock.capacity.pricing import costs
from penstock.capacity.replays import Replays
from penstock.cost.spec import Prices
from penstock.cost.terms import Terms
from penstock.store.store import Store

REPLAYS = "/api/v1/capacity/replays"
CLUSTERS = ("seren", "kalos", "philly", "helios", "pai")  # capacity/synth has them; a server need not load it


@dataclass(frozen=True, slots=True)
class Room:
    """``history(conn)`` counts the jobs that have run."""

    store: Store
    replays: Replays
    prices: Prices
    terms: Terms
    history: Callable[[Connection], Mapping[str, Any]]


def endpoints(room: Room) -> list[Endpoint]:
    async def ask(call: Call) -> dict[str, Any]:
        return await room.replays.ask(call.body, call.actor.user)

    async def listing(_call: Call) -> dict[str, Any]:
        return {"items": await room.replays.listing(), "next_cursor": None}

    async def get(call: Call) -> dict[str, Any]:
        found = await room.replays.get(call.path["id"])
        return found | {"cost": [_cost(scenario, room.prices, room.terms) for scenario in _scenarios(found)]}

    async def remove(call: Call) -> None:
        await room.replays.remove(call.path["id"], call.actor.user)

    async def sources(_call: Call) -> dict[str, Any]:
        def read(conn: Connection) -> dict[str, Any]:
            return {"fleet": today(room.replays.fleet(conn)), "own": dict(room.history(conn))}

        folder = room.replays.traces
        traces = (
            sorted(path.name for path in folder.iterdir() if re.match(TRACE_NAME, path.name) and path.is_file())
            if folder.is_dir()
            else []
        )
        return await room.store.read(read) | {"traces": traces[:500], "clusters": list(CLUSTERS)}

    one = REPLAYS + "/{id}"
    return [
        Endpoint(
            "GET", "/api/v1/capacity/sources", "capacity.read", sources, "What can be replayed, and today's fleet"
        ),
        Endpoint(
            "POST", REPLAYS, "capacity.run", ask, "Replay jobs on a fleet that might be", body=ReplayForm, status=202
        ),
        Endpoint("GET", REPLAYS, "capacity.read", listing, "Replays, newest first"),
        Endpoint("GET", one, "capacity.read", get, "A replay: its progress, then its answer with series over time"),
        Endpoint("DELETE", one, "capacity.run", remove, "Cancel a replay, or delete one that is over", status=204),
    ]


def today(nodes: Sequence[tuple[int, str]]) -> dict[str, Any]:
    """The fleet as a simulation takes it: nodes of one kind, the commonest; as many as hold all the GPUs there are."""
    kinds = Counter((gpus, model) for gpus, model in nodes if gpus)
    if not kinds:
        return {"nodes": 0, "gpus": 0, "gpus_per_node": 0, "gpu_model": ""}
    (each, model), _ = kinds.most_common(1)[0]
    total = sum(gpus for gpus, _ in nodes)
    return {"nodes": -(-total // each), "gpus": total, "gpus_per_node": each, "gpu_model": model}


def _scenarios(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    asked = found["asked"]
    return [asked["a"]] if asked.get("b") is None else [asked["a"], asked["b"]]


def _cost(scenario: Mapping[str, Any], prices: Prices, terms: Terms) -> dict[str, Any]:
    gpus = scenario["nodes"] * scenario["gpus_per_node"]
    return {"gpus": gpus, **costs(gpus, scenario["gpu_model"], prices, terms)}
