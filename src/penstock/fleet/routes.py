"""Nodes over the API: read, cordon, drain, and (where the engine can) lose and restore them for a drill."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.engine import Connection, Row

from penstock.base.errors import Conflict
from penstock.base.quantities import format_memory, format_time
from penstock.base.resource import Actor, Condition
from penstock.base.routes import Call, Endpoint, Sample
from penstock.engines.several import Engines
from penstock.engines.spec import Engine
from penstock.fleet import floor, inventory, registry
from penstock.fleet.labels import LEVELS, MOST, topology
from penstock.store.looks import Look
from penstock.store.store import Store
from penstock.tenancy.plan import visible

NODES = "/api/v1/nodes"
GLANCE_S = 1.5  # how old a glance at the fleet may be
Work = Callable[[Call, Row[Any], Engine], Awaitable[None]]
Usage = Callable[[Connection], Mapping[str, Mapping[str, Any]]]


class Labels(BaseModel):
    """``labels``: null takes one away."""

    model_config = ConfigDict(extra="forbid")
    nodes: list[Annotated[str, Field(max_length=253)]] = Field(min_length=1, max_length=20_000)
    labels: dict[Annotated[str, Field(max_length=320)], Annotated[str, Field(max_length=63)] | None] = Field(
        min_length=1, max_length=MOST
    )


class Why(BaseModel):
    model_config = ConfigDict(extra="forbid")
    reason: str = Field(default="", max_length=500)


class Uncordon(Why):
    force: bool = Field(default=False, description="Though its own site has closed it.")


class ListQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: list[str] = Field(default_factory=list, max_length=64, description="only these; may repeat")


def _nobody(_conn: Connection) -> Collection[tuple[str, str]]:
    return ()


@dataclass(frozen=True, slots=True)
class Room:
    """``usage(conn)`` says by node what is allocated and to which jobs (jobs/ knows; app.py hands it down);
    ``sync`` reads the engines' offers again; ``idle(conn)`` names the (node, GPU) pairs that are held and do nothing (cost/
    knows).
    """

    store: Store
    usage: Usage
    engines: Engines
    sync: Callable[[], Awaitable[None]]
    idle: Callable[[Connection], Collection[tuple[str, str]]] = _nobody


def endpoints(room: Room) -> list[Endpoint]:
    def act(name: str, summary: str, work: Work, body: type[Why] = Why) -> Endpoint:
        async def handler(call: Call) -> dict[str, Any]:
            row, may = await room.store.read(lambda conn: _changeable(conn, call.path["name"]))
            engine = room.engines.find(row.engine)
            if engine is None or not may:
                raise _not_ours(row, there=engine is not None)
            await work(call, row, engine)
            return await _one(room, call.actor, call.path["name"])

        return Endpoint("POST", f"{NODES}/{{name}}/{name}", "nodes.write", handler, summary, body=body)

    async def listing(call: Call) -> dict[str, Any]:
        names = frozenset(call.query.name)
        if not names:
            return {"items": await room.store.read(lambda conn: _all(room, call.actor, conn)), "next_cursor": None}
        found = await room.store.read(lambda conn: _some(room, call.actor, conn, names))
        return {"items": found, "next_cursor": None}

    async def get(call: Call) -> dict[str, Any]:
        return await _one(room, call.actor, call.path["name"])

    async def label(call: Call) -> dict[str, Any]:
        names = list(dict.fromkeys(call.body.nodes))
        await room.store.write(lambda tx: inventory.label(tx, names, call.body.labels, actor=call.actor.user))
        found = await room.store.read(lambda conn: _some(room, call.actor, conn, names))
        return {"items": found, "next_cursor": None}

    return [
        Endpoint("POST", f"{NODES}/labels", "nodes.write", label, "Label nodes: all of them or none", body=Labels),
        Endpoint("GET", NODES, "nodes.read", listing, "List nodes", query=ListQuery),
        Endpoint(
            "GET", "/api/v1/fleet", "nodes.read", _glance(room), "The whole fleet at a glance, a letter for each GPU"
        ),
        Endpoint("GET", NODES + "/{name}", "nodes.read", get, "Read a node"),
        act("cordon", "Give a node no new work", _cordon(room, drain=False)),
        act("drain", "Cordon a node and move its jobs elsewhere", _cordon(room, drain=True)),
        act("uncordon", "Let a node take work again", _uncordon(room), Uncordon),
        act("lose", "Drill: as if the node's power went", _told(room, lambda engine, name: engine.lose(name))),
        act("restore", "Bring a lost node back", _told(room, lambda engine, name: engine.restore(name))),
    ]


def _changeable(conn: Connection, name: str) -> tuple[Row[Any], bool]:
    row = inventory.get(conn, name)
    return row, registry.managed(conn, row.engine)


def _not_ours(row: Row[Any], *, there: bool) -> Conflict:
    if not there:
        return Conflict(
            f"node {row.name} is of engine {row.engine!r}, which is not there", hint="See `penstock engines`."
        )
    return Conflict(
        f"node {row.name} is of engine {row.engine!r}, where Penstock only reads",
        hint=f"`penstock engines set {row.engine} --manage` lets it change nodes there.",
    )


def _cordon(room: Room, *, drain: bool) -> Work:
    """First where it counts, then in the rows: said twice, it does no harm."""

    async def work(call: Call, row: Row[Any], engine: Engine) -> None:
        actor, said = call.actor.user, call.body.reason
        why = said or f"by {actor}"
        await engine.cordon(row.name, f"{said} ({actor})" if said else why)
        await room.store.write(lambda tx: inventory.cordon(tx, row.name, actor=actor, why=why, drain=drain))

    return work


def _uncordon(room: Room) -> Work:
    async def work(call: Call, row: Row[Any], engine: Engine) -> None:
        if row.closed and not call.body.force:
            raise Conflict(
                f"node {row.name} was not closed by Penstock: {row.closed}",
                hint="Ask whoever closed it. `penstock uncordon --force` opens it all the same.",
            )
        if row.closed or row.cordoned:
            await engine.cordon(row.name, None, force=call.body.force)
        why, actor = call.body.reason or f"by {call.actor.user}", call.actor.user
        done = inventory.reopen if row.closed else inventory.uncordon
        await room.store.write(lambda tx: done(tx, row.name, actor=actor, why=why))

    return work


def _told(room: Room, tell: Callable[[Engine, str], Awaitable[None]]) -> Work:
    async def work(_call: Call, row: Row[Any], engine: Engine) -> None:
        await tell(engine, row.name)
        await room.sync()

    return work


async def _one(room: Room, actor: Actor, name: str) -> dict[str, Any]:
    def work(conn: Connection) -> dict[str, Any]:
        return node(inventory.get(conn, name), room.usage(conn).get(name, {}), visible(actor))

    return await room.store.read(work)


def _all(room: Room, actor: Actor, conn: Connection) -> list[dict[str, Any]]:
    usage = room.usage(conn)
    return [node(row, usage.get(row.name, {}), visible(actor)) for row in inventory.all_nodes(conn)]


def _glance(room: Room) -> Callable[[Call], Awaitable[dict[str, Any]]]:
    look = Look(room.store, lambda conn, _now: floor.floor(conn, room.usage(conn), room.idle(conn)), GLANCE_S)

    async def answer(_call: Call) -> dict[str, Any]:
        at, found = await look.take()
        return {"at": format_time(at), **found}

    return answer


def _some(room: Room, actor: Actor, conn: Connection, names: Collection[str]) -> list[dict[str, Any]]:
    usage = room.usage(conn)
    return [node(row, usage.get(row.name, {}), visible(actor)) for row in inventory.some_nodes(conn, names)]


def node(row: Row[Any], used: Mapping[str, Any], seen: frozenset[str] | None) -> dict[str, Any]:
    """``seen``: the projects whose jobs may be named, None for all of them."""
    gpus = json.loads(row.gpus)
    labels = inventory.labels_of(row)
    ready = Condition(
        "Ready", "True" if row.ready else "False", row.reason, _message(row) or _capacity(row, gpus), row.changed_at
    )
    return {
        "kind": "Node",
        "name": row.name,
        "engine": row.engine,
        "capacity": {"cpus": row.cpus, "memory": int(row.memory), "gpus": gpus},
        "allocated": {
            "cpus": used.get("cpus", 0.0),
            "memory": used.get("memory", 0),
            "gpus": sorted(used.get("gpus", ())),
            "gpu_parts": used.get("gpu_parts", 0.0),
        },
        "cordoned": bool(row.cordoned),
        "draining": bool(row.draining),
        "ready": bool(row.ready),
        "reason": row.reason,
        "message": _message(row),
        "closed": row.closed,
        "labels": labels,
        "topology": dict(zip(LEVELS, topology(labels), strict=False)),
        "conditions": [ready.to_dict()],
        "joined_at": format_time(row.joined_at),
        "jobs": [job for job in used.get("jobs", []) if seen is None or job["project"] in seen],
    }


def _message(row: Row[Any]) -> str:
    """What people or the engine said of it; what its site says stands beside that."""
    return "; ".join(dict.fromkeys(part for part in (row.message, row.closed) if part))


def samples(conn: Connection, usage: Mapping[str, Mapping[str, Any]]) -> list[Sample]:
    """What /metrics says of nodes."""
    found = []
    for row in inventory.all_nodes(conn):
        labels, used = {"node": row.name}, usage.get(row.name, {})
        state = labels | {"ready": str(bool(row.ready)).lower(), "cordoned": str(bool(row.cordoned)).lower()}
        found += [
            Sample("node_info", "gauge", "Constant 1 for each node.", state, 1),
            Sample("node_cpus", "gauge", "CPUs of the node.", labels, row.cpus),
            Sample("node_cpus_allocated", "gauge", "CPUs that jobs hold.", labels, used.get("cpus", 0.0)),
            Sample("node_memory_bytes", "gauge", "Memory of the node.", labels, row.memory),
            Sample("node_memory_allocated_bytes", "gauge", "Memory that jobs hold.", labels, used.get("memory", 0)),
            Sample("node_gpus", "gauge", "GPUs of the node.", labels, len(json.loads(row.gpus))),
            Sample("node_gpus_allocated", "gauge", "GPUs that jobs hold.", labels, used.get("gpu_parts", 0.0)),
        ]
    return sorted(found, key=lambda s: s.name)


def _capacity(row: Row[Any], gpus: list[Any]) -> str:
    return f"{row.cpus:g} CPUs, {format_memory(row.memory)}, {len(gpus)} GPUs"
