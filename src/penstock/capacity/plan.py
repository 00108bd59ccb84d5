"""How many nodes are enough: a search over replays, and what the answer is worth. Pure: replays are handed in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

METRICS = ("p95-wait", "p50-wait", "mean-wait")
SHARES = {"p95-wait": 0.95, "p50-wait": 0.50}
WEEK_S = 7 * 86400.0
LARGEST = 100_000  # nodes


class Chance(Protocol):
    """A seeded ``random.Random``."""

    def choices(self, population: Sequence[int], *, k: int) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Target:
    """``metric`` at most ``seconds``."""

    metric: str
    seconds: float

    def allowed_above(self, jobs: int) -> int:
        """How many of so many jobs may wait longer, for a percentile (``sorted[int(share * n)]``, zero-based)."""
        return jobs - int(SHARES[self.metric] * jobs) - 1

    def met(self, weeks: Sequence[Week]) -> bool:
        jobs = sum(week.jobs for week in weeks)
        if not jobs:
            return True
        if self.metric in SHARES:
            return sum(week.above for week in weeks) <= self.allowed_above(jobs)
        return sum(week.waited for week in weeks) <= self.seconds * jobs


@dataclass(slots=True)
class Week:
    """Of the jobs submitted in one week: how many, how many waited longer than the target, and how long in all."""

    jobs: int = 0
    above: int = 0
    waited: float = 0.0


@dataclass(frozen=True, slots=True)
class Trial:
    """One replay. ``value`` is the metric; None: ended early, since the target could not be met any more."""

    nodes: int
    met: bool
    value: float | None
    weeks: tuple[Week, ...] = ()


@dataclass(frozen=True, slots=True)
class Sizing:
    nodes: int | None  # None: not met by the most nodes that were tried
    trials: tuple[Trial, ...]  # by nodes
    low: int | None  # of the interval: the fifth and the ninety-fifth hundredth of the resampled answers
    high: int | None  # None: more than the most nodes tried


Try = Callable[[int, bool], Trial]  # nodes, whether to go on to the end though the target is missed


def size(attempt: Try, start: int, least: int, most: int = LARGEST) -> tuple[int | None, dict[int, Trial]]:
    """The least number of nodes that meets the target, from ``least`` up. Wait is not monotone in nodes: the
    neighbours below are tried too until three in a row miss it.
    """
    known: dict[int, Trial] = {}

    def meets(nodes: int, *, whole: bool = False) -> bool:
        if nodes not in known or (whole and known[nodes].value is None):
            known[nodes] = attempt(nodes, whole)
        return known[nodes].met

    low, high = least - 1, max(least, min(start, most))
    step = max(1, high // 4)
    while not meets(high):
        if high >= most:
            return None, known
        low, high, step = high, min(high + step, most), step * 2
    while high - low > 1:
        middle = (low + high) // 2
        if meets(middle):
            high = middle
        else:
            low = middle
    best, below = high, high - 1
    while below >= max(least, best - 3):
        if meets(below):
            best = below
        below -= 1
    return best, known


def surroundings(best: int, least: int) -> tuple[int, ...]:
    """Node counts whose replays, run to the end, say what the answer is worth: neighbours, and a tenth around it."""
    tenth = max(2, best // 10)
    return tuple(n for n in (best - tenth, best - 1, best, best + 1, best + tenth) if n >= least)


def interval(
    trials: Mapping[int, Trial], target: Target, rng: Chance, rounds: int = 400
) -> tuple[int | None, int | None]:
    """Weeks are drawn with replacement; each draw has its least number of nodes among those replayed to the end."""
    whole = sorted((trial for trial in trials.values() if trial.value is not None), key=lambda trial: trial.nodes)
    if not whole:
        return None, None
    span = range(len(whole[0].weeks))
    answers: list[int] = []
    for _ in range(rounds):
        drawn = rng.choices(span, k=len(span)) if span else []
        found = (trial.nodes for trial in whole if target.met([trial.weeks[n] for n in drawn]))
        answers.append(next(found, LARGEST + 1))
    answers.sort()
    low, high = answers[int(0.05 * rounds)], answers[int(0.95 * rounds)]
    return (None if low > LARGEST else low), (None if high > LARGEST else high)
