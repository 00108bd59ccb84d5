"""Who is served next: shares of what there is, with a memory that fades.

A tree node's score is its dominant share (DRF, Ghodsi et al., NSDI'11: the largest fraction that it holds of any
resource) now, and as it was: GPU time held, decayed by half every half-life (Slurm's PriorityDecayHalfLife), as a
fraction of what the fleet could have given. The two are averaged and divided by the node's weight. Choosing walks the
tree from the root, always to the least score, so if cohort A outranks its sibling B, all of A's queues and users
outrank all of B's, as in Slurm's Fair Tree, whose ranks themselves are what order multifactor takes its factor from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from penstock.scheduling.spec import Setup

_LN2 = math.log(2.0)


@dataclass(slots=True)
class Account:
    """Use by one node of the tree: amounts held now, and decayed GPU-seconds as of ``at``."""

    weight: float = 1.0
    path: tuple[str, ...] = ()
    held: dict[str, float] = field(default_factory=dict)
    decayed: float = 0.0
    at: float = 0.0
    last: float = 0.0  # score, and in which instant it was worked out: a cycle asks for it often
    scored_in: int = -1

    @property
    def rate(self) -> float:
        return self.held.get("gpus", 0.0) or self.held.get("cpus", 0.0)

    def settle(self, now: float, half_life: float) -> None:
        """Bring the decayed sum up to ``now``, before what is held changes."""
        if now > self.at:
            self.decayed, self.at = self.used(now, half_life), now

    def used(self, now: float, half_life: float) -> float:
        """The decayed sum at ``now``: what was there fades, what was held since fades as it accrues. Asking changes
        nothing, so that it does not matter how often, or after which restart, it is asked.
        """
        return faded(self.decayed, self.rate, now - self.at, half_life)

    def score(self, now: float, half_life: float, capacity: Mapping[str, float]) -> float:
        """Least is served first. ``capacity``: of the fleet, by resource."""
        dominant = max((held / capacity[name] for name, held in self.held.items() if capacity.get(name)), default=0.0)
        base = capacity.get("gpus") or capacity.get("cpus") or 1.0
        history = self.used(now, half_life) * _LN2 / (half_life * base)
        return (dominant + history) / 2.0 / self.weight


def faded(decayed: float, rate: float, seconds: float, half_life: float) -> float:
    if seconds <= 0:
        return decayed
    factor: float = 0.5 ** (seconds / half_life)
    return decayed * factor + rate * (1.0 - factor) * half_life / _LN2


class FairShare:
    """Accounts by path: ("lab",), ("lab", "research"), ("lab", "research", "ann")."""

    def __init__(self, half_life_s: float) -> None:
        self.half_life = half_life_s
        self.capacity: dict[str, float] = {}
        self.accounts: dict[tuple[str, ...], Account] = {}
        self.changed: set[tuple[str, ...]] = set()  # since whoever keeps them looked last
        self._chains: dict[tuple[str, ...], tuple[Account, ...]] = {}  # accounts along a path
        self._ranks: dict[tuple[str, ...], float] = {}
        self._scored: tuple[float, Mapping[str, float]] = (-math.inf, {})
        self._instant = 0  # counts changes of time and of the fleet

    def account(self, path: tuple[str, ...], weight: float = 1.0) -> Account:
        found = self.accounts.get(path)
        if found is None:
            found = self.accounts[path] = Account(weight, path)
        return found

    def enroll(self, setup: Setup) -> None:
        """Users whom the setup names count among the ranked before they come, as Slurm's associations do."""
        for queue in setup.queues.values():
            names, weights, parent = [queue.name], [queue.weight], queue.cohort
            while parent is not None and parent in setup.cohorts and parent not in names[1:]:
                names.append(parent)
                weights.append(setup.cohorts[parent].weight)
                parent = setup.cohorts[parent].parent
            path = tuple(reversed(names))
            for depth, weight in enumerate(reversed(weights), 1):
                self.account(path[:depth], weight)
            for user, weight in queue.user_weights.items():
                self.account((*path, user), weight)

    def take(self, path: tuple[str, ...], amounts: Mapping[str, float], now: float) -> None:
        self._change(path, amounts, now, 1.0)

    def give(self, path: tuple[str, ...], amounts: Mapping[str, float], now: float) -> None:
        self._change(path, amounts, now, -1.0)

    def _change(self, path: tuple[str, ...], amounts: Mapping[str, float], now: float, sign: float) -> None:
        for account in self._chain(path):
            self.changed.add(account.path)
            account.scored_in = -1
            account.settle(now, self.half_life)
            for name, amount in amounts.items():
                account.held[name] = account.held.get(name, 0.0) + sign * amount

    def rank(self, path: tuple[str, ...], now: float) -> tuple[float, ...]:
        """Scores from the root down: compared as tuples among those that share a prefix, they walk the tree."""
        if self._scored[0] != now or self._scored[1] is not self.capacity:
            self._scored = (now, self.capacity)
            self._instant += 1
        instant = self._instant
        return tuple([one.last if one.scored_in == instant else self._score(one, now) for one in self._chain(path)])

    def _score(self, account: Account, now: float) -> float:
        account.last, account.scored_in = account.score(now, self.half_life, self.capacity), self._instant
        return account.last

    def _chain(self, path: tuple[str, ...]) -> tuple[Account, ...]:
        found = self._chains.get(path)
        if found is None:
            found = self._chains[path] = tuple([self.account(path[:depth]) for depth in range(1, len(path) + 1)])
        return found

    def fair_tree(self, path: tuple[str, ...], now: float, *, anew: bool = False) -> float:
        """Slurm's Fair Tree factor of a user (slurm.schedmd.com/fair_tree.html): its rank, counted from the last, over
        the number of users, so the best has 1. Ranks are of the last time that ``anew`` was asked, as Slurm's are of
        its last PriorityCalcPeriod, and of now for a user that was not known then.
        """
        if anew or path not in self._ranks:
            self._ranks = self._rank_all(now)
        return self._ranks.get(path, 1.0)

    def _rank_all(self, now: float) -> dict[tuple[str, ...], float]:
        """Depth first, siblings by level fair share S/U, the largest first; the children of siblings that tie stand
        together as if they were siblings, and users that tie share a rank.
        """
        children: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
        for path in self.accounts:
            children.setdefault(path[:-1], []).append(path)
        users = sum(1 for path in self.accounts if path not in children)
        ranks: dict[tuple[str, ...], float] = {}
        stack: list[list[tuple[str, ...]]] = [[()]]
        while stack:
            tied = stack.pop()
            place = users - len(ranks)
            found = [path for path in tied if path not in children]
            ranks.update(dict.fromkeys((path for path in found if path), place / max(users, 1)))
            levels: dict[float, list[tuple[str, ...]]] = {}
            for path in tied:
                for child, level in self._levels(children.get(path, []), now):
                    levels.setdefault(level, []).append(child)
            stack.extend(levels[level] for level in sorted(levels))  # the largest on top
        return ranks

    def _levels(self, siblings: list[tuple[str, ...]], now: float) -> list[tuple[tuple[str, ...], float]]:
        """Level fair share: the fraction of the siblings' shares over the fraction of their use; unused: infinite."""
        accounts = [self.accounts[path] for path in siblings]
        spent = [one.used(now, self.half_life) for one in accounts]
        weight, used = sum(one.weight for one in accounts), sum(spent)
        return [
            (path, math.inf if own <= 0 else one.weight / weight * used / own)
            for path, one, own in zip(siblings, accounts, spent, strict=True)
        ]


def multifactor(weights: Mapping[str, float], factors: Mapping[str, float]) -> float:
    """Slurm's priority/multifactor: weighted factors between 0 and 1 (slurm.schedmd.com/priority_multifactor.html)."""
    return sum(weight * factors.get(name, 0.0) for name, weight in weights.items())
