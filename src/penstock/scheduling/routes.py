"""Queues over the API: the setup that holds, putting another in its place, and who uses how much of what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict
from sqlalchemy.engine import Connection

from penstock.base.errors import InvalidInput, Problem
from penstock.base.quantities import format_time
from penstock.base.routes import Call, Endpoint
from penstock.scheduling import live
from penstock.scheduling.spec import Capacity, parse_setup
from penstock.store.store import Store

QUEUES = "/api/v1/queues"
MAX_BYTES = 1 << 20
Report = Callable[[Connection, float], Mapping[str, Any]]


class ApplyQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")
    dry_run: bool = False


def endpoints(store: Store, report: Report, fleet: Callable[[Connection, str], Capacity | None]) -> list[Endpoint]:
    """``report(conn, now)`` says what each queue holds and who waits in it, ``fleet(conn, text)`` what there is of each
    flavor of a queue file: jobs/ knows, and server.py hands both down.
    """

    async def listing(_call: Call) -> dict[str, Any]:
        return dict(await store.read(lambda conn: report(conn, store.clock())))

    async def setup(_call: Call) -> dict[str, Any]:
        row = await store.read(live.newest)
        if row is None:
            return {"generation": 0, "text": "", "applied_by": None, "applied_at": None}
        return {
            "generation": row.generation,
            "text": row.text,
            "applied_by": row.applied_by,
            "applied_at": format_time(row.applied_at),
        }

    async def apply(call: Call) -> dict[str, Any]:
        text = await _text(call)
        capacity = await store.read(lambda conn: fleet(conn, text))
        found = parse_setup(text, path="the queue file", capacity=capacity)
        names = sorted(found.queues)
        if call.query.dry_run:
            return {"dry_run": True, "generation": None, "policy": found.policy.name, "queues": names}
        generation = await store.write(lambda tx: live.replace(tx, text, actor=call.actor.user))
        return {"dry_run": False, "generation": generation, "policy": found.policy.name, "queues": names}

    return [
        Endpoint("GET", QUEUES, "queues.read", listing, "Queues: quotas, what is used of them, who waits"),
        Endpoint("GET", QUEUES + "/setup", "queues.read", setup, "The queue file that holds"),
        Endpoint(
            "PUT", QUEUES + "/setup", "queues.write", apply, "Put a queue file in its place",
            query=ApplyQuery, takes_bytes=True, max_body=MAX_BYTES,
        ),
    ]  # fmt: skip


async def _text(call: Call) -> str:
    chunks = [chunk async for chunk in call.raw] if call.raw is not None else []
    try:
        return b"".join(chunks).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput("this is not text in UTF-8", details=[Problem("", f"byte {error.start} is not")]) from error
