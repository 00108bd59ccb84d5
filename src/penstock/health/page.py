"""View models of nodes' health: pure functions from the API's JSON to what a template shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from penstock.health.commands import service, state, what

Item = Mapping[str, Any]
_TONES = {"critical": "bad", "warning": "wait", "info": "off"}
_LINES = 3  # of evidence


@dataclass(frozen=True, slots=True)
class Found:
    """A finding. ``seen``: RFC 3339."""

    what: str
    device: str
    words: str
    tone: str
    severity: str
    state: str
    times: int
    seen: str
    source: str
    evidence: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Decided:
    """``held``: why it was not done; empty where it was."""

    verb: str
    held: str
    words: str
    at: str


@dataclass(frozen=True, slots=True)
class NodeHealth:
    name: str
    href: str
    service: str
    out_since: str | None
    findings: tuple[Found, ...]
    done: tuple[Decided, ...]
    held: tuple[Decided, ...]
    doubts: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Past:
    node: str
    href: str
    since: str
    ended_at: str | None
    words: str
    moved: str
    ended_by: str


def node(item: Item) -> NodeHealth:
    decided = [Decided(one["verb"], one["held"], one["reason"], one["at"]) for one in item["decisions"]]
    return NodeHealth(
        item["node"],
        href(item["node"]),
        service(item),
        item["out_since"],
        tuple(found(one) for one in item["findings"]),
        tuple(one for one in decided if not one.held),
        tuple(one for one in decided if one.held),
        tuple((name or "clock", problem) for name, problem in item["doubts"].items()),
    )


def found(item: Item) -> Found:
    evidence: Sequence[str] = item["evidence"][-_LINES:]
    return Found(
        what(item),
        item["device"],
        item["message"],
        _TONES.get(item["severity"], "off"),
        item["severity"],
        state(item),
        item["count"],
        item["at"],
        item["source"],
        tuple(evidence),
    )


def past(items: Iterable[Item]) -> tuple[Past, ...]:
    return tuple(
        Past(
            one["node"],
            href(one["node"]),
            one["since"],
            one["ended_at"],
            one["reason"],
            ", ".join(job.partition("#")[0] for job in one["jobs"]),
            one["ended_by"],
        )
        for one in items
    )


def href(name: str) -> str:
    return f"/nodes/{quote(name, safe='')}"
