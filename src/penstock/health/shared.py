"""What a rack, a block, a power unit or the whole fleet has, and not each node in it: its cooling, its power, its switch. Pure.

Rules say what their finding may come from (``shared: heat``). Where a large share of one domain has such findings at the same time the
cause is the domain's: to take its nodes out mends nothing. It is one finding of the domain's, for as long as it lasts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

from penstock.health.judge import Verdict, ended_at
from penstock.health.rule import Limit, Policy
from penstock.health.state import Key, NodeHealth

FLEET = "the fleet"
DOMAIN: Final = "Domain"  # its kind, where the ledger tells of one
_WORDS = {"heat": "cooling", "power": "power", "network": "network"}


@dataclass(frozen=True, slots=True)
class Shared:
    """``nodes``: those of the domain's ``size`` that have it, or had it a moment ago."""

    domain: str
    what: str  # heat, power, network
    nodes: tuple[str, ...]
    size: int
    findings: tuple[Key, ...]  # that are so now

    @property
    def reason(self) -> str:
        return f"{len(self.nodes)} of {self.size} nodes of {self.domain} have it at once: look at its {_WORDS.get(self.what, self.what)}"


def shared(
    fleet: Sequence[NodeHealth], found: Iterable[tuple[NodeHealth, Sequence[Verdict]]], policy: Policy, now: float
) -> list[Shared]:
    """By domain; each node that has it is in one at least. A domain that says no more than others do is left out."""
    have: dict[tuple[str, str], dict[str, tuple[Key, ...]]] = {}
    for node, verdicts in found:
        for what, keys in _has(node, verdicts, policy, now).items():
            for domain in (*node.domains, FLEET):
                have.setdefault((domain, what), {})[node.name] = keys
    if max(map(len, have.values()), default=0) < min(policy.domain.least, policy.common.least):
        return []
    size = Counter(chain.from_iterable(node.domains for node in fleet)) + Counter({FLEET: len(fleet)})
    many = [
        Shared(domain, what, tuple(sorted(nodes)), size[domain], tuple(sorted(chain.from_iterable(nodes.values()))))
        for (domain, what), nodes in have.items()
        if len(nodes) >= _limit(domain, policy).of(size[domain])
    ]
    told: list[Shared] = []
    covered: set[tuple[str, str]] = set()
    for one in sorted(many, key=lambda one: (-len(one.nodes) / one.size, -len(one.nodes), one.domain, one.what)):
        new = {(name, one.what) for name in one.nodes} - covered
        told += [one] if new else []
        covered |= new
    return sorted(told, key=lambda one: (one.domain, one.what))


def _limit(domain: str, policy: Policy) -> Limit:
    return policy.common if domain == FLEET else policy.domain


def _has(node: NodeHealth, verdicts: Sequence[Verdict], policy: Policy, now: float) -> dict[str, tuple[Key, ...]]:
    """By cause, its findings that are believed, whether they ask for something yet or not. None of them, where the last ended a
    moment ago: a rack that cools down does so node by node.
    """
    found: dict[str, tuple[Key, ...]] = {}
    for one in verdicts:
        if one.rule is not None and one.rule.shared and (not one.doubt or node.of(one.finding).acked_by):
            found[one.rule.shared] = (*found.get(one.rule.shared, ()), one.key)
    for finding in node.findings:
        rule = policy.of(finding.rule, finding.code)
        if rule is not None and rule.shared and rule.shared not in found and not finding.active:
            end = ended_at(finding, node, policy)
            if end is not None and 0 <= now - end < policy.domain.within_s:
                found[rule.shared] = ()
    return found
