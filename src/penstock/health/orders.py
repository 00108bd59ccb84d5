"""What nodes were asked to check, and what came of it. Pure: in memory, and bounded; as JSON, which outlives the server.

A node's agent is told with the answer to its next push, and tells the results as findings.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from penstock.health.checks.known import ALL
from penstock.telemetry.push import Order
from penstock.telemetry.spec import Finding

PATIENCE_S = 7200.0  # after which an order that nobody answered is forgotten
MOST = 10_000  # orders at once
NAMES = {check.name: check.busy for check in ALL}  # whether it wants the GPUs for itself


@dataclass(frozen=True, slots=True)
class Wanted:
    node: str
    checks: tuple[str, ...]
    why: str


def named(name: str) -> str:
    """A check's name, as somebody wrote it. Raises ValueError where there is none such."""
    if name not in NAMES:
        raise ValueError(f"must be one of {', '.join(NAMES)}")
    return name


def possible(names: Iterable[str], *, busy: bool) -> tuple[str, ...]:
    """Those that may run there now."""
    return tuple(name for name in names if name in NAMES and not (busy and NAMES[name]))


@dataclass(slots=True)
class Asked:
    order: Order
    node: str
    why: str
    at: float
    results: dict[str, str] = field(default_factory=dict)  # by check: passed, failed, not run
    words: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        said = {"why": self.why, "at": self.at, "results": self.results, "words": self.words}
        return {"id": self.order.id, "checks": self.order.checks, **said}

    @property
    def over(self) -> bool:
        return len(self.results) == len(self.order.checks)

    @property
    def passed(self) -> bool:
        """None failed, and one at least was shown to be well."""
        said = set(self.results.values())
        return self.over and "passed" in said and "failed" not in said


@dataclass(slots=True)
class Orders:
    """What nodes are asked, by node: one order at a time."""

    waiting: dict[str, Asked] = field(default_factory=dict)
    last: dict[str, Asked] = field(default_factory=dict)  # what came of the last one

    def ask(self, wanted: Wanted, order_id: str, now: float) -> Asked | None:
        """None: it is asked already, or too many are."""
        known = self.waiting.get(wanted.node)
        if (known is not None and now - known.at < PATIENCE_S) or len(self.waiting) >= MOST or not wanted.checks:
            return None
        asked = Asked(Order(order_id, wanted.checks), wanted.node, wanted.why, now)
        self.waiting[wanted.node] = asked
        return asked

    def of(self, node: str) -> tuple[Order, ...]:
        asked = self.waiting.get(node)
        return (asked.order,) if asked is not None else ()

    def told(self, findings: Sequence[Finding]) -> list[Asked]:
        """Takes results; answers the orders that are over with them."""
        done = []
        for one in findings:
            asked = self.waiting.get(one.node)
            if asked is None or one.facts.get("order") != asked.order.id or one.code not in asked.order.checks:
                continue
            asked.results[one.code] = str(one.facts.get("result", "not run"))
            asked.words[one.code] = one.message
            if asked.over:
                del self.waiting[one.node]
                self.last[one.node] = asked
                done.append(asked)
        return done

    def as_json(self, node: str) -> str:
        known = {"waiting": self.waiting.get(node), "last": self.last.get(node)}
        return json.dumps({name: one.as_json() for name, one in known.items() if one is not None})

    def restore(self, node: str, text: str) -> None:
        """As ``as_json`` said it."""
        for name, said in json.loads(text).items():
            {"waiting": self.waiting, "last": self.last}[name][node] = asked(node, said)


def asked(node: str, said: Mapping[str, Any]) -> Asked:
    order = Order(said["id"], tuple(said["checks"]))
    return Asked(order, node, said["why"], said["at"], dict(said["results"]), dict(said["words"]))
