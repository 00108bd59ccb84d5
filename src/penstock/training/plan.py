"""When a training makes no progress, and what follows. Pure: reports and a clock in, a verdict out.

Steps differ in length by nature: a save, an evaluation and a compilation are steps too. So the limit grows with what was
seen: it is never below ``MEDIANS`` median steps, nor below ``LONGEST`` times the longest pause that ended well.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from penstock.training.culprit import stirs, working
from penstock.training.state import Evidence, Point

MEDIANS = 20.0
LONGEST = 2.0
AUTO_LIMIT_S = 600.0  # of jobs that state none, at the least
START_LIMIT_S = 600.0  # from a start to its first report, where the job states no limit
WORKING_LIMIT_S = 600.0  # of ranks that are seen to work, though nothing is reported
WORKING_LIMITS = 10.0
POINTS = 4000  # the newest that are judged


@dataclass(frozen=True, slots=True)
class Policy:
    """What the job's specification says. ``limit_s`` None: the automatic rule."""

    limit_s: float | None
    restart: bool = True

    @property
    def floor_s(self) -> float:
        return AUTO_LIMIT_S if self.limit_s is None else self.limit_s

    @property
    def start_s(self) -> float:
        """To a life's first sign: a limit that the user has stated holds from the beginning."""
        return START_LIMIT_S if self.limit_s is None else self.limit_s

    @property
    def working_s(self) -> float:
        """How long ranks may work without a word."""
        return max(WORKING_LIMIT_S, WORKING_LIMITS * self.floor_s)


@dataclass(frozen=True, slots=True)
class Pace:
    """What was measured of the steps so far: the median step, and the longest pause between two signs of progress."""

    median_s: float | None = None
    longest_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """``since``: the last sign of progress, or the start of this life. It is stalled from ``due`` on."""

    stalled: bool
    since: float
    limit_s: float
    started: bool  # a step was reported in this life
    pace: Pace

    @property
    def due(self) -> float:
        return self.since + self.limit_s


def limit_s(policy: Policy, pace: Pace) -> float:
    return max(policy.floor_s, MEDIANS * (pace.median_s or 0.0), LONGEST * pace.longest_s)


def pace(points: Sequence[Point], lives: Sequence[float]) -> Pace:
    """``lives``: when each began. A pause over which a restart lies is no pause of the training's."""
    newest = sorted(points, key=lambda point: point.at)[-POINTS:]
    longest = max((after - before for before, after in _pauses([p.at for p in newest], lives)), default=0.0)
    steps = [point for point in newest if point.step is not None]
    if not steps:
        return Pace(None, longest)
    lowest = min(point.rank for point in steps)
    mine = [point for point in steps if point.rank == lowest]
    took = [
        (after.at - before.at) / (after.step - before.step)
        for before, after in itertools.pairwise(mine)
        if before.step is not None and after.step is not None and after.step > before.step
        if not _crosses(before.at, after.at, lives)
    ]
    return Pace(statistics.median(took) if took else None, longest)


def judge(points: Sequence[Point], lives: Sequence[float], policy: Policy, now: float) -> Verdict:
    """Whether a job that reports has stalled. ``lives`` holds at least its start; ``points`` may be of earlier lives too."""
    born = max(lives)
    seen = pace(points, lives)
    last = max((point.at for point in points if point.at >= born), default=None)
    if last is None:
        limit = max(policy.start_s, LONGEST * first_step_s(points, lives))
        return Verdict(now - born >= limit, born, limit, started=False, pace=seen)
    limit = limit_s(policy, seen)
    return Verdict(now - last >= limit, last, limit, started=True, pace=seen)


def silent(last_sign: float, longest_s: float, policy: Policy, now: float) -> Verdict:
    """As ``judge``, of a job that reports nothing: its signs of life are lines in its log, and ranks that work."""
    seen = Pace(None, longest_s)
    limit = limit_s(policy, seen)
    return Verdict(now - last_sign >= limit, last_sign, limit, started=False, pace=seen)


def first_step_s(points: Iterable[Point], lives: Sequence[float]) -> float:
    """The longest that a life took so far to its first report."""
    ats = sorted(point.at for point in points)
    longest = 0.0
    born = sorted(lives)
    for index, begin in enumerate(born):
        end = born[index + 1] if index + 1 < len(born) else float("inf")
        first = next((at for at in ats if begin <= at < end), None)
        longest = max(longest, first - begin if first is not None else 0.0)
    return longest


class Answer(StrEnum):
    WAIT = "wait"  # ranks work: it is no hang yet
    TELL = "tell"
    IN_PLACE = "restart in place"
    ANEW = "new attempt"


@dataclass(frozen=True, slots=True)
class Means:
    """What is left to answer with."""

    restarts_left: int
    in_place: bool  # the job's launcher starts ranks again by itself
    live: bool  # there is a rank to end
    starting: bool = False  # no sign of this life was seen yet
    whole: bool = True  # every rank was seen
    sure: bool = True  # ranks are seen to wait for one another, or one is stopped: silence alone is no hang


def answer(policy: Policy, evidence: Evidence, stalled_s: float, means: Means) -> Answer:
    """A job without restarts ends as Hung where its user gave a limit; by the automatic rule it is told of alone, and so is one
    of which only silence is known. A start is given its time as long as a rank is not there yet, or does anything at all.
    """
    if stalled_s < policy.working_s and any(working(look) for look in evidence.looks):
        return Answer.WAIT
    if means.starting and stalled_s < START_LIMIT_S and (not means.whole or any(map(stirs, evidence.looks))):
        return Answer.WAIT
    if not policy.restart or (policy.limit_s is None and (means.restarts_left <= 0 or not means.sure)):
        return Answer.TELL
    if means.restarts_left > 0 and means.in_place and means.live:
        return Answer.IN_PLACE
    return Answer.ANEW


def _pauses(ats: Sequence[float], lives: Sequence[float]) -> Iterable[tuple[float, float]]:
    return ((before, after) for before, after in itertools.pairwise(ats) if not _crosses(before, after, lives))


def _crosses(before: float, after: float, lives: Sequence[float]) -> bool:
    return any(before < born <= after for born in lives)
