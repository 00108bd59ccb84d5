"""How many replicas a service shall have: pure, asked about once a second, the same live and in a replay.

Concurrency is the signal, the objective (P95, or times of tokens) is the guard. The service curve says how many requests a
replica may hold, and how many it then answers a second (``profile.py``). From that three numbers of replicas follow: those
whose throughput is the load's; those that would hold at once what is in the service now; and those that would clear in time
what will still wait when a replica that is asked for now has started. The last bounds the second: while a service falls
behind, requests in it grow without end, and a policy that follows them asks for replicas that come when all is over.

Going up is quick; going down waits until the need of the whole ``down_after`` allows it. A change of direction takes from
the budget of ``flaps`` in an hour. Down takes two while there is one left for the way up: so up is always free.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import pairwise
from typing import Any

from penstock.serving.profile import UNKNOWN, Curve, Point
from penstock.serving.spec import Autoscaling, Objective

HOUR = 3600.0
# Within which what was found out of the curve fades to a third: about once a day its promise is tried again.
_FORGETS = 24 * HOUR
_BUCKETS = 60  # of the time that stabilisation looks back


class Why(StrEnum):
    """Of a decision, as people are told it."""

    STEADY = "Steady"  # what is there fits the load
    LOAD_ROSE = "LoadRose"
    PANIC = "Panic"  # the load has at least doubled within seconds: nothing goes down for a while
    OBJECTIVE_MISSED = "ObjectiveMissed"  # the curve had promised less time than it takes
    LOAD_FELL = "LoadFell"
    STABILISING = "Stabilising"  # fewer would do now, but not for as long as `down_after`
    FLAP_BUDGET = "FlapBudget"  # fewer would do, but it has changed its direction too often in this hour
    IDLE = "Idle"
    WOKEN = "Woken"
    BOUNDED = "Bounded"  # by `min`, `max` or the project's quota


@dataclass(frozen=True, slots=True)
class Tuning:
    """What users are not asked for. benchmarks/serving_replay.py measures these values, and what a change of each costs."""

    steady: float = 60.0  # seconds that load is averaged over, at least; what is averaged over less is a burst
    starts: float = 4.0  # times the cold start, at least: a shorter burst is over before a replica for it is ready
    lag: float = 0.5  # of that time: so much later a mean tells that load fell, and so much less it is waited then
    quick: float = 6.0  # and for panic, at least
    swift: float = 0.25  # times the cold start, at least: what is over sooner helps nobody whom a new replica would
    panic: float = 2.0  # times what is ready
    headroom: float = 0.15  # above the mean load
    ahead: float = 3.0  # times the cold start: the load of so long is what comes while a replica starts
    horizon: float = 60.0  # seconds in which what waits shall be cleared, or in one cold start where that is shorter
    guard: float = 0.8  # of the objective: nothing goes down above
    samples: float = 20.0  # answers, for a P95 to be believed
    correct: float = 1.1  # the need is told so many times larger when the curve promised too much
    most_correction: float = 3.0
    full: float = 30.0  # seconds of a replica at full work, for its throughput to be believed
    believes: float = 0.8  # of what the curve promises: what it does is not told apart from that
    least: float = 0.05  # of what the curve promises


TUNING = Tuning()


@dataclass(frozen=True, slots=True)
class Seen:
    """One look at a service. ``active``: requests in it, held ones too. ``arrived`` in the ``seconds`` since the look before.
    ``p95``, ``ttft``, ``tpot``: of the ``samples`` answers of the last minute. ``most``: what quota leaves it; None: no bound.
    """

    active: float = 0.0
    arrived: float = 0.0
    seconds: float = 1.0
    replicas: int = 0  # asked for until now
    ready: int = 0
    p95: float | None = None
    ttft: float | None = None
    tpot: float | None = None
    samples: float = 0.0
    most: int | None = None


@dataclass(frozen=True, slots=True)
class Look:
    at: float
    seconds: float
    arrived: float
    active: float  # times seconds, as the next
    ready: float


@dataclass(frozen=True, slots=True)
class Memory:
    """What the planner keeps from one look to the next; plain numbers, of bounded size."""

    looks: tuple[Look, ...] = ()
    peaks: tuple[tuple[float, float], ...] = ()  # (begin of a bucket, the largest need in it)
    began_at: float | None = None
    busy_at: float | None = None
    up_at: float | None = None
    above_since: float | None = None
    panic_at: float | None = None
    guard_at: float | None = None
    correction: float = 1.0
    full: float | None = None  # answers a second of a replica at full work, where that was less than promised
    direction: int = 0
    turns: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "looks": [[look.at, look.seconds, look.arrived, look.active, look.ready] for look in self.looks],
            "peaks": [list(peak) for peak in self.peaks],
            "turns": list(self.turns),
            "correction": self.correction,
            "full": self.full,
            "direction": self.direction,
        } | {name: getattr(self, name) for name in _TIMES}


_TIMES = ("began_at", "busy_at", "up_at", "above_since", "panic_at", "guard_at")


def memory_of(body: Mapping[str, Any]) -> Memory:
    """What ``Memory.to_dict`` wrote; an empty one is a service that was never looked at."""
    times = {name: body.get(name) for name in _TIMES}
    return Memory(
        looks=tuple(Look(*row) for row in body.get("looks", ())),
        peaks=tuple((at, need) for at, need in body.get("peaks", ())),
        turns=tuple(body.get("turns", ())),
        correction=body.get("correction", 1.0),
        full=body.get("full"),
        direction=body.get("direction", 0),
        **times,
    )


@dataclass(frozen=True, slots=True)
class Decision:
    replicas: int
    reason: Why
    message: str
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Need:
    """In replicas, fractions too. ``worst``: what is seen of the objective, as a part of it."""

    now: float
    quick: float
    rate: float
    held: float
    clear: float
    worst: float
    per_replica: float
    at_work: float  # requests in a ready replica, as a part of `per_replica`


def plan(
    config: Autoscaling, curve: Curve, seen: Seen, memory: Memory, now: float, tuning: Tuning = TUNING
) -> tuple[Decision, Memory]:
    """Total and deterministic. More load never gives fewer replicas."""
    window = max(tuning.steady, tuning.starts * curve.cold_start)
    memory = _remembered(seen, memory, now, window)
    if curve.points:
        memory = replace(memory, full=_at_full_work(memory, working_point(config, curve), tuning))
    need = _need(config, curve, seen, memory, tuning)
    memory = _peaked(memory, need.now, now, config.down_after - tuning.lag * window, window)
    wish, why, memory = _wish(config, curve, seen, need, memory, now, tuning)
    high = config.max if seen.most is None else max(0, min(config.max, seen.most))
    low = min(config.min, high)
    bounded = max(low, min(high, wish))
    if bounded != wish:
        why = Why.BOUNDED
    else:
        memory = _turned(memory, bounded, seen.replicas, now)
    if bounded > seen.replicas:
        memory = replace(memory, up_at=now, above_since=None)
    numbers = {
        "need": round(need.now, 3),
        "active": seen.active,
        "per_replica": round(need.per_replica, 3),
        "rate": round(need.rate, 3),
        "held": round(need.held, 3),
        "clear": round(need.clear, 3),
        "of_objective": round(need.worst, 3),
        "turns": len(memory.turns),
    }
    return Decision(bounded, why, _words(why, bounded, seen, need, high), numbers), memory


def _remembered(seen: Seen, memory: Memory, now: float, window: float) -> Memory:
    """Looks of the steady window, those of one second put together; turns of the hour."""
    seconds = max(seen.seconds, 1e-3)
    looks = [look for look in memory.looks if now - window < look.at <= now]
    if looks and int(looks[-1].at) == int(now):
        last = looks.pop()
        looks.append(
            Look(
                now,
                last.seconds + seconds,
                last.arrived + seen.arrived,
                last.active + seen.active * seconds,
                last.ready + seen.ready * seconds,
            )
        )
    else:
        looks.append(Look(now, seconds, seen.arrived, seen.active * seconds, seen.ready * seconds))
    busy = seen.active > 0 or seen.arrived > 0 or memory.busy_at is None
    return replace(
        memory,
        looks=tuple(looks),
        turns=tuple(at for at in memory.turns if now - HOUR < at <= now),
        began_at=now if memory.began_at is None else memory.began_at,
        busy_at=now if busy else memory.busy_at,
        correction=1 + (memory.correction - 1) * math.exp(-seconds / _FORGETS),
        full=None if memory.full is None else memory.full * math.exp(seconds / _FORGETS),
    )


def _means(looks: tuple[Look, ...], since: float, least: float = 0.0) -> tuple[float, float]:
    """Arrivals a second and requests in the service, over the looks after ``since``, and over ``least`` seconds."""
    chosen = [look for look in looks if look.at > since]
    seconds = max(least, sum(look.seconds for look in chosen))
    return sum(look.arrived for look in chosen) / seconds, sum(look.active for look in chosen) / seconds


def _need(config: Autoscaling, curve: Curve, seen: Seen, memory: Memory, tuning: Tuning) -> Need:
    point = working_point(config, curve)
    now = memory.looks[-1].at
    rate, _ = _means(memory.looks, -math.inf, tuning.steady)
    quick_rate, quick_active = _means(memory.looks, now - max(tuning.quick, tuning.swift * curve.cold_start))
    answers = point.throughput / memory.correction if curve.points else 0.0  # 0: nobody knows
    answers = min(answers, memory.full if memory.full is not None else answers)
    held = quick_active / point.concurrency
    if answers:
        by_rate = rate / answers
        waits = seen.active - point.concurrency * seen.ready
        helping = (seen.ready + max(seen.ready, seen.replicas)) / 2  # those that start help for half of that time
        lately, _ = _means(memory.looks, now - max(tuning.ahead * curve.cold_start, tuning.quick), tuning.quick)
        then = max(0.0, waits + (lately - answers * helping) * curve.cold_start)
        clear = by_rate + then / (answers * min(tuning.horizon, max(curve.cold_start, 1.0)))
        need = quick = min(held, clear)
        if curve.source == "measured" or point.concurrency <= curve.points[-1].concurrency:
            need, quick = max(need, by_rate * (1 + tuning.headroom)), max(quick, quick_rate / answers)
    else:
        by_rate, clear, need, quick = 0.0, held, held, held
    return Need(
        need,
        quick,
        by_rate,
        held,
        clear,
        _worst(config, seen, tuning),
        point.concurrency,
        quick_active / (max(1, seen.ready) * point.concurrency),
    )


def _at_full_work(memory: Memory, point: Point, tuning: Tuning) -> float | None:
    """Answers a second of a replica that had all it may have, where it had for long enough: what it really does, should that
    be much less than was promised; None where it keeps its promise. Where none works so now, what was found before: a curve
    that promises too much shall not take replicas away as soon as those looks are over. The look that is decided on does not count.
    """
    promised, seconds, ended = point.throughput / memory.correction, 0.0, 0.0
    for before, look in pairwise(memory.looks[:-1]):
        was, now = before.active / before.seconds, look.active / look.seconds
        many = point.concurrency
        if min(was - many * before.ready / before.seconds, now - many * look.ready / look.seconds) > 0:
            seconds += look.ready
            ended += look.arrived - (now - was)
    if seconds < tuning.full:
        return memory.full
    if ended > tuning.believes * promised * seconds:
        return None
    return max(ended / seconds, promised * tuning.least)


def working_point(config: Autoscaling, curve: Curve) -> Point:
    """Where a replica shall work: as users say, or as the objective allows. One that no number of replicas can hold asks for no
    more of them than none would.
    """
    if config.concurrency is not None:
        return curve.at(config.concurrency)
    if not curve.points:
        return Point(UNKNOWN, UNKNOWN)
    return curve.allows(config.objective) or curve.allows(Objective()) or curve.points[0]


def _worst(config: Autoscaling, seen: Seen, tuning: Tuning) -> float:
    if seen.samples < tuning.samples:
        return 0.0
    wanted = config.objective
    pairs = ((seen.p95, wanted.p95), (seen.ttft, wanted.ttft), (seen.tpot, wanted.tpot))
    return max((took / limit for took, limit in pairs if took is not None and limit is not None), default=0.0)


def _peaked(memory: Memory, need: float, now: float, lasts: float, window: float) -> Memory:
    """A mean over ``window`` tells of a load that fell half of that later, and so much less is waited. Once the first window is
    full its own mean says what parts of it had guessed.
    """
    width = max(lasts / _BUCKETS, 1.0)
    begin = math.floor(now / width) * width
    full = (memory.began_at or 0.0) + window
    since = max(now - lasts - width, full - width if now >= full else 0.0)
    peaks = [peak for peak in memory.peaks if since < peak[0] < begin]
    same = next((value for at, value in memory.peaks if at == begin), 0.0)
    return replace(memory, peaks=(*peaks, (begin, max(same, need))))


def _wish(
    config: Autoscaling, curve: Curve, seen: Seen, need: Need, memory: Memory, now: float, tuning: Tuning
) -> tuple[int, Why, Memory]:
    """What it would be without bounds."""
    current = seen.replicas
    if need.quick >= tuning.panic * max(1, seen.ready):
        memory = replace(memory, panic_at=now)
    panics = memory.panic_at is not None and now - memory.panic_at < tuning.steady
    if current == 0:
        wakes = seen.active > 0 or seen.arrived > 0
        return (max(1, math.ceil(need.now)), Why.WOKEN, memory) if wakes else (0, Why.IDLE, memory)
    tired = memory.direction > 0 and len(memory.turns) + 2 > config.flaps
    if _idle(config, memory, now) and not panics:
        return (current, Why.FLAP_BUDGET, memory) if tired else (0, Why.IDLE, memory)
    if need.now > current * (1 + config.dead_band):
        since = now if memory.above_since is None else memory.above_since
        memory = replace(memory, above_since=since)
        if panics or now - since >= config.up_after:
            return math.ceil(need.now), Why.PANIC if panics else Why.LOAD_ROSE, memory
    else:
        memory = replace(memory, above_since=None)
    if _missed(curve, seen, need, memory, now, tuning):
        correction = min(tuning.most_correction, memory.correction * tuning.correct)
        return current + 1, Why.OBJECTIVE_MISSED, replace(memory, guard_at=now, correction=correction)
    wish, why = _down(config, need, memory, current, now)
    if wish >= current:
        return current, Why.PANIC if panics else Why.STEADY, memory
    if panics or need.worst > tuning.guard:
        return current, Why.PANIC if panics else Why.STABILISING, memory
    return (current, Why.FLAP_BUDGET, memory) if tired else (wish, why, memory)


def _missed(curve: Curve, seen: Seen, need: Need, memory: Memory, now: float, tuning: Tuning) -> bool:
    """The objective is missed by replicas that are at work, all there, and had no more in them than the curve allows: then
    the curve promised too much. One more, and wait and see. What a burst did to the P95 is no reason: it is over. Replicas
    with less than half of that in them are not what makes it slow.
    """
    full = need.per_replica * seen.ready
    burst = any(look.active > full * look.seconds for look in memory.looks[:-1] if look.at > now - tuning.steady)
    rest = max(curve.cold_start, 0.0) + tuning.steady
    waited = memory.guard_at is None or now - memory.guard_at >= rest
    settled = memory.up_at is None or now - memory.up_at >= rest
    return (
        need.worst > 1 and need.at_work >= 0.5 and not burst and seen.ready >= seen.replicas > 0 and waited and settled
    )


def _idle(config: Autoscaling, memory: Memory, now: float) -> bool:
    """Nobody has asked for so long that what was needed before does not matter."""
    return config.min == 0 and memory.busy_at is not None and now - memory.busy_at >= config.idle_after


def _down(config: Autoscaling, need: Need, memory: Memory, current: int, now: float) -> tuple[int, Why]:
    """The most that was needed in ``down_after``, with the dead band above it."""
    if memory.up_at is not None and now - memory.up_at < config.down_after:
        return current, Why.STABILISING
    most = max((value for _, value in memory.peaks), default=need.now)
    return max(1, math.ceil(most * (1 + config.dead_band))), Why.LOAD_FELL


def _turned(memory: Memory, replicas: int, current: int, now: float) -> Memory:
    """Counts changes of direction that were its own: what bounds force is nobody's flapping."""
    direction = (replicas > current) - (replicas < current)
    if direction == 0:
        return memory
    turned = memory.direction not in (0, direction)
    return replace(memory, direction=direction, turns=(*memory.turns, now) if turned else memory.turns)


def _words(why: Why, replicas: int, seen: Seen, need: Need, high: int) -> str:
    load = f"{seen.active:g} requests in it, {need.per_replica:.3g} a replica: {need.now:.2f} needed"
    told = {
        Why.STEADY: f"{load}, {replicas} there",
        Why.LOAD_ROSE: f"{load}, {seen.replicas} there",
        Why.PANIC: f"the load rose sharply: {load}; nothing goes down for now",
        Why.OBJECTIVE_MISSED: f"{100 * need.worst:.0f}% of the objective, though the curve said {need.now:.2f} would do",
        Why.LOAD_FELL: f"{load}, and no more in all the time that it waits before going down",
        Why.STABILISING: f"{load}: fewer would do, it waits whether that lasts",
        Why.FLAP_BUDGET: f"{load}: fewer would do, but it went up and down too often within the hour",
        Why.IDLE: "no request for as long as `idle_after`",
        Why.WOKEN: f"{seen.active:g} requests wait, and no replica is there",
        Why.BOUNDED: f"{load}; at most {high} are allowed here",
    }
    return told[why]
