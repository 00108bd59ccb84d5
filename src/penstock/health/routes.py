"""Nodes' health over the API: findings, what was decided, the policy, a dry run; and what people may say of a finding."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.engine import Connection, Row

from penstock.base.errors import InvalidInput, Problem
from penstock.base.quantities import format_time
from penstock.base.routes import Call, Endpoint
from penstock.fleet import inventory
from penstock.health import kept
from penstock.health.room import Health
from penstock.health.state import Key
from penstock.telemetry.spec import Finding, Severity

HEALTH = "/api/v1/health"
_OUTAGES = 20  # of one node
Word = Annotated[str, Field(max_length=253)]
Line = Annotated[str, Field(max_length=4096)]


class ListQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")
    node: Word | None = None
    active: bool = Field(default=False, description="only what is so now")
    limit: int = Field(default=200, ge=1, le=1000)


class PolicyQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rule: Word | None = Field(default=None, description="only this one: Xid, SXid, LinkFlap ...")
    code: Word | None = Field(default=None, description="of a table: 79")


class Which(BaseModel):
    """The active findings of a node; ``rule``, ``code`` and ``device`` each only where they are given."""

    model_config = ConfigDict(extra="forbid")
    node: Word = Field(min_length=1)
    rule: Word = ""
    code: Word = ""
    device: Word = ""
    reason: str = Field(default="", max_length=500)


class Told(BaseModel):
    """A finding that somebody, or another program, tells of."""

    model_config = ConfigDict(extra="forbid")
    node: Word = Field(min_length=1)
    rule: Word = Field(min_length=1)
    code: Word = ""
    device: Word = ""
    message: Line = ""
    severity: Literal["info", "warning", "critical"] = "warning"
    source: Word = Field(default="api", min_length=1)
    active: bool = True
    count: int = Field(default=1, ge=1, le=1_000_000)
    evidence: list[Line] = Field(default_factory=list, max_length=32)
    facts: dict[Word, float | Line] = Field(default_factory=dict, max_length=32)


class Findings(BaseModel):
    model_config = ConfigDict(extra="forbid")
    findings: list[Told] = Field(min_length=1, max_length=256)


def endpoints(health: Health) -> list[Endpoint]:
    routes = _Routes(health)
    return [
        Endpoint(
            "GET", HEALTH, "nodes.read", routes.fleet, "Nodes that are not well: findings, what was decided, outages"
        ),
        Endpoint(
            "GET", f"{HEALTH}/findings", "nodes.read", routes.findings, "What is wrong with nodes", query=ListQuery
        ),
        Endpoint("POST", f"{HEALTH}/findings", "nodes.write", routes.tell, "Tell of findings", body=Findings),
        Endpoint(
            "POST", f"{HEALTH}/ack", "nodes.write", routes.acknowledge, "A finding is known: do nothing", body=Which
        ),
        Endpoint("POST", f"{HEALTH}/clear", "nodes.write", routes.clear, "What was found is mended", body=Which),
        Endpoint(
            "GET", f"{HEALTH}/plan", "nodes.read", routes.plan, "What would be done now, and what would not, and why"
        ),
        Endpoint("GET", f"{HEALTH}/policy", "nodes.read", routes.policy, "The rules in force", query=PolicyQuery),
        Endpoint("GET", "/api/v1/nodes/{name}/health", "nodes.read", routes.node, "A node's health"),
    ]


class _Routes:
    def __init__(self, health: Health) -> None:
        self._health = health
        self._store = health.store

    async def fleet(self, _call: Call) -> dict[str, Any]:
        found = await self._store.read(_fleet)
        return {"at": format_time(self._store.clock()), **found}

    async def node(self, call: Call) -> dict[str, Any]:
        def work(conn: Connection) -> dict[str, Any]:
            row = inventory.get(conn, call.path["name"])
            mine = kept.listed(conn, node=row.name, active=False, limit=kept.PER_NODE)
            past = kept.past(conn, row.name, _OUTAGES)
            return _node(row, mine, kept.decided(conn, row.name), past, kept.watched_node(conn, row.name))

        return await self._store.read(work)

    async def findings(self, call: Call) -> dict[str, Any]:
        query: ListQuery = call.query
        rows = await self._store.read(
            lambda conn: kept.listed(conn, node=query.node, active=query.active, limit=query.limit)
        )
        return {"items": [_finding(row) for row in rows], "next_cursor": None}

    async def tell(self, call: Call) -> dict[str, Any]:
        body: Findings = call.body
        names = {one.node for one in body.findings}
        there = await self._store.read(lambda conn: {row.name for row in inventory.some_nodes(conn, names)})
        wrong = [
            Problem(f"findings[{index}].node", f"there is no node {one.node!r}")
            for index, one in enumerate(body.findings)
            if one.node not in there
        ]
        if wrong:
            raise InvalidInput("nothing was taken in", details=wrong)
        now = self._store.clock()
        told = [_told(one, now) for one in body.findings]
        return {"new": await self._health.take(told)}

    async def acknowledge(self, call: Call) -> dict[str, Any]:
        body: Which = call.body
        found = await self._health.acknowledge(body.node, body.rule, body.code, body.device, actor=call.actor.user)
        return {"findings": [_key(key) for key in found]}

    async def clear(self, call: Call) -> dict[str, Any]:
        body: Which = call.body
        named = (body.node, body.rule, body.code, body.device)
        found = await self._health.clear(*named, actor=call.actor.user, why=body.reason)
        return {"findings": [_key(key) for key in found]}

    async def plan(self, _call: Call) -> dict[str, Any]:
        reconciler = self._health.reconciler()
        made = await reconciler.dry_run()
        actions = [asdict(one) | {"findings": [_key(key) for key in one.findings]} for one in made.actions]
        held = [asdict(one) | {"findings": [_key(key) for key in one.findings]} for one in made.held]
        whole = [
            {"domain": one.domain, "what": one.what, "nodes": list(one.nodes), "reason": one.reason}
            for one in made.shared
        ]
        said = {"policy": reconciler.policy.version, "breaker": made.breaker}
        return said | {"actions": actions, "held": held, "shared": whole}

    async def policy(self, call: Call) -> dict[str, Any]:
        query: PolicyQuery = call.query
        policy = self._health.reconciler().policy
        numbers = {
            name: asdict(getattr(policy, name))
            for name in ("budget", "breaker", "common", "domain", "trust", "lemon", "escalate")
        }
        rules = [
            asdict(rule)
            for rule in policy.rules.values()
            if (query.rule is None or rule.rule == query.rule) and (query.code is None or rule.code == query.code)
        ]
        return {"version": policy.version, **numbers, "restart_after_s": policy.restart_after_s, "rules": rules}


def _told(one: Told, now: float) -> Finding:
    said = one.model_dump()
    return Finding(
        **said | {"at": now, "first_at": now, "severity": Severity(one.severity), "evidence": tuple(one.evidence)}
    )


def _fleet(conn: Connection) -> dict[str, Any]:
    mine: dict[str, list[Row[Any]]] = {}
    for row in kept.listed(conn, node=None, active=True, limit=20_000):
        mine.setdefault(row.node, []).append(row)
    decided: dict[str, list[Row[Any]]] = {}
    for row in kept.decided(conn):
        decided.setdefault(row.node, []).append(row)
    lasting = {row.node: row for row in kept.past(conn, None, 1000) if row.ended_at is None}
    names = mine.keys() | decided.keys() | lasting.keys()
    known, rows = kept.watched_nodes(conn), inventory.all_nodes(conn)
    items = [
        _node(
            row,
            mine.get(row.name, []),
            decided.get(row.name, []),
            [lasting[row.name]] if row.name in lasting else [],
            known.get(row.name),
        )
        for row in rows
        if row.name in names
    ]
    past = [_outage(row) for row in kept.past(conn, None, 50)]
    whole = [_shared(each) for name, found in decided.items() for each in found if kept.of_a_domain(each)]
    return {"nodes": len(rows), "items": items, "shared": whole, "outages": past}


def _node(
    row: Row[Any], mine: list[Row[Any]], decided: list[Row[Any]], past: list[Row[Any]], agent: Row[Any] | None
) -> dict[str, Any]:
    out = next((each for each in past if each.ended_at is None), None)
    return {
        "node": row.name,
        "ready": bool(row.ready),
        "cordoned": bool(row.cordoned),
        "draining": bool(row.draining),
        "out_since": format_time(out.since) if out is not None else None,
        "findings": [_finding(each) for each in mine],
        "decisions": [_decision(each) for each in decided],
        "outages": [_outage(each) for each in past],
        "doubts": json.loads(agent.doubts) if agent is not None else {},
        "checked_at": format_time(agent.checked_at) if agent is not None else None,
    }


def _finding(row: Row[Any]) -> dict[str, Any]:
    found = kept.as_json(row)
    return found | {name: format_time(found[name]) for name in ("at", "first_at", "ended_at")}


def _decision(row: Row[Any]) -> dict[str, Any]:
    """``held``: why it was not done; empty where it was."""
    return {
        "verb": row.verb,
        "held": row.held,
        "at": format_time(row.at),
        "reason": row.reason,
        "findings": [_key(key) for key in kept.keys(row.findings)],
    }


def _shared(row: Row[Any]) -> dict[str, Any]:
    """What a whole rack has, or another domain."""
    said = _decision(row)
    return {"domain": row.node, "what": row.verb, **{name: said[name] for name in ("at", "reason", "findings")}}


def _outage(row: Row[Any]) -> dict[str, Any]:
    return {
        "node": row.node,
        "since": format_time(row.since),
        "ended_at": format_time(row.ended_at),
        "verb": row.verb,
        "reason": row.reason,
        "findings": [_key(key) for key in kept.keys(row.findings)],
        "jobs": json.loads(row.jobs),
        "ended_by": row.ended_by,
    }


def _key(key: Key) -> Mapping[str, str]:
    return dict(zip(("node", "rule", "code", "device"), key, strict=True))
