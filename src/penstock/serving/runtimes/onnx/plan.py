"""When a batch runs, and of whom: pure, so that what it promises can be tested at every instant.

Work-conserving: without ``delay``, whoever waits runs as soon as the model is free. ``delay`` lets the oldest wait that
long for others, at most until the largest preferred size is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BACKOFF_FIRST = 0.1
BACKOFF_MOST = 30.0


@dataclass(frozen=True, slots=True)
class Policy:
    """``most`` rows in one run; ``preferred`` sizes, ascending; ``delay`` in seconds."""

    most: int = 32
    preferred: tuple[int, ...] = ()
    delay: float = 0.0

    @property
    def enough(self) -> int:
        """Rows for which nobody waits any longer."""
        return min(self.most, self.preferred[-1]) if self.preferred else self.most

    @property
    def warmed(self) -> tuple[int, ...]:
        """The sizes that run once before the model is ready."""
        return tuple(sorted({1, *(size for size in self.preferred if size <= self.most), self.most}))


def take(rows: Sequence[int], policy: Policy, waited: float) -> int:
    """How many of the waiting requests, oldest first and ``rows`` each, run now; 0: none yet.

    A request of more than ``most`` rows runs alone: nobody gains by refusing what the model can do.
    """
    if not rows:
        return 0
    count, total = _fit(rows, policy.most)
    if policy.delay > 0 and waited < policy.delay and total < policy.enough and count == len(rows):
        return 0
    fitting = [size for size in policy.preferred if size <= total]
    if fitting and total not in policy.preferred:
        return _fit(rows, fitting[-1])[0]
    return count


def _fit(rows: Sequence[int], most: int) -> tuple[int, int]:
    """How many requests stay within ``most`` rows, but at least one; and their rows."""
    count, total = 1, rows[0]
    for size in rows[1:]:
        if total + size > most:
            break
        count, total = count + 1, total + size
    return count, total


def backoff(crashes: int) -> float:
    """Seconds until a process that died is started again, after so many deaths in a row."""
    return min(BACKOFF_MOST, BACKOFF_FIRST * 2.0 ** max(0, min(crashes, 20) - 1))
