"""What a cohort's queues lend at an instant of what others borrow: for `penstock queues`, and for a replay's accounts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stake:
    """A queue's quota of one resource of one flavor, and what it holds of that. ``limit``: the most it lends, if any."""

    nominal: float
    used: float
    limit: float | None = None

    @property
    def borrowed(self) -> float:
        return max(0.0, self.used - self.nominal)

    @property
    def lendable(self) -> float:
        """What it leaves idle, and others may have."""
        idle = max(0.0, self.nominal - self.used)
        return idle if self.limit is None else min(idle, self.limit)


def ratio(borrowed: float, common: float, lendable: float) -> float:
    """The part of what queues leave idle that is lent. ``common``, the cohorts' own quota, is nobody's and goes first."""
    short = borrowed - common
    return min(1.0, short / lendable) if short > 0 and lendable > 0 else 0.0


def lent(stakes: Mapping[str, Stake], common: float) -> dict[str, float]:
    """By queue of one tree of cohorts, each in proportion to what it could lend. With what is taken of ``common`` that is
    as much as all borrow, while nobody is above what the tree has.
    """
    part = ratio(sum(one.borrowed for one in stakes.values()), common, sum(one.lendable for one in stakes.values()))
    return {name: part * one.lendable for name, one in stakes.items()}
