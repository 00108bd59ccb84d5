"""Where a job's wall time went: useful steps, and everything else by its cause. Pure, in whole milliseconds.

A job's time is cut into segments that meet and do not overlap, each of one part, so that the parts sum to the wall time
exactly. The words are those of the field (docs/training.md has the sources): goodput is the share spent on steps that
were kept; steps that a restart made again are lost work, whoever computed them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from statistics import median_low


class Part(StrEnum):
    STEPS = "steps"  # that were kept
    CHECKPOINT = "checkpoint"  # the loop waited for a save
    LOST = "lost"  # steps that were computed again, or ended with their life
    STARTUP = "startup"  # from the first launch to the first step
    RESTART = "restart"  # from a failure, noticed late perhaps, to the first step of the next life, without waiting
    WAITING = "waiting"  # nothing of it ran: queue, back-off
    HANG = "hang"  # from the last progress to the end of a life that was ended as hung, or to its next step
    UNMEASURED = "unmeasured"  # it ran, and reported no steps
    OTHER = "other"  # pauses between steps, and what follows the last


class End(StrEnum):
    NONE = "none"  # it runs
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"  # asked to end: cancelled, preempted, drained
    HUNG = "hung"


@dataclass(frozen=True, slots=True)
class Knot:
    """Step ``step`` was done at ``at``."""

    step: int
    at: int


@dataclass(frozen=True, slots=True)
class Life:
    """From a start of a job's ranks to their end: an attempt, or a part of one between restarts in place. Times are epoch
    milliseconds. ``first``: the step it began with, where that is known; ``pace``: milliseconds a step, 0 where unknown.
    """

    attempt: int
    began: int
    ended: int | None = None
    end: End = End.NONE
    knots: tuple[Knot, ...] = ()
    first: int | None = None
    loaded_at: int | None = None
    saved: int | None = None  # the newest step that was committed in it
    stalls: tuple[tuple[int, int], ...] = ()  # (since, length)
    pauses: tuple[tuple[int, int], ...] = ()  # likewise
    hangs: tuple[tuple[int, int], ...] = ()  # likewise: hangs that were told of, and not ended
    pace: int = 0
    stride: int = 1  # steps between reports


@dataclass(frozen=True, slots=True)
class Lives:
    """All there is to know of a job. ``until``: its end, or now."""

    submitted: int
    until: int
    over: bool
    lives: tuple[Life, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    begin: int
    end: int
    part: Part
    attempt: int  # of waiting: the one that it waited for


@dataclass(frozen=True, slots=True)
class Account:
    segments: tuple[Segment, ...]
    measured: bool  # whether steps were reported
    saves_known: bool  # whether checkpoints were reported

    @property
    def wall(self) -> int:
        return sum(each.end - each.begin for each in self.segments)

    def parts(self, attempt: int | None = None, window: tuple[int, int] | None = None) -> dict[Part, int]:
        """Milliseconds of each part; all of them together are the wall time. Of one attempt, or within a period."""
        low, high = window if window is not None else (-(2**63), 2**63)
        found = dict.fromkeys(Part, 0)
        for each in self.segments:
            if attempt is None or each.attempt == attempt:
                found[each.part] += max(0, min(each.end, high) - max(each.begin, low))
        return found


def account(job: Lives) -> Account:
    """Total: any lives in order give an account whose parts sum to ``until - submitted``."""
    until = max(job.until, job.submitted)
    kept = _kept(job)
    measured = any(life.knots for life in job.lives)
    found: list[Segment] = []
    at, pace = job.submitted, usual_pace(job.lives)
    for n, life in enumerate(job.lives):
        begin = min(max(life.began, at), until)
        end = min(max(until if life.ended is None else life.ended, begin), until)
        found.append(Segment(at, begin, Part.WAITING, life.attempt))
        found += _life(life, (begin, end), kept[n], _Kind(measured, n == 0, n == len(job.lives) - 1, life.pace or pace))
        at = end
    last = job.lives[-1].attempt if job.lives else 0
    found.append(Segment(at, until, Part.OTHER if job.over and job.lives else Part.WAITING, last))
    return Account(tuple(_merged(found)), measured, any(life.saved is not None for life in job.lives))


@dataclass(frozen=True, slots=True)
class _Kind:
    measured: bool
    first: bool
    last: bool
    pace: int

    @property
    def start(self) -> Part:
        return Part.UNMEASURED if not self.measured else Part.STARTUP if self.first else Part.RESTART


def _kept(job: Lives) -> list[int]:
    """Of each life the last step that was not computed again, nor lost with the job's end."""
    kept: list[int] = []
    limit = 2**63
    last = job.lives[-1] if job.lives else None
    if last is not None and last.end in (End.FAILED, End.HUNG, End.STOPPED):
        saved = [life.saved for life in job.lives if life.saved is not None]
        limit = max(saved) if saved else limit  # without a word of checkpoints nobody knows what the end has cost
    for life in reversed(job.lives):
        kept.append(limit)
        began = _first(life)
        limit = limit if began is None else min(limit, began - 1)
    return kept[::-1]


def _first(life: Life) -> int | None:
    if life.first is not None:
        return life.first
    return max(0, life.knots[0].step - life.stride + 1) if life.knots else None


def usual_pace(lives: Iterable[Life]) -> int:
    known = [life.pace for life in lives if life.pace > 0]
    return median_low(known) if known else 0


def _life(life: Life, span: tuple[int, int], kept: int, kind: _Kind) -> list[Segment]:
    begin, end = span
    knots = _sane(life.knots, begin, end)
    if not knots:
        part = Part.HANG if life.end is End.HUNG and kind.measured else kind.start
        found = [Segment(begin, end, part, life.attempt)]
        found = _painted(found, _pieces(life.hangs, span), Part.HANG) if kind.measured else found
        return _painted(found, _pieces(life.stalls, span), Part.CHECKPOINT) if kind.measured else found
    first = _first(life)
    first = knots[0].step if first is None else min(first, knots[0].step)
    since = max(begin, knots[0].at - kind.pace * (knots[0].step - first + 1), life.loaded_at or begin)
    since = min(since, knots[0].at)
    found = [Segment(begin, since, kind.start, life.attempt)]
    found += _work(since, knots[0].at, (first, knots[0].step), kept, life.attempt)
    for one, two in pairwise(knots):
        found += _work(one.at, two.at, (one.step + 1, two.step), kept, life.attempt)
    found = _painted(found, _pieces(life.pauses, span), Part.OTHER)
    found += _tail(life, (knots[-1], end), kept, kind)
    found = _painted(found, _pieces(life.hangs, span), Part.HANG)
    return _painted(found, _pieces(life.stalls, span), Part.CHECKPOINT)


def _sane(knots: Iterable[Knot], begin: int, end: int) -> list[Knot]:
    """Steps and times that only grow, within the life."""
    found: list[Knot] = []
    for knot in knots:
        at = min(max(knot.at, begin), end)
        if found and (knot.step <= found[-1].step or at < found[-1].at):
            continue
        found.append(Knot(knot.step, at))
    return found


def _work(begin: int, end: int, steps: tuple[int, int], kept: int, attempt: int) -> list[Segment]:
    first, last = steps
    count = last - first + 1
    good = min(max(kept - first + 1, 0), count)
    cut = begin + (end - begin) * good // count
    return [Segment(begin, cut, Part.STEPS, attempt), Segment(cut, end, Part.LOST, attempt)]


def _tail(life: Life, since: tuple[Knot, int], kept: int, kind: _Kind) -> list[Segment]:
    """From the last report to the life's end. What was under way then is at the most one report's worth of steps; the rest,
    of one that failed, is how long nobody noticed.
    """
    (last, end), pace = since, kind.pace
    under_way = min(last.at + pace * max(life.stride, 1), end)
    if life.end is End.DONE:
        return [Segment(last.at, end, Part.OTHER, life.attempt)]
    if life.end is End.NONE:
        return tail_of_running(last.at, end, pace, life.stride, life.attempt)
    if life.end is End.STOPPED and life.saved is not None and life.saved >= last.step and kept >= last.step:
        return [Segment(last.at, end, Part.OTHER, life.attempt)]
    rest = Part.HANG if life.end is End.HUNG else Part.OTHER if kind.last else Part.RESTART
    return [Segment(last.at, under_way, Part.LOST, life.attempt), Segment(under_way, end, rest, life.attempt)]


def tail_of_running(at: int, end: int, pace: int, stride: int, attempt: int) -> list[Segment]:
    """Of one that runs, since its last report: what it does now is taken to be a step for so long."""
    fresh = min(at + max(5 * pace * max(stride, 1), 1000), end)
    return [Segment(at, fresh, Part.STEPS, attempt), Segment(fresh, end, Part.OTHER, attempt)]


def _pieces(spans: Iterable[tuple[int, int]], within: tuple[int, int]) -> list[tuple[int, int]]:
    """Begin and end of each, in order, apart from each other."""
    found: list[tuple[int, int]] = []
    for since, length in sorted(spans):
        begin = max(since, within[0], found[-1][1] if found else within[0])
        end = min(since + max(length, 0), within[1])
        if end > begin:
            found.append((begin, end))
    return found


def _painted(segments: Sequence[Segment], spans: Sequence[tuple[int, int]], part: Part) -> list[Segment]:
    """The segments with ``part`` laid over them in ``spans``: what they cover stays the same."""
    found: list[Segment] = []
    n = 0
    for each in segments:
        at = each.begin
        while n < len(spans) and spans[n][1] <= at:
            n += 1
        m = n
        while m < len(spans) and spans[m][0] < each.end:
            low, high = max(spans[m][0], at), min(spans[m][1], each.end)
            found += [Segment(at, low, each.part, each.attempt), Segment(low, high, part, each.attempt)]
            at = high
            m += 1
        found.append(Segment(at, each.end, each.part, each.attempt))
    return found


def _merged(segments: Iterable[Segment]) -> Iterable[Segment]:
    """Without empty ones, neighbours of one part made one."""
    last: Segment | None = None
    for each in segments:
        if each.end <= each.begin:
            continue
        if last is not None and (last.part, last.attempt) == (each.part, each.attempt):
            last = Segment(last.begin, each.end, each.part, each.attempt)
            continue
        if last is not None:
            yield last
        last = each
    if last is not None:
        yield last


def ratio(parts: Mapping[Part, int]) -> float | None:
    """Goodput: kept steps by wall time. None where steps were not measured."""
    wall = sum(parts.values())
    return None if wall == 0 or parts[Part.UNMEASURED] == wall - parts[Part.WAITING] else parts[Part.STEPS] / wall
