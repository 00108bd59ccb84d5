"""What the rules ask for, computed once from the evidence: each rank's times and counters, now and before. Pure.

Everybody waits for the slowest, so the length of a step tells nothing of who is slow: what counts is each rank's own time, and
of the communication the shortest over all ranks, which is what the transfer itself takes. What is more than that is waiting.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from penstock.diagnosis import thresholds as t
from penstock.diagnosis.state import Counters, Evidence, NodeEvidence, Rank, Step

PHASES = ("total", "data", "compute", "comm", "optimizer", "checkpoint", "gc", "tokens")
OWN = ("data", "compute", "optimizer")
WHOLE_MEAN = ("checkpoint", "gc", "whole")  # seldom and long by nature: their mean leaves nothing out


@dataclass(frozen=True, slots=True)
class Window:
    """Some steps of one rank. ``median``, ``mean``: seconds a step by phase; "local" is the rank's own time, "wait" what it
    waited for others. ``rate``: counters by second of wall time.
    """

    steps: tuple[Step, ...] = ()
    median: Mapping[str, float] = field(default_factory=dict)
    mean: Mapping[str, float] = field(default_factory=dict)
    rate: Mapping[str, float] = field(default_factory=dict)

    def share(self, phase: str) -> float:
        """Of the steps' time; 0 where it was not measured. Both leave out the same steps, so it is 1 at the most."""
        total = self.mean.get("whole" if phase in WHOLE_MEAN else "total", 0.0)
        return self.mean.get(phase, 0.0) / total if total > 0 else 0.0


@dataclass(frozen=True, slots=True)
class View:
    """One rank."""

    source: Rank
    now: Window
    before: Window | None
    whole: Window

    @property
    def rank(self) -> int:
        return self.source.rank

    @property
    def node(self) -> str:
        return self.source.node

    def grew(self, counter: str) -> float:
        """A rate now, less that before where there was a before."""
        return self.now.rate.get(counter, 0.0) - (self.before.rate.get(counter, 0.0) if self.before else 0.0)


@dataclass(frozen=True, slots=True)
class Change:
    """Since when the steps are longer: the first long one, its time, and the medians before and after."""

    step: int
    at: float
    before: float
    after: float
    until: int | None = None  # the first step that was short again

    @property
    def ratio(self) -> float:
        return self.after / self.before if self.before > 0 else 1.0


@dataclass(frozen=True, slots=True)
class Features:
    evidence: Evidence
    ranks: tuple[View, ...]
    change: Change | None
    step: float  # median seconds of a step now; 0 where no steps are known
    transfer: float | None  # median over the steps of the shortest exposed communication
    transfer_before: float | None
    transfers: tuple[float, ...]  # of each step of the window
    slowdown: float | None

    def view(self, rank: int) -> View | None:
        return next((view for view in self.ranks if view.rank == rank), None)

    def peers(self, view: View, phase: str, *, mean: bool = False) -> float | None:
        """The median over the other ranks."""
        return middle(
            (other.now.mean if mean else other.now.median).get(phase) for other in self.ranks if other is not view
        )

    def peers_rate(self, view: View, counter: str) -> float | None:
        return middle(other.now.rate.get(counter) for other in self.ranks if other is not view)

    def lost(self, seconds: float) -> float:
        """As a part of a step."""
        return seconds / self.step if self.step > 0 else 0.0

    def timed(self) -> bool:
        """Whether enough steps are known for timing to tell anything."""
        return self.step > 0 and all(len(view.now.steps) >= t.FEWEST for view in self.ranks)

    def node(self, name: str) -> NodeEvidence | None:
        return next((node for node in self.evidence.nodes if node.name == name), None)


def middle(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def quantile(values: Sequence[float], part: float) -> float:
    """The value that ``part`` of them do not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


def features(evidence: Evidence, since: float | None = None) -> Features:
    """``since``: when somebody says that it became slow; a change is looked for near it."""
    ranks = tuple(sorted(evidence.ranks, key=lambda rank: rank.rank))
    steps = {rank.rank: _looked_at(rank.steps) for rank in ranks}
    change = _change(steps, since)
    shortest = _shortest(steps)
    views = tuple(_view(rank, steps[rank.rank], change, shortest) for rank in ranks)
    now = [shortest[step] for step in sorted(shortest) if _within(step, change)]
    old = [shortest[step] for step in sorted(shortest) if change is not None and step < change.step]
    median = middle(view.now.median.get("total") for view in views) or 0.0
    return Features(
        evidence,
        views,
        change,
        median,
        middle(now),
        middle(old),
        tuple(now),
        _slowdown(evidence, change, median),
    )


def _slowdown(evidence: Evidence, change: Change | None, now: float) -> float | None:
    if evidence.baseline and now > 0:
        return now / evidence.baseline
    return change.ratio if change is not None else None


def _looked_at(steps: Sequence[Step]) -> tuple[Step, ...]:
    """Without the warm-up, in order, each step once (the last that was told)."""
    known = {step.step: step for step in steps if math.isfinite(step.total) and step.total >= 0}
    ordered = [known[number] for number in sorted(known)]
    spare = min(t.WARM_UP, max(0, len(ordered) - t.FEWEST))
    return tuple(ordered[spare:][-t.NEWEST :])


def _within(step: int, change: Change | None) -> bool:
    return change is None or (step >= change.step and (change.until is None or step < change.until))


def _shortest(steps: Mapping[int, Sequence[Step]]) -> dict[int, float]:
    """Of each step that all ranks measured: the shortest exposed communication."""
    found: dict[int, list[float]] = {}
    for own in steps.values():
        for step in own:
            if step.comm is not None:
                found.setdefault(step.step, []).append(step.comm)
    return {step: min(values) for step, values in found.items() if len(values) == len(steps)}


# -- one rank ------------------------------------------------------------------------------------------------------


def _view(rank: Rank, steps: Sequence[Step], change: Change | None, shortest: Mapping[int, float]) -> View:
    whole = window(steps, rank.counters, shortest, last=True)
    if change is None:
        return View(rank, whole, None, whole)
    now = [s for s in steps if _within(s.step, change)]
    before = [s for s in steps if s.step < change.step]
    return View(
        rank,
        window(now, rank.counters, shortest, last=change.until is None),
        window(before, rank.counters, shortest, first=True),
        whole,
    )


def window(
    steps: Sequence[Step],
    counters: Sequence[Counters],
    shortest: Mapping[int, float],
    *,
    first: bool = False,
    last: bool = False,
) -> Window:
    """Of these steps, with what was counted meanwhile. ``first``, ``last``: nothing comes before, or after, that is another's."""
    columns = {phase: [v for s in steps if (v := getattr(s, phase)) is not None] for phase in PHASES}
    columns["local"] = [v for s in steps if (v := local(s)) is not None]
    columns["wait"] = [s.comm - shortest[s.step] for s in steps if s.comm is not None and s.step in shortest]
    columns["whole"] = columns["total"]
    known = {phase: values for phase, values in columns.items() if values}
    begin, end = (steps[0].at - steps[0].total, steps[-1].at) if steps else (-math.inf, math.inf)
    if first:
        begin = -math.inf
    if last:
        end = math.inf
    return Window(
        tuple(steps),
        {phase: statistics.median(values) for phase, values in known.items()},
        {phase: _mean(values, whole=phase in WHOLE_MEAN) for phase, values in known.items()},
        rates(counters, begin, end),
    )


def local(step: Step) -> float | None:
    """The rank's own time: without what it waited or sent."""
    if step.comm is not None:
        return max(0.0, step.total - step.comm)
    own = [value for phase in OWN if (value := getattr(step, phase)) is not None]
    return sum(own) if own else None


def _mean(values: Sequence[float], *, whole: bool) -> float:
    kept = sorted(values)
    if not whole:
        kept = kept[: max(1, math.ceil(len(kept) * (1 - t.OUTLIERS)) - (len(kept) >= t.FEWEST))]
    return statistics.fmean(kept)


def rates(counters: Sequence[Counters], begin: float, end: float) -> dict[str, float]:
    """By second of wall time, of what was counted from ``begin`` to ``end``: a counter that began anew loses one reading."""
    names = {name for reading in counters for name in reading.values}
    found = {name: _rate(gauge(counters, name), begin, end) for name in sorted(names)}
    return {name: value for name, value in found.items() if value is not None}


def _rate(readings: Sequence[tuple[float, float]], begin: float, end: float) -> float | None:
    inside = [index for index, (at, _) in enumerate(readings) if begin <= at <= end]
    if not inside:
        return None
    chosen = readings[
        max(0, inside[0] - (len(inside) < 2)) : inside[-1] + 1
    ]  # one before is thinned, one after would be false
    wall = chosen[-1][0] - chosen[0][0]
    if wall <= 0:
        return None
    return sum(max(0.0, new - old) for (_, old), (_, new) in itertools.pairwise(chosen)) / wall


def gauge(counters: Sequence[Counters], name: str) -> list[tuple[float, float]]:
    """The readings of one name, by time."""
    return sorted((reading.at, reading.values[name]) for reading in counters if name in reading.values)


# -- since when ------------------------------------------------------------------------------------------------------


def _change(steps: Mapping[int, Sequence[Step]], since: float | None) -> Change | None:
    """The split that divides the steps' lengths best, where the later part is longer and stays so."""
    line = _together(steps)
    least = max(t.FEWEST - 4, len(line) // 12)
    start = _split(line, least, rising=True, since=since)
    if start is None:
        return None
    later = line[start:]
    end = _split(later, least, rising=False, since=None)
    slow = later[:end] if end is not None else later
    before, after = (statistics.median(length for _, _, length in part) for part in (line[:start], slow))
    number, at, _ = slow[0]
    return Change(number, at, before, after, later[end][0] if end is not None else None)


Point = tuple[int, float, float]  # step, its time, its length


def _together(steps: Mapping[int, Sequence[Step]]) -> list[Point]:
    """The steps that every rank has, each with the median of its length; even, so that what is slow in bursts is seen too."""
    found: dict[int, list[Step]] = {}
    for own in steps.values():
        for step in own:
            found.setdefault(step.step, []).append(step)
    whole = [(number, group) for number, group in sorted(found.items()) if len(group) == len(steps)]
    lengths = [statistics.median(step.total for step in group) for _, group in whole]
    return [
        (number, min(s.at - s.total for s in group), length)
        for (number, group), length in zip(whole, _evened(lengths), strict=True)
    ]


def _evened(lengths: Sequence[float]) -> list[float]:
    """Means over a few steps around each, one stall cut to some times the median."""
    if not lengths:
        return []
    top = t.CUT * statistics.median(lengths)
    cut = [min(length, top) for length in lengths]
    around = [cut[max(0, n - t.AROUND) : n + t.AROUND + 1] for n in range(len(cut))]
    return [statistics.fmean(part) for part in around]


def _split(line: Sequence[Point], least: int, *, rising: bool, since: float | None) -> int | None:
    """Where to cut it in two: the cut with the least squares of logarithms, clipped so that one stall moves nothing."""
    if len(line) < 2 * least:
        return None
    logs = [math.log(max(length, 1e-9)) for _, _, length in line]
    low, high = quantile(logs, 0.05), quantile(logs, 0.95)
    clipped = [min(max(value, low), high) for value in logs]
    total, left, best, cut = sum(clipped), 0.0, 0.0, None
    for index in range(1, len(line)):
        left += clipped[index - 1]
        if index < least or len(line) - index < least:
            continue
        gap = (total - left) / (len(line) - index) - left / index
        gain = gap * gap * index * (len(line) - index) / _far(line[index][1], since, line)
        if (gap > 0) == rising and gain > best:
            best, cut = gain, index
    return cut if cut is not None and _stays([p[2] for p in line[:cut]], [p[2] for p in line[cut:]], rising) else None


def _far(at: float, since: float | None, line: Sequence[Point]) -> float:
    """1 near the time that was told, up to 2 far from it: a word of a person moves the cut, and does not make one."""
    if since is None:
        return 1.0
    span = line[-1][1] - line[0][1]
    return 1.0 + min(1.0, abs(at - since) / span) if span > 0 else 1.0


def _stays(early: Sequence[float], late: Sequence[float], rising: bool) -> bool:
    slow, fast = (late, early) if rising else (early, late)
    if statistics.median(slow) < t.CHANGE * statistics.median(fast):
        return False
    limit = quantile(fast, 0.9)
    return sum(length > limit for length in slow) >= t.CHANGE_PART * len(slow)
