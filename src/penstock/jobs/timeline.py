"""A job's life as lanes: where it waited, each attempt's start-up and run, and the marks on them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.base.quantities import format_duration, parse_time
from penstock.jobs.page import FINAL, Badge, phase_badge, reason_badge

MAX_LANES = 8  # attempts drawn; older ones are counted in the first lane's label
MAX_MARKS = 40  # a lane's marks, the newest
_MARKED = frozenset(
    {"RankExited", "RankRestarted", "CancelRequested", "OutOfMemory", "NodeLost", "RankHung", "Preempted", "Requeued"}
)
_STEPS = (
    0.05,
    0.1,
    0.2,
    0.5,
    1,
    2,
    5,
    10,
    15,
    30,
    60,
    120,
    300,
    600,
    900,
    1800,
    3600,
    7200,
    14400,
    21600,
    43200,
    86400,
    172800,
    604800,
)


@dataclass(frozen=True, slots=True)
class Bar:
    x: float  # per cent of the chart's width
    width: float
    tone: str
    title: str


@dataclass(frozen=True, slots=True)
class Mark:
    x: float
    badge: Badge
    title: str


@dataclass(frozen=True, slots=True)
class Lane:
    label: str
    badge: Badge | None
    bars: tuple[Bar, ...]
    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True)
class Timeline:
    lanes: tuple[Lane, ...]
    ticks: tuple[tuple[float, str], ...]  # per cent, label
    total_s: float
    hidden: int  # older attempts that are not drawn


@dataclass(frozen=True, slots=True)
class _Scale:
    begin: float
    end: float

    def at(self, moment: float) -> float:
        share = (moment - self.begin) / (self.end - self.begin)
        return round(100 * min(1.0, max(0.0, share)), 3)

    def bar(self, start: float, stop: float, tone: str, word: str) -> Bar:
        x = self.at(start)
        return Bar(
            x, max(0.25, round(self.at(stop) - x, 3)), tone, f"{word}: {format_duration(max(0.0, stop - start))}"
        )


def timeline(
    job: Mapping[str, Any], attempts: Iterable[Mapping[str, Any]], events: Iterable[Mapping[str, Any]], now: float
) -> Timeline:
    """``now`` in epoch seconds is the right edge of a job that is not finished."""
    status = job.get("status") or {}
    begin = _time(job.get("created_at")) or now
    known = sorted(attempts, key=lambda a: int(a.get("number") or 0))
    final = str(status.get("phase")) in FINAL
    last = max([_time(a.get("ended_at")) or 0.0 for a in known], default=0.0)
    end = (_time(status.get("finished_at")) or last or now) if final else now
    scale = _Scale(begin, max(end, begin + 0.05))
    shown = known[-MAX_LANES:]
    marks = list(_marks(events, scale))
    lanes = [_waiting(begin, end, known, final, scale)]
    lanes += [_attempt(a, scale, marks, end) for a in shown]
    return Timeline(tuple(lanes), tuple(_ticks(scale)), scale.end - scale.begin, len(known) - len(shown))


def _waiting(begin: float, end: float, attempts: Sequence[Mapping[str, Any]], final: bool, scale: _Scale) -> Lane:
    bars, since = [], begin
    for attempt in attempts:
        submitted = _time(attempt.get("submitted_at")) or _time(attempt.get("started_at"))
        if submitted is not None and submitted > since:
            bars.append(scale.bar(since, submitted, "wait", "Waited"))
        since = _time(attempt.get("ended_at")) or end
    if not final and since < end:
        bars.append(scale.bar(since, end, "wait", "Waits"))
    return Lane("Waiting", None, tuple(bars), ())


def _attempt(attempt: Mapping[str, Any], scale: _Scale, marks: Sequence[tuple[float, Mark]], now: float) -> Lane:
    submitted, started = _time(attempt.get("submitted_at")), _time(attempt.get("started_at"))
    ended, reason = _time(attempt.get("ended_at")), str(attempt.get("reason") or "")
    badge = reason_badge(reason) if ended is not None and reason else phase_badge(str(attempt.get("phase")))
    until = ended if ended is not None else now
    bars = []
    first = submitted if submitted is not None else started
    if submitted is not None and (started or until) > submitted:
        tone, word = ("wait", f"In the line of {attempt['engine']}") if attempt.get("queued") else ("start", "Starting")
        bars.append(scale.bar(submitted, started if started is not None else until, tone, word))
    if started is not None:
        bars.append(scale.bar(started, until, badge.tone, "Ran" if ended is not None else "Runs"))
    own = [m for at, m in marks if first is not None and first - 0.001 <= at <= until + 0.001]
    return Lane(f"Attempt {int(attempt.get('number') or 0)}", badge, tuple(bars), tuple(own[-MAX_MARKS:]))


def _marks(events: Iterable[Mapping[str, Any]], scale: _Scale) -> Iterable[tuple[float, Mark]]:
    for event in events:
        at = _time(event.get("at"))
        if at is not None and event.get("reason") in _MARKED:
            title = f"{event.get('reason')}: {event.get('message') or ''}".rstrip(": ")
            yield at, Mark(scale.at(at), reason_badge(str(event.get("reason"))), title)


def _ticks(scale: _Scale) -> Iterable[tuple[float, str]]:
    total = scale.end - scale.begin
    step = next((s for s in _STEPS if total / s <= 6), 604800 * max(1, round(total / 604800 / 6)))
    marks = [(0.0, "0")] + [
        (scale.at(scale.begin + n * step), format_duration(n * step)) for n in range(1, int(total / step) + 1)
    ]
    return [m for m in marks if m[0] <= 95]


def _time(text: Any) -> float | None:
    return parse_time(text) if isinstance(text, str) and text else None
