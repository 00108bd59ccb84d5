"""When a queued workload is likely to start ("about 14:05"), and how far off such estimates were.

A promise is an estimate that holds. For the first others in line a start is found as if each were promised one in turn,
by what they are expected to run where they say so, else by their limits. Those further back start when the work before
them is done at the fleet's full speed, which is a guess. Whoever waits for its quota starts no sooner than enough of it
was given back. Nothing is decided by these: the view is as before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from penstock.scheduling import backfill
from penstock.scheduling.timeline import OVERRUN_S, Timeline, Window, end_of

if TYPE_CHECKING:
    from penstock.scheduling.cycle import Scheduler
    from penstock.scheduling.lines import Entry
    from penstock.scheduling.quota import TreeNode

FIRST = 100  # in line, that are placed one by one
MOST_TOLD = 100_000  # estimates whose outcome is awaited, and errors kept


@dataclass(frozen=True, slots=True)
class Estimate:
    """``firm``: promised, so no later than this while limits are kept and nobody of higher order arrives."""

    start: float
    firm: bool = False


@dataclass(frozen=True, slots=True)
class ErrorSummary:
    """Of estimates against what happened. ``late``: the share that started more than a minute after it. ``bias_s``: by
    how much they started later than told, on average.
    """

    count: int
    median_s: float
    p90_s: float
    late: float
    bias_s: float = 0.0


def estimates(view: Scheduler, now: float, first: int = FIRST) -> dict[str, Estimate]:
    """For everybody in line but those for whom no end of what is in their way is known."""
    found: dict[str, Estimate] = {}
    timeline = view.timeline if view.policy.backfill != "none" else _followed(view)
    in_order = view.policy.backfill == "none" and view.policy.blocking == "strict"
    tried: list[str] = []
    notes = dict(timeline.notes)
    line, latest = _in_line(view, now), now
    try:
        for entry in islice(line, first):
            window = view.windows.get(entry.w.id)
            if window is not None:
                found[entry.w.id] = Estimate(window.promise.start, firm=True)
                continue
            start = _placed(view, timeline, entry, math.nextafter(latest, 0.0) if latest > now and in_order else now)
            if start is not None:
                tried.append(entry.w.id)
                latest = max(latest, start)
                found[entry.w.id] = Estimate(latest if in_order else start)
    finally:
        for id_ in tried:
            timeline.cancel(id_)
        timeline.notes.clear()
        timeline.notes.update(notes)
    found.update(_behind(view, line, max([now, *(one.start for one in found.values())])))
    return found


def _followed(view: Scheduler) -> Timeline:
    """Without backfill none is kept."""
    timeline = Timeline(view.pool)
    for id_, holding in view.held.items():
        timeline.hold(id_, holding.end)
    return timeline


def _in_line(view: Scheduler, now: float) -> Iterator[Entry]:
    """In the order of service as it is now: under fair share lines in turn, the least served first."""
    if view.policy.order != "fairshare":
        return iter(list(view.lines.in_order()))
    lines = sorted(view.lines.active(), key=lambda line: (view.fair.rank(line.path, now), line.head.key))
    return backfill.in_turn([iter(list(line.entries)) for line in lines])


def _placed(view: Scheduler, timeline: Timeline, entry: Entry, now: float) -> float | None:
    """A start beside all that is promised or placed so far; it is booked for as long as it is expected to run."""
    w = entry.w
    if w.estimate_s is not None:
        w = replace(w, limit_s=w.estimate_s if w.limit_s is None else min(w.limit_s, w.estimate_s))
    quota = quota_at(view, entry, now)
    if quota is None:
        return None
    nodes = backfill.places(view, entry, quota=False)
    found = timeline.earliest(w, nodes, now, backfill.closures(view, entry, now))
    if found is None:
        return None
    found = replace(found, start=max(found.start, quota))
    mask = view.pool.node_mask(share.node for share in found.shares)
    timeline.book(Window(found, end_of(w, found.start), mask))
    return found.start


def quota_at(view: Scheduler, entry: Entry, now: float) -> float | None:
    """When enough of what is held in its queue's tree will have ended for its quota; None: that is not known."""
    refusal = view.refused(entry.w)
    if refusal is None:
        return now
    if refusal.never:
        return None
    short = refusal.asked - refusal.available
    root = _root(view, entry.w.queue)
    ends = sorted(
        (holding.end, holding.asked.get(refusal.resource, 0.0))
        for holding in view.held.values()
        if holding.counted and holding.flavor == refusal.flavor and _root(view, holding.held.workload.queue) is root
    )
    for end, amount in ends:
        short -= amount
        if short <= 0:
            return None if end == math.inf else max(end, now + OVERRUN_S)
    return None


def _root(view: Scheduler, queue: str) -> TreeNode:
    """Those with the same one share quota."""
    node = view.quotas.queues[queue]
    while node.parent is not None:
        node = node.parent
    return node


def _behind(view: Scheduler, rest: Iterable[Entry], since: float) -> Iterator[tuple[str, Estimate]]:
    """Those further back: when the work before them is done, if the whole fleet does nothing else."""
    entries = list(rest)
    resource = "gpus" if view.fair.capacity.get("gpus") else "cpus"
    capacity = view.fair.capacity.get(resource, 0.0)
    known = [seconds for entry in entries if (seconds := _runs(entry)) is not None]
    if not capacity or not known:
        return
    mean, work = sum(known) / len(known), 0.0
    for entry in entries:
        yield entry.w.id, Estimate(since + work / capacity)
        seconds = _runs(entry)
        work += entry.asked.get(resource, 0.0) * (mean if seconds is None else seconds)


def _runs(entry: Entry) -> float | None:
    return entry.w.estimate_s if entry.w.estimate_s is not None else entry.w.limit_s


def error_summary(pairs: Iterable[tuple[float, float]]) -> ErrorSummary | None:
    """Of (estimated, actual) starts; None of none."""
    errors = [actual - told for told, actual in pairs]
    if not errors:
        return None
    sizes = sorted(map(abs, errors))
    late = sum(error > 60.0 for error in errors) / len(errors)
    return ErrorSummary(len(errors), _at(sizes, 0.5), _at(sizes, 0.9), late, math.fsum(errors) / len(errors))


def _at(ordered: list[float], share: float) -> float:
    """The nearest-rank percentile."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


class Record:
    """What was first told to each, until it starts; then how far off that was. The oldest are forgotten."""

    def __init__(self) -> None:
        self._told: dict[str, float] = {}
        self._pairs: list[tuple[float, float]] = []
        self._next = 0

    def tell(self, id_: str, start: float) -> None:
        if id_ not in self._told:
            if len(self._told) >= MOST_TOLD:
                del self._told[next(iter(self._told))]
            self._told[id_] = start

    def started(self, id_: str, at: float) -> None:
        told = self._told.pop(id_, None)
        if told is None:
            return
        if len(self._pairs) < MOST_TOLD:
            self._pairs.append((told, at))
        else:
            self._pairs[self._next % MOST_TOLD] = (told, at)
            self._next += 1

    def forget(self, id_: str) -> None:
        """It was withdrawn."""
        self._told.pop(id_, None)

    def summary(self) -> ErrorSummary | None:
        return error_summary(self._pairs)
