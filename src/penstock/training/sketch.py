"""What a job's account came to when its reports were read, small enough to keep of thousands, and carried on to now. Pure.

Between two readings a job that runs is known by its last report alone: its steps since then are steps, as far as they came at the
pace that was measured, and the rest is a pause. What else happened meanwhile (saves) the next reading tells; where a step went
back, or ranks were started again, only a reading tells anything.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from penstock.training.goodput import Account, Life, Part, Segment, tail_of_running, usual_pace

_PARTS = tuple(Part)
_PAUSE = 5  # times what the steps should take: as history.py has it
_PAUSE_MS = 1000
Parts = dict[Part, int]


@dataclass(frozen=True, slots=True)
class Sketch:
    """``held``: by attempt, which device it held and how many. Segments are packed, up to the last report: where each ends, its
    part, its attempt; ``after``: those that follow it.
    """

    project: str
    name: str
    number: int | None  # the attempt that runs
    measured: bool
    held: Mapping[int, tuple[str, float]]
    begin: int
    ends: array[int]
    parts: array[int]
    attempts: array[int]
    whole: Mapping[int, Parts]  # of the packed segments, by attempt
    after: tuple[Segment, ...]
    last: tuple[int, int] | None  # the last step and when it was done, of the life that runs
    pace: int
    stride: int

    @property
    def end(self) -> int:
        return self.ends[-1] if self.ends else self.begin


def sketched(
    whose: tuple[str, str],
    number: int | None,
    held: Mapping[int, tuple[str, float]],
    known: Account,
    lives: Sequence[Life],
) -> Sketch:
    """``lives``: all of them, the one that runs the last."""
    life = lives[-1] if number is not None and lives and lives[-1].ended is None else None
    segments = known.segments
    last = (life.knots[-1].step, min(life.knots[-1].at, segments[-1].end)) if life is not None and life.knots else None
    cut = last[1] if last is not None else 2**63
    kept = [replace(each, end=min(each.end, cut)) for each in segments if each.begin < cut]
    whole: dict[int, Parts] = {}
    for each in kept:
        _add(whole, each.attempt, each.part, each.end - each.begin)
    return Sketch(
        *whose,
        number,
        known.measured,
        held,
        segments[0].begin if segments else 0,
        array("q", [each.end for each in kept]),
        array("b", [_PARTS.index(each.part) for each in kept]),
        array("i", [each.attempt for each in kept]),
        whole,
        tuple(replace(each, begin=max(each.begin, cut)) for each in segments if each.end > cut),
        last,
        (life.pace or usual_pace(lives)) if life is not None else 0,
        life.stride if life is not None else 1,
    )


def parts(sketch: Sketch, window: tuple[int, int], newest: tuple[int, int] | None, now: int) -> dict[int, Parts] | None:
    """Milliseconds by attempt and part within ``window``; None where it must be read again. ``newest``: the last step that was
    reported, and when.
    """
    tail = _tail(sketch, newest, now)
    if tail is None:
        return None
    low, high = window
    if low <= sketch.begin and sketch.end <= high:
        found = {attempt: dict(each) for attempt, each in sketch.whole.items()}
    else:
        found = {}
        n = bisect_right(sketch.ends, low)
        begin = sketch.ends[n - 1] if n else sketch.begin
        while n < len(sketch.ends) and begin < high:
            length = min(sketch.ends[n], high) - max(begin, low)
            _add(found, sketch.attempts[n], _PARTS[sketch.parts[n]], max(length, 0))
            begin, n = sketch.ends[n], n + 1
    for each in tail:
        _add(found, each.attempt, each.part, max(0, min(each.end, high) - max(each.begin, low)))
    return found


def _tail(sketch: Sketch, newest: tuple[int, int] | None, now: int) -> list[Segment] | None:
    """What follows the packed segments."""
    number, last = sketch.number, sketch.last
    if number is None:
        return []
    if newest is not None and newest[1] > (last[1] if last is not None else sketch.end):
        return None if last is None else _carried_on(sketch, last, newest, now)
    end = sketch.after[-1].end if sketch.after else sketch.end
    now = max(now, end)
    if last is None or (sketch.after and sketch.after[-1].part is Part.HANG):
        part = sketch.after[-1].part if sketch.after else _PARTS[sketch.parts[-1]] if sketch.parts else Part.UNMEASURED
        return [*sketch.after, Segment(end, now, part, number)]
    stretched = tail_of_running(last[1], now, sketch.pace, sketch.stride, number)
    return [*sketch.after, *(replace(each, begin=max(each.begin, end)) for each in stretched if each.end > end)]


def _carried_on(sketch: Sketch, last: tuple[int, int], newest: tuple[int, int], now: int) -> list[Segment] | None:
    (step, at), number = last, sketch.number or 0
    if newest[0] < step or (newest[0] > step and sketch.pace <= 0):
        return None
    due = min(sketch.pace * (newest[0] - step), newest[1] - at)
    late = newest[1] - at - due
    worked = newest[1] if late <= max((_PAUSE - 1) * due, _PAUSE_MS) else at + due
    since = [Segment(at, worked, Part.STEPS, number), Segment(worked, newest[1], Part.OTHER, number)]
    return [*since, *tail_of_running(newest[1], max(now, newest[1]), sketch.pace, sketch.stride, number)]


def _add(into: dict[int, Parts], attempt: int, part: Part, length: int) -> None:
    if length:
        of = into.setdefault(attempt, {})
        of[part] = of.get(part, 0) + length
