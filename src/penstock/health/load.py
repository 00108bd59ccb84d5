"""Rows to what the planner is given: every node, with all that is known of those that are not simply well."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from sqlalchemy.engine import Connection, Row

from penstock.fleet import inventory, registry
from penstock.fleet.labels import domains, effective
from penstock.health import kept
from penstock.health.judge import ended_at
from penstock.health.rule import Policy
from penstock.health.state import Key, NodeHealth, Outage, Seen
from penstock.telemetry.spec import Finding

FINDINGS_S = 2 * 86_400.0  # how long what has ended says something about what is
OUTAGES_S = 30 * 86_400.0
POOL = "pool"  # the label that says which pool a node is in; without it: its engine's


@dataclass(frozen=True, slots=True)
class Loaded:
    """``lapsed``: findings that have ended by themselves. ``opened``: nodes that are out by our doing no more, though nobody here
    ended that.
    """

    nodes: Sequence[NodeHealth]
    rows: Mapping[str, Row[Any]]
    read_only: frozenset[str]  # engines whose nodes are not ours to change
    decided: Mapping[tuple[str, str, str], Row[Any]]
    lapsed: Sequence[Key]
    opened: Sequence[str]


def load(
    conn: Connection, jobs: Mapping[str, Sequence[str]], policy: Policy, now: float, heard: Callable[[Key], float]
) -> Loaded:
    """``heard``: when a finding was told last, though it was not written down anew."""
    rows = {row.name: row for row in inventory.places(conn)}
    past = kept.outages_of(conn, now - OUTAGES_S)
    many = [key for key, rule in policy.rules.items() if rule.repeat is not None and rule.repeat.many]
    out = [name for name, outages in past.items() if outages[-1].ended_at is None]
    around = {rule.rule for rule in policy.rules.values() if rule.shared}
    found = kept.recent(conn, now - FINDINGS_S, many, out, around, now - policy.domain.within_s)
    known = kept.watched_nodes(conn)
    nodes = [
        _node(
            row,
            [_known(each, heard) for each in found.get(row.name, ())],
            past.get(row.name, ()),
            jobs.get(row.name, ()),
            known.get(row.name),
        )
        for row in rows.values()
    ]
    lapsed = [
        one.key
        for node in nodes
        for one in node.findings
        if one.active and (end := ended_at(one, node, policy)) is not None and end <= now
    ]
    opened = [
        name
        for name, outages in past.items()
        if outages[-1].ended_at is None and (name not in rows or not rows[name].cordoned)
    ]
    engines = {row.engine for row in rows.values()}
    read_only = frozenset(name for name in engines if not registry.managed(conn, name))
    decided = {(row.node, row.verb, row.held): row for row in kept.decided(conn)}
    return Loaded(nodes, rows, read_only, decided, lapsed, opened)


def _node(
    row: Row[Any],
    mine: Sequence[tuple[Finding, Seen]],
    past: Sequence[Outage],
    jobs: Sequence[str],
    agent: Row[Any] | None,
) -> NodeHealth:
    pool, inside = _place(row.offered_labels, row.labels, row.engine)
    cordoned, draining = bool(row.cordoned), bool(row.draining)
    lasting = cordoned and bool(past) and past[-1].ended_at is None
    return NodeHealth(
        row.name,
        ready=bool(row.ready),
        cordoned=cordoned or bool(row.closed),
        cordoned_by_us=lasting,
        findings=tuple(one for one, _ in mine),
        jobs=tuple(jobs),
        pool=pool,
        domains=inside,
        out_since=past[-1].since if lasting else None,
        draining=draining,
        seen={one.key: seen for one, seen in mine},
        doubts=json.loads(agent.doubts) if agent is not None and agent.doubts != "{}" else {},
        outages=tuple(past),
        checked_at=agent.checked_at if agent is not None else None,
    )


def _known(row: Row[Any], heard: Callable[[Key], float]) -> tuple[Finding, Seen]:
    finding, seen = kept.known(row)
    at = heard(finding.key) if finding.active else 0.0
    return (finding, replace(seen, heard_at=at)) if at > finding.at else (finding, seen)


@lru_cache(maxsize=4096)
def _place(offered: str, said: str, engine: str) -> tuple[str, tuple[str, ...]]:
    """A node's pool, and the domains that it is in, by its labels as they are stored."""
    labels = effective(json.loads(offered), json.loads(said))
    return labels.get(POOL, engine), domains(labels)
