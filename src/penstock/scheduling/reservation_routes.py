"""Reservations over the API: listed for everybody, made and ended by administrators of the fleet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.engine import Connection

from penstock.base.routes import Call, Endpoint
from penstock.scheduling import windows
from penstock.scheduling.state import Reservation
from penstock.store import idempotency
from penstock.store.store import Store, Tx
from penstock.tenancy.plan import visible

RESERVATIONS = "/api/v1/reservations"
InTheWay = Callable[[Connection, Reservation, float], list[dict[str, Any]]]


class ListQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")
    over: bool = Field(default=False, description="those that are over too, for a week")


class CreateQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")
    dry_run: bool = False


class CreateReservation(BaseModel):
    """``start`` and ``end``: RFC 3339, ``now`` or ``in 2h``; ``duration`` instead of an end. Nodes by name or pattern."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(max_length=200)
    start: str | None = Field(default=None, max_length=64)
    end: str | None = Field(default=None, max_length=64)
    duration: str | None = Field(default=None, max_length=64)
    nodes: tuple[str, ...] = Field(default=(), max_length=10_000)
    labels: dict[str, str] = Field(default_factory=dict, max_length=64)
    maintenance: bool = False
    drain: bool = False
    projects: tuple[str, ...] = Field(default=(), max_length=1000)
    users: tuple[str, ...] = Field(default=(), max_length=1000)
    reason: str = Field(default="", max_length=500)


def endpoints(store: Store, in_the_way: InTheWay) -> list[Endpoint]:
    """``in_the_way(conn, reservation, now)``: the jobs on its nodes that may still run there when it begins; jobs/ knows,
    and server.py hands it down.
    """

    async def listing(call: Call) -> dict[str, Any]:
        found = await store.read(lambda conn: windows.listed(conn, store.clock(), over=call.query.over))
        seen = visible(call.actor)
        if seen is not None:
            for item in found:
                item["projects"] = [project for project in item["projects"] if project in seen]
                item["users"] = [user for user in item["users"] if user == call.actor.user]
        return {"items": found, "next_cursor": None}

    async def create(call: Call) -> dict[str, Any]:
        body: CreateReservation = call.body
        key = None if call.query.dry_run else call.headers.get("idempotency-key")
        actor = call.actor.user
        request = windows.Request(**{name: getattr(body, name) for name in CreateReservation.model_fields})

        def work(tx: Tx) -> dict[str, Any]:
            digest = idempotency.digest(f"{RESERVATIONS}\n{body.model_dump_json()}".encode())
            earlier = idempotency.recall(tx, key, actor, digest) if key is not None else None
            if earlier is not None:
                return dict(earlier)
            made, warnings = windows.read(tx.conn, request, tx.now)
            jobs = in_the_way(tx.conn, made, tx.now)
            answer = windows.to_json(made, tx.now) | {"reason": body.reason, "warnings": warnings, "jobs": jobs}
            if not call.query.dry_run:
                windows.create(tx, made, reason=body.reason, actor=actor)
            if key is not None:
                idempotency.remember(tx, key, actor, digest, answer)
            return answer

        return await store.write(work)

    async def end(call: Call) -> None:
        await store.write(lambda tx: windows.delete(tx, call.path["name"], actor=call.actor.user))

    return [
        Endpoint(
            "GET", RESERVATIONS, "reservations.read", listing, "Reservations and maintenance windows", query=ListQuery
        ),
        Endpoint(
            "POST", RESERVATIONS, "reservations.write", create, "Keep nodes for some, or for maintenance",
            query=CreateQuery, body=CreateReservation, status=201,
        ),
        Endpoint(
            "DELETE", RESERVATIONS + "/{name}", "reservations.write", end, "End a reservation now, or call it off",
            status=204,
        ),
    ]  # fmt: skip
