"""Which nodes are to be checked, what was asked of them, and what came of it. Pure: in memory, and bounded.

A node is checked after a repair (its rule says so, and it waits for that), before it is first used, between jobs, and when somebody
asks. Its agent is told with the answer to its next push, and tells the results as findings. Checks that want the GPUs for
themselves are asked for only where no job runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from penstock.health.checks.known import BY_NAME
from penstock.health.plan import Held
from penstock.health.state import Hold, NodeHealth
from penstock.telemetry.push import Order
from penstock.telemetry.spec import Finding

PATIENCE_S = 7200.0  # after which an order that nobody answered is forgotten
MOST = 10_000  # orders at once
REPAIR, FIRST, BETWEEN = "after a repair", "before its first use", "between jobs"


@dataclass(frozen=True, slots=True)
class Checks:
    """The policy's: which checks, whether before first use, and how long one holds for a node that is idle (0: for ever)."""

    run: tuple[str, ...] = ("clock", "fio")
    first: bool = False
    between_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Wanted:
    node: str
    checks: tuple[str, ...]
    why: str


def due(nodes: Iterable[NodeHealth], held: Iterable[Held], checks: Checks, now: float) -> list[Wanted]:
    """By node, each once; the order of ``nodes`` says nothing."""
    waits = {one.node for one in held if one.why == Hold.CHECK}
    found = []
    for node in sorted(nodes, key=lambda node: node.name):
        why = ""
        if node.name in waits:
            why = REPAIR
        elif node.jobs or not node.ready:
            continue
        elif checks.first and node.checked_at is None:
            why = FIRST
        elif checks.between_s and node.checked_at is not None and now - node.checked_at >= checks.between_s:
            why = BETWEEN
        names = possible(checks.run, busy=bool(node.jobs))
        if why and names:
            found.append(Wanted(node.name, names, why))
    return found


def possible(names: Iterable[str], *, busy: bool) -> tuple[str, ...]:
    """Those that may run there now."""
    return tuple(name for name in names if name in BY_NAME and not (busy and BY_NAME[name].busy))


@dataclass(slots=True)
class Asked:
    order: Order
    node: str
    why: str
    at: float
    results: dict[str, str] = field(default_factory=dict)  # by check: passed, failed, not run
    words: dict[str, str] = field(default_factory=dict)

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
