"""Which nodes are to be checked. Pure.

After a repair (its rule says so, and the node waits for that), before the first use, and between jobs, where the policy says so.
"""

from __future__ import annotations

from collections.abc import Iterable

from penstock.health.orders import Wanted, possible
from penstock.health.plan import Held
from penstock.health.rule import Checks
from penstock.health.state import Hold, NodeHealth

REPAIR, FIRST, BETWEEN = "after a repair", "before its first use", "between jobs"


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
