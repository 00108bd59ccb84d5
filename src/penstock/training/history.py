"""What a job's rows, events and reports say of its lives. Pure: the planner's input, small enough to be kept.

A life ends with its attempt, when its engine takes it back into a line, and at a restart in place: one that the engine
told, or one that shows in the reports alone, since steps go back or a checkpoint is loaded again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median_low
from typing import Any

from penstock.base.reasons import Reason
from penstock.training import saves
from penstock.training.goodput import End, Knot, Life

MAX_KNOTS = 400  # of a life; between them steps are taken to be even
MAX_SPANS = 400  # stalls, and pauses, of a life
MAX_LIVES = 100  # of an attempt: more are a crash loop, and counted as one
_PAUSE = 5  # times the median step: a pause, no slow step
_PAUSE_MS = 1000
_LATE_MS = 300
_FOREVER = 1 << 50  # milliseconds
_STOPPED = frozenset(
    {Reason.Cancelled, Reason.Preempted, Reason.Reclaimed, Reason.NodeDrained, Reason.IdleReclaimed, Reason.TimeLimit}
)


@dataclass(frozen=True, slots=True)
class Run:
    """One stretch of an attempt on its nodes."""

    began: int
    ended: int | None
    end: End


def ms(seconds: float) -> int:
    return round(seconds * 1000)


def end_of(reason: str, *, over: bool) -> End:
    if not over:
        return End.NONE
    if reason == Reason.Completed:
        return End.DONE
    if "Hang" in reason or "Hung" in reason:
        return End.HUNG
    return End.STOPPED if reason in _STOPPED else End.FAILED


def runs(attempt: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> list[Run]:
    """When an attempt held its nodes. ``attempt``: a row; ``events``: the job's, oldest first, ``{"at","reason","data"}``.

    In the line of an engine that schedules itself it waits; the server's own engine launches from the admission on.
    """
    over = attempt["ended_at"] is not None
    last = end_of(str(attempt["reason"]), over=over)
    if not attempt["queued"]:
        end = None if not over else ms(attempt["ended_at"])
        return [Run(ms(attempt["admitted_at"]), end, last)]
    mine = [e for e in events if e["data"].get("attempt") == attempt["number"]]
    found: list[Run] = []
    for event in mine:
        if event["reason"] == Reason.AttemptStarted:
            found.append(Run(ms(event["data"].get("started_at") or event["at"]), None, End.NONE))
        elif event["reason"] == Reason.Requeued and found:
            found[-1] = replace(found[-1], ended=ms(event["data"].get("ended_at") or event["at"]), end=End.FAILED)
    if not found and attempt["started_at"] is not None:
        found = [Run(ms(attempt["started_at"]), None, End.NONE)]
    if found and over and found[-1].ended is None:
        found[-1] = replace(found[-1], ended=max(ms(attempt["ended_at"]), found[-1].began), end=last)
    return found


def lives(
    attempt: Mapping[str, Any], events: Sequence[Mapping[str, Any]], points: Sequence[Mapping[str, Any]]
) -> tuple[Life, ...]:
    """An attempt's lives. ``points``: its reports, ``{"at","rank","step","event","data"}``."""
    steps, told = _steps(points), [_told(p) for p in points if p.get("event") == "checkpoint"]
    found: list[Life] = []
    for run in runs(attempt, events):
        for piece in _restarts(run, attempt["number"], events):
            found += _split(piece, attempt["number"], steps, told)
    hangs = [e for e in events if e["reason"] == Reason.RankHung and e["data"].get("attempt") == attempt["number"]]
    found = [_hung(_told_hangs(life, hangs), [ms(e["at"]) for e in hangs]) for life in found]
    if len(found) > MAX_LIVES:
        found = [replace(found[0], ended=found[-MAX_LIVES].began, end=End.FAILED), *found[1 - MAX_LIVES :]]
    return tuple(found)


def _told_hangs(life: Life, hangs: Iterable[Mapping[str, Any]]) -> Life:
    """Those that nobody ended: from the last report, or the step that was then under way, to the next or the life's end."""
    spans = []
    for at in (ms(event["at"]) for event in hangs if event["data"].get("answer") == "tell"):
        if not life.began <= at <= (_FOREVER if life.ended is None else life.ended):
            continue
        since = max((knot.at for knot in life.knots if knot.at <= at), default=life.began)
        until = min((knot.at for knot in life.knots if knot.at > at), default=None)
        step = life.pace * life.stride
        spans.append((since + step, _FOREVER) if until is None else (since, max(until - step - since, 0)))
    return replace(life, hangs=tuple(dict.fromkeys(spans)))


def _hung(life: Life, hangs: Iterable[int]) -> Life:
    """One that was found to hang, and ended without another step, was ended for that."""
    if life.ended is None or life.end is End.DONE:
        return life
    last = life.knots[-1].at if life.knots else life.began
    hung = any(life.began <= at <= life.ended and last <= at for at in hangs)
    return replace(life, end=End.HUNG) if hung else life


def _steps(points: Sequence[Mapping[str, Any]]) -> list[Knot]:
    """Those of the lowest rank that reports any."""
    known = [p for p in points if isinstance(p.get("step"), int)]
    rank = min((int(p.get("rank") or 0) for p in known), default=0)
    return [Knot(p["step"], ms(p["at"])) for p in known if int(p.get("rank") or 0) == rank]


def _told(point: Mapping[str, Any]) -> dict[str, Any]:
    data = saves.clean(point["data"])
    return data | {"ms": ms(data.get("at", point["at"]))}


def _restarts(run: Run, number: int, events: Iterable[Mapping[str, Any]]) -> list[Run]:
    """The run, cut where its ranks were started again."""
    found, exited = [run], None
    for event in events:
        at = ms(event["data"].get("at") or event["at"])
        inside = (
            event["data"].get("attempt") == number and at > found[-1].began and (run.ended is None or at < run.ended)
        )
        if not inside:
            continue
        if event["reason"] == Reason.RankExited:
            exited = at if exited is None else exited
        elif event["reason"] == Reason.RankRestarted:
            cut = at if exited is None else min(exited, at)
            found[-1:] = [Run(found[-1].began, cut, End.FAILED), Run(cut, run.ended, run.end)]
            exited = None
    return found


def _split(run: Run, number: int, steps: Sequence[Knot], told: Sequence[Mapping[str, Any]]) -> list[Life]:
    """The run's lives: where steps go back, or a checkpoint is loaded once more, it was started again unseen."""
    high = 2**63 if run.ended is None else run.ended
    words = [each for each in told if run.began <= each["ms"] <= high]
    pending = sorted(each["ms"] for each in words if each.get("state") in ("loaded", "fresh"))
    groups: list[list[Knot]] = [[]]
    cuts: list[int] = []
    for knot in steps:
        if not run.began <= knot.at <= high:
            continue
        before = groups[-1][-1] if groups[-1] else None
        loaded = before is not None and any(before.at < at <= knot.at for at in pending)
        if before is not None and (knot.step < before.step or loaded):
            cuts.append(before.at)
            groups.append([])
        if not groups[-1] or knot.step > groups[-1][-1].step:
            groups[-1].append(knot)
    if cuts and cuts[0] - run.began < _LATE_MS:  # the last words of the life before, read late
        groups, cuts = groups[1:], cuts[1:]
    found = []
    for n, group in enumerate(groups):
        began = run.began if n == 0 else cuts[n - 1]
        last = n == len(groups) - 1
        ended, end = (run.ended, run.end) if last else (cuts[n], End.FAILED)
        found.append(_life(Life(number, began, ended, end), group, words))
    return found


def _life(life: Life, knots: Sequence[Knot], words: Sequence[Mapping[str, Any]]) -> Life:
    high = 2**63 if life.ended is None else life.ended
    mine = [each for each in words if life.began <= each["ms"] <= high]
    load = next((each for each in reversed(mine) if each.get("state") in ("loaded", "fresh")), None)
    first = None if load is None else 0 if load["state"] == "fresh" else _int(load.get("step"), -1) + 1
    saved = [_int(each.get("step"), -1) for each in mine if each.get("state") == "saved"]
    stalls = [(ms(each["began"]), ms(each["stall_s"])) for each in mine if _stall(each)]
    gaps = _gaps(knots, stalls)
    pace, stride = _pace(gaps)
    return replace(
        life,
        knots=tuple(_thin(knots, MAX_KNOTS)),
        first=first,
        loaded_at=None if load is None else load["ms"],
        saved=max(saved) if saved else None,
        stalls=tuple(_fewer(stalls)),
        pauses=tuple(_fewer(_pauses(gaps, pace))),
        pace=pace,
        stride=stride,
    )


def _stall(word: Mapping[str, Any]) -> bool:
    return word.get("state") == "saving" and all(isinstance(word.get(k), int | float) for k in ("began", "stall_s"))


def _int(value: Any, otherwise: int) -> int:
    return value if isinstance(value, int) else otherwise


def _pace(gaps: Sequence[tuple[Knot, int, int]]) -> tuple[int, int]:
    """Milliseconds a step and steps a report, the medians."""
    if not gaps:
        return 0, 1
    each = [length // steps for _, steps, length in gaps]
    if median_low(each) == 0:  # several in one report's time
        return sum(length for _, _, length in gaps) // sum(steps for _, steps, _ in gaps), 1
    return median_low(each), median_low([steps for _, steps, _ in gaps])


def _gaps(knots: Sequence[Knot], stalls: Sequence[tuple[int, int]]) -> list[tuple[Knot, int, int]]:
    """Between each two reports: the first, how many steps, and how long without the loop's waits for saves."""
    found, waits, n = [], sorted(stalls), 0
    for one, two in pairwise(knots):
        while n < len(waits) and sum(waits[n]) <= one.at:
            n += 1
        waited, m = 0, n
        while m < len(waits) and waits[m][0] < two.at:
            waited += max(0, min(sum(waits[m]), two.at) - max(waits[m][0], one.at))
            m += 1
        found.append((one, two.step - one.step, max(0, two.at - one.at - waited)))
    return found


def _pauses(gaps: Iterable[tuple[Knot, int, int]], pace: int) -> list[tuple[int, int]]:
    """What a gap has over the time that its steps take."""
    found = []
    for one, steps, length in gaps:
        due = pace * steps
        if length > max(_PAUSE * due, due + _PAUSE_MS):
            found.append((one.at, length - due))
    return found


def _thin(knots: Sequence[Knot], limit: int) -> Sequence[Knot]:
    if len(knots) <= limit:
        return knots
    stride = (len(knots) - 1) / (limit - 1)
    return [knots[round(n * stride)] for n in range(limit)]


def _fewer(spans: Sequence[tuple[int, int]]) -> Sequence[tuple[int, int]]:
    """Neighbours joined until few enough are left: their sum stays."""
    found = sorted(spans)
    while len(found) > MAX_SPANS:
        found = [
            (pair[0][0], sum(length for _, length in pair))
            for pair in (found[n : n + 2] for n in range(0, len(found), 2))
        ]
    return found


# -- kept as JSON -----------------------------------------------------------------------------------


def to_json(life: Life) -> list[Any]:
    knots = [n for knot in life.knots for n in (knot.step, knot.at - life.began)]
    stalls = [n for since, length in life.stalls for n in (since - life.began, length)]
    pauses = [n for since, length in life.pauses for n in (since - life.began, length)]
    loaded = None if life.loaded_at is None else life.loaded_at - life.began
    ended = None if life.ended is None else life.ended - life.began
    hangs = [n for since, length in life.hangs for n in (since - life.began, length)]
    rest = [life.first, loaded, life.saved, life.pace, life.stride]
    return [life.attempt, life.began, ended, life.end.value, *rest, knots, stalls, pauses, hangs]


def from_json(row: Sequence[Any]) -> Life:
    attempt, began, ended, end, first, loaded, saved, pace, stride, knots, stalls, pauses = row[:12]
    hangs = row[12] if len(row) > 12 else ()  # rows of before hangs were kept apart
    return Life(
        attempt,
        began,
        None if ended is None else began + ended,
        End(end),
        tuple(Knot(step, began + at) for step, at in _two(knots)),
        first,
        None if loaded is None else began + loaded,
        saved,
        tuple((began + since, length) for since, length in _two(stalls)),
        tuple((began + since, length) for since, length in _two(pauses)),
        tuple((began + since, length) for since, length in _two(hangs)),
        pace,
        stride,
    )


def _two(flat: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(flat[::2], flat[1::2], strict=True))
