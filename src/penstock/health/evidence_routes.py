"""What is known of one node in full: its incidents, evidence for the vendor, checks; and findings of other programs, taken in."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from sqlalchemy.engine import Connection

from penstock.base.errors import InvalidInput
from penstock.base.quantities import format_time
from penstock.base.routes import Call, Endpoint, Reply
from penstock.fleet import inventory
from penstock.health import kept
from penstock.health.bundle import bundle
from penstock.health.incident import Fact, Incident, incidents, markdown
from penstock.health.intake.known import KNOWN
from penstock.health.orders import NAMES, Asked, named
from penstock.health.room import Health
from penstock.health.shared import DOMAIN
from penstock.store import events
from penstock.store.events import EventRow

MOST_BYTES = 8 << 20  # of one document of another program
_EVENTS = 5000  # of a node, and of each job that met it, the newest
_JOBS = 50
_SAMPLES_S = 3600.0
Name = Annotated[str, AfterValidator(named), Field(json_schema_extra={"enum": list(NAMES)})]
Series = Callable[[str, float, float], Sequence[tuple[str, str, Sequence[tuple[float, float]]]]]


class Checks(BaseModel):
    model_config = ConfigDict(extra="forbid")
    checks: list[Name] = Field(min_length=1, max_length=len(NAMES))


class From(BaseModel):
    model_config = ConfigDict(extra="forbid")
    node: str = Field(default="", max_length=253, description="of findings that name none")


def endpoints(health: Health, series: Series) -> list[Endpoint]:
    routes, node = _Routes(health, series), "/api/v1/nodes/{name}"
    return [
        Endpoint(
            "GET", f"{node}/incidents", "nodes.read", routes.incidents, "A node's incidents, as the ledger has them"
        ),
        Endpoint(
            "GET", f"{node}/evidence", "nodes.write", routes.evidence, "Evidence for the vendor: a zip", kind="bytes"
        ),
        Endpoint(
            "GET", f"{node}/checks", "nodes.read", routes.checks, "What a node was asked to check, and what came of it"
        ),
        Endpoint("POST", f"{node}/checks", "nodes.write", routes.ask, "Ask a node for checks", body=Checks, status=202),
        Endpoint(
            "POST",
            "/api/v1/health/intake/{program}",
            "nodes.write",
            routes.intake,
            "Findings of gpud, NVSentinel, node-problem-detector or NHC, in their own words",
            query=From,
            takes_bytes=True,
            max_body=MOST_BYTES,
        ),
    ]


class _Routes:
    def __init__(self, health: Health, series: Series) -> None:
        self._health = health
        self._series = series

    async def incidents(self, call: Call) -> dict[str, Any]:
        found, _ = await self._health.store.read_long(lambda conn: _incidents(conn, call.path["name"]))
        return {"items": [_incident(one) for one in reversed(found)], "next_cursor": None}

    async def evidence(self, call: Call) -> Reply:
        name, now = call.path["name"], self._health.store.clock()

        def read(conn: Connection) -> tuple[list[Incident], list[EventRow], list[dict[str, Any]], dict[str, Any]]:
            found, rows = _incidents(conn, name)
            row = inventory.get(conn, name)
            known = [kept.as_json(each) for each in kept.listed(conn, node=name, active=False, limit=kept.PER_NODE)]
            facts = {
                "name": name,
                "engine": row.engine,
                "labels": inventory.labels_of(row),
                "gpus": json.loads(row.gpus),
            }
            return found, rows, known, facts

        found, rows, known, facts = await self._health.store.read_long(read)
        body = bundle(
            name,
            now,
            node_facts=facts,
            findings=known,
            events=[row.to_dict() for row in rows],
            incidents=[markdown(one) for one in found],
            samples=self._series(name, now - _SAMPLES_S, now),
        )
        headers = {"Content-Disposition": f'attachment; filename="evidence-{name}.zip"'}
        return Reply(body, media_type="application/zip", headers=headers)

    async def checks(self, call: Call) -> dict[str, Any]:
        name = call.path["name"]
        await self._health.store.read(lambda conn: inventory.get(conn, name))
        await self._health.restored()
        asked = self._health.asked
        waiting, last = asked.waiting.get(name), asked.last.get(name)
        return {"node": name, "waiting": waiting and _asked(waiting), "last": last and _asked(last)}

    async def ask(self, call: Call) -> dict[str, Any]:
        name, wanted = call.path["name"], list(dict.fromkeys(call.body.checks))
        return {"node": name, "waiting": _asked(await self._health.ask(name, wanted, call.actor.user))}

    async def intake(self, call: Call) -> dict[str, Any]:
        program = call.path["program"]
        reader = KNOWN.get(program)
        if reader is None:
            raise InvalidInput(f"nothing is taken in from {program!r}", hint=f"There are: {', '.join(sorted(KNOWN))}.")
        assert call.raw is not None
        text = b"".join([chunk async for chunk in call.raw])
        found = reader(text, call.query.node, self._health.store.clock())
        if any(not one.node for one in found):
            raise InvalidInput("these findings name no node", hint="Say of which: ?node=NAME.")
        names = {one.node for one in found}
        there = await self._health.store.read(lambda conn: {row.name for row in inventory.some_nodes(conn, names)})
        new = await self._health.take(found)
        return {"findings": len(found), "new": new, "unknown_nodes": sorted(names - there)}


def _incidents(conn: Connection, node: str) -> tuple[list[Incident], list[EventRow]]:
    """Raises NotFound."""
    inventory.get(conn, node)
    own = events.page(conn, kind="Node", name=node, limit=_EVENTS, newest_first=True)
    jobs = dict.fromkeys(
        str(job).split("#")[0] for row in own for job in (*row.data.get("jobs", ()), *row.data.get("restarted", ()))
    )
    rows = list(own)
    for job in list(jobs)[:_JOBS]:
        project, _, name = job.partition("/")
        rows += events.page(conn, kind="Job", project=project, name=name, limit=_EVENTS, newest_first=True)
    rows += [
        row for row in events.page(conn, kind=DOMAIN, limit=_EVENTS, newest_first=True) if node in row.data["nodes"]
    ]
    rows.sort(key=lambda row: row.seq)
    return incidents(node, [_fact(row) for row in rows]), rows


def _fact(row: EventRow) -> Fact:
    subject = f"{row.project}/{row.name}" if row.kind == "Job" else row.name
    return Fact(row.seq, row.at, row.actor, row.kind, subject, row.reason, row.message, row.data)


def _incident(one: Incident) -> dict[str, Any]:
    times: Mapping[str, float | None] = {
        "began": one.began, "detected": one.detected, "acted": one.acted, "ended": one.ended,
    }  # fmt: skip
    return {
        "node": one.node,
        **_times(times),
        "trigger": one.trigger,
        "cause": one.cause,
        "jobs": [_times(asdict(hit)) for hit in one.hits],
        "contributing": list(one.contributing),
        "owed": [_times(asdict(owed)) for owed in one.owed],
        "held": list(one.held),
        "events": [fact.seq for fact in one.facts],
        "markdown": markdown(one),
    }


_WHEN = frozenset({"began", "detected", "acted", "ended", "stopped_at", "back_at", "since", "done_at"})


def _times(said: Mapping[str, Any]) -> dict[str, Any]:
    """Times as the API tells them."""
    return {name: format_time(value) if name in _WHEN else value for name, value in said.items()}


def _asked(one: Asked) -> dict[str, Any]:
    return {
        "order": one.order.id,
        "checks": list(one.order.checks),
        "why": one.why,
        "asked_at": format_time(one.at),
        "results": dict(one.results),
        "words": dict(one.words),
    }
