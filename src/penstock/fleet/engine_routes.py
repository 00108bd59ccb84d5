"""Engines over the API: list them, see what works there, try a site, add, change and remove one."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.engine import Connection, Row

from penstock.base.quantities import format_time
from penstock.base.resource import Actor
from penstock.base.routes import Call, Endpoint
from penstock.engines import kinds
from penstock.engines.adding import Stored
from penstock.fleet import inventory, registry
from penstock.fleet.attached import Attached, Change
from penstock.tenancy.plan import decide
from penstock.tenancy.routes import Name

ENGINES = "/api/v1/engines"
_LOOK_S = 0.05
Text = Annotated[str, Field(max_length=1000)]
Value = Text | bool | dict[Annotated[str, Field(max_length=40)], Text | bool | int] | None
Options = dict[Annotated[str, Field(max_length=40)], Value]
Token = Annotated[str, Field(min_length=1, max_length=8192, pattern=r"^[!-~]+$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Tried(_Model):
    type: Annotated[str, Field(max_length=40)] = Field(description="slurm")
    options: Options = Field(default_factory=dict, max_length=20)
    managed: bool = False
    token: Token | None = Field(
        None, description="What the site wants to be shown; it is kept in a file, and told to nobody."
    )


class Added(Tried):
    name: Name
    force: bool = Field(False, description="Though the site does not answer.")


class Changed(_Model):
    """What is left out stays; an option that is null is taken away."""

    options: Options = Field(default_factory=dict, max_length=20)
    managed: bool | None = None
    token: Token | None = None
    force: bool = Field(False, description="Though the site does not answer.")


class Removal(_Model):
    force: bool = Field(False, description="Though jobs run there: they run on, unknown to Penstock.")


class Rooms:
    def __init__(self, attached: Attached) -> None:
        self.attached = attached
        self.store = attached.store

    async def listing(self, call: Call) -> dict[str, Any]:
        def read(conn: Connection) -> list[dict[str, Any]]:
            return self._all(conn, call.actor)

        return {"items": await self.store.read(read), "next_cursor": None}

    async def get(self, call: Call) -> dict[str, Any]:
        return await self._one(call.path["name"], call.actor)

    async def probe(self, call: Call) -> dict[str, Any]:
        tried: Tried = call.body
        stored = Stored("probe", _given(tried.options), tried.managed, tried.token)
        probed = await self.attached.probe(tried.type, stored)
        return {
            "kind": "Probe",
            "type": tried.type,
            "where": kinds.where(tried.type, stored.options),
            "version": probed.version,
            "findings": [one.to_dict() for one in probed.findings],
        }

    async def add(self, call: Call) -> dict[str, Any]:
        new: Added = call.body
        stored = Stored(new.name, _given(new.options), new.managed, new.token)
        await self.attached.add(new.type, stored, actor=call.actor.user, force=new.force)
        return await self._settled(new.name, call.actor)

    async def change(self, call: Call) -> dict[str, Any]:
        new: Changed = call.body
        change = Change(new.options, new.managed, new.token, new.force)
        await self.attached.change(call.path["name"], change, actor=call.actor.user)
        return await self._settled(call.path["name"], call.actor)

    async def look(self, call: Call) -> dict[str, Any]:
        await self.attached.look(call.path["name"])
        return await self._one(call.path["name"], call.actor)

    async def remove(self, call: Call) -> None:
        await self.attached.remove(call.path["name"], actor=call.actor.user, force=call.query.force)

    async def _settled(self, name: str, actor: Actor) -> dict[str, Any]:
        """Once its nodes are known: which of them are left out is said to whoever chose its prefix."""
        until = time.monotonic() + self.attached.settle_s
        while True:
            seen = await self._one(name, actor)
            settled = 0 < seen["offered"] == seen["nodes"] + len(seen["left_out"])
            if settled or not seen["reachable"] or time.monotonic() >= until:
                return seen
            await asyncio.sleep(_LOOK_S)

    async def _one(self, name: str, actor: Actor) -> dict[str, Any]:
        def read(conn: Connection) -> dict[str, Any]:
            found = {item["name"]: item for item in self._all(conn, actor)}
            if name not in found:
                registry.get(conn, name)
            return found[name]

        return await self.store.read(read)

    def _all(self, conn: Connection, actor: Actor) -> list[dict[str, Any]]:
        counts, busy = registry.node_counts(conn), self.attached.busy(conn)
        own = self.attached.engines.own.name
        items = [_own(own)] + [self._item(row, full=decide(actor, "audit.read")) for row in registry.all_engines(conn)]
        owner = inventory.owners(conn) if self.attached.engines.added else {}
        return [
            item
            | {"nodes": counts.get(item["name"], 0), "jobs": busy.get(item["name"], 0)}
            | self._offered(item["name"], owner)
            for item in items
        ]

    def _offered(self, name: str, owner: Mapping[str, str]) -> dict[str, Any]:
        """How many nodes its site has, and which of them are not there, as another engine has a node of that name."""
        engine = self.attached.engines.find(name)
        offers = engine.nodes() if engine is not None else ()
        left = inventory.left_out(owner, name, offers)
        found = [{"node": node, "engine": other} for node, other in sorted(left.items())]
        return {"offered": len(offers), "left_out": found}

    def _item(self, row: Row[Any], *, full: bool) -> dict[str, Any]:
        engine = self.attached.engines.find(row.name)
        since = engine.unknown_since if engine is not None else None
        found: dict[str, Any] = {
            "kind": "Engine",
            "name": row.name,
            "type": row.kind,
            "version": row.version,
            "managed": bool(row.managed),
            "reachable": engine is not None and since is None,
            "unknown_since": format_time(since),
            "findings": json.loads(row.findings),
            "probed_at": format_time(row.probed_at),
            "added_at": format_time(row.added_at),
        }
        if full:
            options = json.loads(row.options)
            found |= {
                "where": kinds.where(row.kind, options),
                "options": options,
                "has_token": self.attached.stored(row).secret is not None,
                "added_by": row.added_by,
            }
        return found


def _own(name: str) -> dict[str, Any]:
    """The server's own, on which Penstock itself places."""
    return {
        "kind": "Engine",
        "name": name,
        "type": name,
        "version": "",
        "managed": True,
        "reachable": True,
        "unknown_since": None,
        "findings": [],
        "probed_at": None,
        "added_at": None,
        "where": "this machine",
    }


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def endpoints(attached: Attached) -> Sequence[Endpoint]:
    do = Rooms(attached)
    one = ENGINES + "/{name}"
    return [
        Endpoint("GET", ENGINES, "engines.read", do.listing, "List the engines, and what works there"),
        Endpoint("POST", ENGINES, "engines.write", do.add, "Add an engine", body=Added, status=201),
        Endpoint(
            "POST", ENGINES + "/probe", "engines.write", do.probe, "See what a site has; changes nothing", body=Tried
        ),
        Endpoint("GET", one, "engines.read", do.get, "Read an engine"),
        Endpoint("PUT", one, "engines.write", do.change, "Change an engine", body=Changed),
        Endpoint("POST", one + "/probe", "engines.write", do.look, "See anew what its site has"),
        Endpoint("DELETE", one, "engines.write", do.remove, "Offer an engine no more", query=Removal, status=204),
    ]
