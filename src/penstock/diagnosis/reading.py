"""What ``penstock.watch`` and ``penstock.report`` said, lines of logs and events of the ledger -> parts of the evidence. Pure.

All of it comes from the job's own user: what has another kind than it should is left out, and everything is bounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from penstock.base.reasons import Reason
from penstock.diagnosis import steplines
from penstock.diagnosis.state import Counters, Happened, LogLine, Rank, Step

T = TypeVar("T")
FIRST, NEWEST = 300, 1700  # steps of each rank that are kept
COUNTERS = 1000  # of each rank, the newest; before them a few
_SLACK_S = 1.0
_PHASES = ("data", "compute", "comm", "optimizer", "checkpoint", "gc")
_MICRO = 1e6
_LATEST_S = 86_400.0  # of a step: more is no step
_SAVES = {"saving", "saved", "failed", "damaged", "loaded", "fresh", "unusable", "copied", "uncopied"}
_TOLD = frozenset(
    {
        Reason.Started, Reason.AttemptStarted, Reason.AttemptEnded, Reason.RankExited, Reason.RankRestarted, Reason.Restarting,
        Reason.Requeued, Reason.RankHung, Reason.HangEnded, Reason.Straggling, Reason.StragglingEnded, Reason.NodeAvoided,
        Reason.GpuIdle, Reason.GpuIdleEnded, Reason.Preempted, Reason.Failed, Reason.OutOfMemory, Reason.TimeLimit,
        Reason.Completed, Reason.Cancelled, Reason.NodeLost, Reason.NodeDrained, Reason.Hung, Reason.CrashLoop,
        Reason.SlowedDown, Reason.SlowdownEnded, Reason.Resizing, Reason.Updated,
    }
)  # fmt: skip


def watched(events: Iterable[Mapping[str, Any]]) -> dict[int, Rank]:
    """Events of ``penstock.watch`` by rank, of the newest life of the ranks."""
    by_rank: dict[int, list[tuple[float, Mapping[str, Any]]]] = {}
    for event in events:
        data, rank = event.get("data"), event.get("rank")
        if isinstance(data, Mapping) and isinstance(rank, int):
            by_rank.setdefault(rank, []).append((_number(data.get("life")) or 0.0, event))
    lives = {rank: max(life for life, _ in told) for rank, told in by_rank.items()}
    newest = max(lives.values(), default=0.0)
    found: dict[int, Rank] = {}
    shift = 0
    for rank, told in by_rank.items():
        mine = [event for life, event in told if life == lives[rank]]
        if max(float(event["at"]) for event in mine) < newest - _SLACK_S:
            continue  # of a life before
        found[rank] = _rank(rank, mine)
        shifts = [n for e in mine if (n := e["data"].get("shift")) is not None and isinstance(n, int)]
        shift = shifts[-1] if shifts and not shift else shift
    return {rank: _shifted(one, shift) for rank, one in sorted(found.items())}


def _rank(rank: int, events: Sequence[Mapping[str, Any]]) -> Rank:
    steps: dict[int, Step] = {}
    counters: list[Counters] = []
    config: Mapping[str, Any] = {}
    for event in events:
        data = event["data"]
        if event.get("event") == "steps":
            steps |= {step.step: step for step in columns(data)}
        elif event.get("event") == "counters":
            values = {n: v for n in data if n != "life" and (v := _number(data[n])) is not None}
            counters.append(Counters(float(event["at"]), values))
        elif event.get("event") == "watched":
            config = {name: value for name, value in data.items() if name != "life"}
    ordered = tuple(steps[number] for number in sorted(steps))
    return Rank(rank, "", bounded(ordered, FIRST, NEWEST), bounded(counters, COUNTERS // 10, COUNTERS), config)


def _shifted(rank: Rank, shift: int) -> Rank:
    """Steps as the script counts them: one rank that reports is enough to know by how much that differs."""
    if not shift:
        return rank
    return replace(rank, steps=tuple(replace(step, step=step.step + shift) for step in rank.steps))


def columns(data: Mapping[str, Any]) -> list[Step]:
    """The steps of one event."""
    numbers, at0 = _list(data, "step"), _number(data.get("at0"))
    at_ms, totals = _list(data, "at_ms"), _list(data, "total")
    if at0 is None or not len(numbers) == len(at_ms) == len(totals):
        return []
    phases = {name: _list(data, name) for name in (*_PHASES, "tokens", "loss", "grad_norm")}
    found = []
    for n, number in enumerate(numbers):
        at, total = _number(at_ms[n]), _number(totals[n])
        if not isinstance(number, int) or at is None or total is None or not 0 <= total / _MICRO < _LATEST_S:
            continue
        rest = {name: _at(values, n) for name, values in phases.items()}
        seconds = {name: _seconds(rest[name], told=bool(phases[name])) for name in _PHASES}
        figures = {name: _figure(rest[name]) for name in ("tokens", "loss", "grad_norm")}
        found.append(Step(number, at0 + at / 1e3, total / _MICRO, **seconds, **figures))
    return found


def _seconds(value: Any, *, told: bool) -> float | None:
    """A column that was all zeros is not sent: zero it is, since ``watch`` measures all of them."""
    if not told:
        return 0.0
    number = _number(value)
    return None if number is None or number < 0 else number / _MICRO


def _list(data: Mapping[str, Any], name: str) -> list[Any]:
    value = data.get(name)
    return value if isinstance(value, list) else []


def _at(values: Sequence[Any], n: int) -> Any:
    return values[n] if n < len(values) else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _figure(value: Any) -> float | None:
    """JSON has no NaN: it is said in words."""
    if value in ("nan", "inf", "-inf"):
        return float(value)
    return _number(value)


def bounded(values: Sequence[T], first: int, newest: int) -> tuple[T, ...]:
    """The first and the newest of many."""
    if len(values) <= first + newest:
        return tuple(values)
    return (*values[:first], *values[-newest:])


def reported(points: Iterable[Mapping[str, Any]], born: float) -> dict[int, Rank]:
    """What can be told from ``penstock.report`` alone: how long a step took between two reports."""
    before: dict[int, tuple[int, float]] = {}
    steps: dict[int, list[Step]] = {}
    for point in points:
        at, number, rank = float(point["at"]), point.get("step"), int(point["rank"])
        if at < born or number is None or "event" in point:
            continue
        last = before.get(rank)
        if last is not None and number > last[0]:
            metrics = point.get("metrics") or {}
            total = (at - last[1]) / (number - last[0])
            loss, norm = _figure(metrics.get("loss")), _figure(metrics.get("grad_norm"))
            busy = _number(metrics.get("busy_s"))
            steps.setdefault(rank, []).append(Step(number, at, total, compute=busy, loss=loss, grad_norm=norm))
        if last is None or number != last[0]:
            before[rank] = (number, at)
    return {rank: Rank(rank, "", bounded(told, FIRST, NEWEST)) for rank, told in steps.items()}


def logged(lines: Iterable[LogLine]) -> tuple[Step, ...]:
    """Steps that a log tells of: from lines in a known form, how long they took by what they say or when they came."""
    steps: dict[int, Step] = {}
    last: tuple[int, float] | None = None
    for line in lines:
        said = steplines.read(line.text)
        if said is None:
            continue
        total = said.seconds
        if total is None and last is not None and said.step > last[0]:
            total = (line.at - last[1]) / (said.step - last[0])
        if total is not None and 0 < total < _LATEST_S:
            steps[said.step] = Step(said.step, line.at, total, loss=said.loss)
        last = (said.step, line.at)
    return bounded(tuple(steps[number] for number in sorted(steps)), FIRST, NEWEST)


def happened(events: Iterable[tuple[float, str, str, Mapping[str, Any]]]) -> tuple[Happened, ...]:
    """(when, reason, message, data) of the ledger: those that may explain something."""
    return tuple(
        Happened(float(data.get("at") or at) if isinstance(data.get("at"), int | float) else at, reason, message, data)
        for at, reason, message, data in events
        if reason in _TOLD
    )


def saves(points: Iterable[Mapping[str, Any]]) -> tuple[Happened, ...]:
    """What the checkpointer said."""
    found = []
    for point in points:
        data = point.get("data")
        if point.get("event") == "checkpoint" and isinstance(data, Mapping) and data.get("state") in _SAVES:
            words = " ".join(
                f"{name}={data[name]}" for name in ("step", "stall_s", "reason") if data.get(name) is not None
            )
            found.append(Happened(float(point["at"]), f"checkpoint:{data['state']}", words, data))
    return bounded(found, 20, 180)


def exits(
    events: Iterable[tuple[float, str, str, Mapping[str, Any]]], born: float
) -> dict[int, tuple[int | None, int | None]]:
    """(exit code, signal) by rank, since ``born``; the first of each."""
    found: dict[int, tuple[int | None, int | None]] = {}
    for at, reason, _, data in events:
        rank = data.get("rank")
        if reason == Reason.RankExited and at >= born and isinstance(rank, int):
            found.setdefault(rank, (data.get("exit_code"), data.get("signal")))
    return found
