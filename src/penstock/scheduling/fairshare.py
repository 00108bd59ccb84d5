"""Who is served next: shares of what there is, with a memory that fades.

A tree node's score is its dominant share (DRF, Ghodsi et al., NSDI'11: the largest fraction that it holds of any
resource) now, and as it was: GPU time held, decayed by half every half-life (Slurm's PriorityDecayHalfLife), as a
fraction of what the fleet could have given. The two are averaged and divided by the node's weight. Choosing walks the
tree from the root, always to the least score, so if cohort A outranks its sibling B, all of A's queues and users
outrank all of B's (Slurm's Fair Tree).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

_LN2 = math.log(2.0)


@dataclass(slots=True)
class Account:
    """Use by one node of the tree: amounts held now, and decayed GPU-seconds as of ``at``."""

    weight: float = 1.0
    held: dict[str, float] = field(default_factory=dict)
    decayed: float = 0.0
    at: float = 0.0

    def settle(self, now: float, half_life: float) -> None:
        """Bring the decayed sum up to ``now``: what was there fades, what was held since fades as it accrues."""
        if now <= self.at:
            return
        factor = 0.5 ** ((now - self.at) / half_life)
        rate = self.held.get("gpus", 0.0) or self.held.get("cpus", 0.0)
        self.decayed = self.decayed * factor + rate * (1.0 - factor) * half_life / _LN2
        self.at = now

    def score(self, now: float, half_life: float, capacity: Mapping[str, float]) -> float:
        """Least is served first. ``capacity``: of the fleet, by resource."""
        self.settle(now, half_life)
        dominant = max((held / capacity[name] for name, held in self.held.items() if capacity.get(name)), default=0.0)
        base = capacity.get("gpus") or capacity.get("cpus") or 1.0
        history = self.decayed * _LN2 / (half_life * base)
        return (dominant + history) / 2.0 / self.weight


class FairShare:
    """Accounts by path: ("lab",), ("lab", "research"), ("lab", "research", "ann")."""

    def __init__(self, half_life_s: float) -> None:
        self.half_life = half_life_s
        self.capacity: dict[str, float] = {}
        self.accounts: dict[tuple[str, ...], Account] = {}
        self._scores: dict[tuple[str, ...], float] = {}  # at one instant, for one fleet: a cycle asks for them often
        self._scored: tuple[float, Mapping[str, float]] = (-math.inf, {})

    def account(self, path: tuple[str, ...], weight: float = 1.0) -> Account:
        found = self.accounts.get(path)
        if found is None:
            found = self.accounts[path] = Account(weight)
        return found

    def take(self, path: tuple[str, ...], amounts: Mapping[str, float], now: float) -> None:
        self._change(path, amounts, now, 1.0)

    def give(self, path: tuple[str, ...], amounts: Mapping[str, float], now: float) -> None:
        self._change(path, amounts, now, -1.0)

    def _change(self, path: tuple[str, ...], amounts: Mapping[str, float], now: float, sign: float) -> None:
        for depth in range(1, len(path) + 1):
            account = self.account(path[:depth])
            self._scores.pop(path[:depth], None)
            account.settle(now, self.half_life)
            for name, amount in amounts.items():
                account.held[name] = account.held.get(name, 0.0) + sign * amount

    def rank(self, path: tuple[str, ...], now: float) -> tuple[float, ...]:
        """Scores from the root down: compared as tuples among those that share a prefix, they walk the tree."""
        if self._scored[0] != now or self._scored[1] is not self.capacity:
            self._scores.clear()
            self._scored = (now, self.capacity)
        return tuple([self._score(path[:depth], now) for depth in range(1, len(path) + 1)])

    def _score(self, path: tuple[str, ...], now: float) -> float:
        found = self._scores.get(path)
        if found is None:
            found = self._scores[path] = self.account(path).score(now, self.half_life, self.capacity)
        return found


def multifactor(weights: Mapping[str, float], factors: Mapping[str, float]) -> float:
    """Slurm's priority/multifactor: the weighted sum of factors between 0 and 1 (slurm.schedmd.com/priority_multifactor)."""
    return sum(weight * factors.get(name, 0.0) for name, weight in weights.items())


def fairshare_factor(decayed: float, share: float, total: float) -> float:
    """Slurm's classic fair-share factor F = 2^(-U/S): U the fraction of all use, S the fraction of all shares."""
    if share <= 0:
        return 0.0
    return float(2.0 ** (-(decayed / total if total > 0 else 0.0) / share))
