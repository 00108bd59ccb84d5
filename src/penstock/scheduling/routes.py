"""Queues over the API: the setup that holds, putting another in its place, and who uses how much of what."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict
from sqlalchemy.engine import Connection

from penstock.base.errors import Conflict, InvalidInput, Problem
from penstock.base.quantities import format_time
from penstock.base.routes import Call, Endpoint
from penstock.scheduling import checks, live
from penstock.scheduling.spec import Capacity, Setup, parse_setup
from penstock.store.looks import Look
from penstock.store.store import Store, Tx
from penstock.tenancy.plan import visible

QUEUES = "/api/v1/queues"
MAX_BYTES = 1 << 20
FRESH_S = 3.0  # how old an answer about those who wait may be: it costs a look at the whole fleet
HIDDEN: Mapping[str, Any] = {
    "project": None,
    "name": None,
    "user": None,
    "message": "",
    "helps": [],
}  # of projects that the caller may not read
Report = Callable[[Connection, float], Mapping[str, Any]]
Orphans = Callable[[Connection, Setup], tuple[list[str], list[str]]]
Heads = Callable[[Connection, float], list[dict[str, Any]]]


class ApplyQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")
    dry_run: bool = False
    force: bool = False


def endpoints(
    store: Store,
    report: Report,
    heads: Heads,
    fleet: Callable[[Connection, str], Capacity | None],
    orphans: Orphans,
) -> list[Endpoint]:
    """``report(conn, now)`` says what each queue holds and how many wait in it, ``heads(conn, now)`` who are first in line
    and why they wait, ``fleet(conn, text)`` what there is of each flavor of a queue file, ``orphans(conn, setup)`` whom
    another setup would leave without a queue, and who would go on in another: jobs/ knows, and server.py hands them down.
    """
    waiting = _waiting(Look(store, heads, FRESH_S))

    use = Look(store, report, 0.0)

    async def listing(_call: Call) -> dict[str, Any]:
        _, found = await use.take()
        return dict(found)

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
        answer = {"dry_run": call.query.dry_run, "policy": found.policy.name, "queues": sorted(found.queues)}

        def replace(tx: Tx) -> dict[str, Any]:
            warnings, (left, moved) = checks.check(tx.conn, found, tx.now), orphans(tx.conn, found)
            if left and not call.query.force:
                raise _orphaned(left)
            generation = live.replace(tx, text, actor=call.actor.user)
            return {"generation": generation, "warnings": [*warnings, *left, *moved]}

        if call.query.dry_run:
            warnings = await store.read(lambda conn: checks.check(conn, found, store.clock()))
            left, moved = await store.read(lambda conn: orphans(conn, found))
            warnings += [*left, *moved]
            return answer | {"generation": None, "warnings": warnings}
        return answer | await store.write(replace)

    return [
        Endpoint("GET", QUEUES, "queues.read", listing, "Queues: quotas, what is used of them, who waits"),
        Endpoint("GET", QUEUES + "/waiting", "queues.read", waiting, "The first in each line, and why they wait"),
        Endpoint("GET", QUEUES + "/setup", "queues.read", setup, "The queue file that holds"),
        Endpoint(
            "PUT", QUEUES + "/setup", "queues.write", apply, "Put a queue file in its place",
            query=ApplyQuery, takes_bytes=True, max_body=MAX_BYTES,
        ),
    ]  # fmt: skip


def _orphaned(left: list[str]) -> Conflict:
    return Conflict(
        "jobs would be left without a queue that takes them: " + "; ".join(left),
        hint="Keep the queue until they have ended, cancel them, or say --force to apply it all the same.",
    )


def _waiting(look: Look[list[dict[str, Any]]]) -> Callable[[Call], Awaitable[dict[str, Any]]]:
    async def answer(call: Call) -> dict[str, Any]:
        at, found = await look.take()
        mine = visible(call.actor)
        items = [each if mine is None or each["project"] in mine else each | dict(HIDDEN) for each in found]
        return {"at": format_time(at), "items": items, "next_cursor": None}

    return answer


async def _text(call: Call) -> str:
    chunks = [chunk async for chunk in call.raw] if call.raw is not None else []
    try:
        return b"".join(chunks).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput("this is not text in UTF-8", details=[Problem("", f"byte {error.start} is not")]) from error
