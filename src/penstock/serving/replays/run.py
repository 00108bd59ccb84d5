"""A trace of requests against replicas that a policy orders: arrivals, machines and the policy's looks, in order of time.

Requests go to the ready replica that has the fewest, as the gateway sends them; without one they are held. A replica that is
taken away answers what it has first. What is paid is every replica from the moment it was asked for until it is gone.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any

from penstock.serving.autoscaling import Seen
from penstock.serving.replays.machine import Job, Machine
from penstock.serving.replays.policies import Policy
from penstock.serving.replays.traces import Trace
from penstock.serving.spec import Objective

RECENT_S = 60  # of which the policy is told the P95
FILLING_S = 60  # nobody goes below what it began with before the policies' windows are full
PATIENCE_S = 86400.0  # after the last arrival; a policy that leaves requests without a replica ends there
_BOUNDS = tuple(0.001 * 1.08**i for i in range(220))  # seconds, to over 6 hours


@dataclass(frozen=True, slots=True)
class World:
    """What is the same for every policy."""

    machine: Callable[[], Machine]
    cold_start: float
    objective: Objective
    begin: int  # replicas that are ready when the trace begins


@dataclass(slots=True)
class _Replica:
    machine: Machine
    asked_at: float
    ready_at: float
    stamp: int = 0
    draining: bool = False


def _load(replica: _Replica) -> int:
    return replica.machine.load


@dataclass(slots=True)
class Outcome:
    policy: str
    requests: int = 0
    misses: int = 0
    replica_seconds: float = 0.0
    changes: int = 0
    reversals: int = 0
    most: int = 0
    ended_at: float = 0.0
    unanswered: int = 0
    ttft: list[float] = field(default_factory=list)
    latency: list[float] = field(default_factory=list)
    tpot: list[float] = field(default_factory=list)
    missed: bytearray = field(default_factory=bytearray)  # 1 a request, by arrival
    arrived: list[int] = field(default_factory=list)  # each second
    wanted: list[int] = field(default_factory=list)
    ready: list[int] = field(default_factory=list)
    p95: list[float] = field(default_factory=list)  # of the last minute: of what the objective is about


class Recent:
    """Quantiles of the last minute, from counts in buckets, as the gateway's."""

    def __init__(self) -> None:
        self._sum = [0] * (len(_BOUNDS) + 1)
        self._seconds: deque[list[int]] = deque([[]])
        self.count = 0

    def add(self, value: float) -> None:
        place = bisect_left(_BOUNDS, value)
        self._seconds[-1].append(place)
        self._sum[place] += 1
        self.count += 1

    def tick(self) -> None:
        self._seconds.append([])
        if len(self._seconds) > RECENT_S:
            for place in self._seconds.popleft():
                self._sum[place] -= 1
                self.count -= 1

    def p95(self) -> float | None:
        left = 0.95 * self.count
        if not self.count:
            return None
        for place, count in enumerate(self._sum):
            left -= count
            if left <= 0:
                return _BOUNDS[min(place, len(_BOUNDS) - 1)]
        return None


def quantile(ordered: list[float], share: float) -> float:
    """Nearest rank; 0 of nothing."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


class Run:
    def __init__(self, trace: Trace, policy: Policy, world: World) -> None:
        self._requests, self._policy, self._world = trace.requests, policy, world
        self._tokens = trace.tokens
        self._replicas = [_Replica(world.machine(), 0.0, 0.0) for _ in range(world.begin)]
        self._events: list[tuple[float, int, int, _Replica]] = []
        self._count = 0
        self._held: deque[Job] = deque()
        self._in = self._arrived = 0
        self._wanted, self._direction = world.begin, 0
        self._recent = {name: Recent() for name in ("p95", "ttft", "tpot")}
        self.out = Outcome(policy.name, len(trace.requests), most=world.begin, missed=bytearray(len(trace.requests)))

    def run(self, watch: Callable[[float], None] | None = None) -> Outcome:
        """``watch`` is told, every 100 s of the trace, the part that is done."""
        requests, total, next_, second = self._requests, len(self._requests), 0, 0
        last = requests[-1].at
        while next_ < total or self._in:
            arrival = requests[next_].at if next_ < total else math.inf
            event = self._events[0][0] if self._events else math.inf
            if second <= arrival and second <= event:
                self._tick(float(second))
                second += 1
                if watch is not None and second % 100 == 0:
                    watch(min(1.0, second / max(last, 1.0)))
                if second > last + PATIENCE_S:
                    break
            elif arrival <= event:
                self._arrive(Job(next_, requests[next_], arrival), arrival)
                next_ += 1
            else:
                self._happen()
        self._close(float(second))
        return self.out

    def _arrive(self, job: Job, now: float) -> None:
        self._in += 1
        self._arrived += 1
        self._send(job, now)

    def _send(self, job: Job, now: float) -> None:
        ready = [one for one in self._replicas if one.ready_at <= now and not one.draining]
        chosen = min(ready, key=_load, default=None)
        if chosen is None:
            self._held.append(job)
            return
        chosen.machine.add(job, now)
        self._schedule(chosen)

    def _schedule(self, replica: _Replica) -> None:
        replica.stamp += 1
        due = replica.machine.due()
        if due < math.inf:
            self._count += 1
            heappush(self._events, (due, self._count, replica.stamp, replica))

    def _happen(self) -> None:
        now, _, stamp, replica = heappop(self._events)
        if stamp != replica.stamp:
            return
        for job in replica.machine.advance(now):
            self._answered(job)
        self._schedule(replica)
        if replica.draining and replica.machine.load == 0:
            self._gone(replica, now)

    def _answered(self, job: Job) -> None:
        self._in -= 1
        out, objective = self.out, self._world.objective
        took, first = job.end - job.at, job.first - job.at
        each = (job.end - job.first) / (job.request.output - 1) if job.request.output > 1 else 0.0
        out.latency.append(took)
        self._recent["p95"].add(took)
        missed = objective.p95 is not None and took > objective.p95
        if self._tokens:
            out.ttft.append(first)
            out.tpot.append(each)
            self._recent["ttft"].add(first)
            self._recent["tpot"].add(each)
            missed = missed or (objective.ttft is not None and first > objective.ttft)
            missed = missed or (objective.tpot is not None and each > objective.tpot)
        if missed:
            out.misses += 1
            out.missed[job.number] = 1

    def _gone(self, replica: _Replica, now: float) -> None:
        self._replicas.remove(replica)
        self.out.replica_seconds += now - replica.asked_at

    def _tick(self, now: float) -> None:
        out = self.out
        while self._held and any(one.ready_at <= now and not one.draining for one in self._replicas):
            self._send(self._held.popleft(), now)
        ready = sum(1 for one in self._replicas if one.ready_at <= now and not one.draining)
        found: dict[str, Any] = {name: recent.p95() for name, recent in self._recent.items()}
        samples = self._recent["p95"].count
        seen = Seen(self._in, self._arrived, 1.0, self._wanted, ready, samples=samples, **found)
        out.arrived.append(self._arrived)
        out.ready.append(ready)
        out.p95.append(found["ttft" if self._world.objective.p95 is None and self._tokens else "p95"] or 0.0)
        self._arrived = 0
        for recent in self._recent.values():
            recent.tick()
        wanted = self._policy.wanted(seen, now)
        self._scale(max(wanted, self._world.begin) if now < FILLING_S else wanted, now)
        out.wanted.append(self._wanted)

    def _scale(self, wanted: int, now: float) -> None:
        if wanted == self._wanted:
            return
        direction = 1 if wanted > self._wanted else -1
        self.out.changes += 1
        self.out.reversals += self._direction not in (0, direction)
        self._direction = direction
        self._wanted = wanted
        self.out.most = max(self.out.most, wanted)
        staying = [one for one in self._replicas if not one.draining]
        for _ in range(wanted - len(staying)):
            self._replicas.append(_Replica(self._world.machine(), now, now + self._world.cold_start))
        if wanted < len(staying):
            # those that are not ready go first, the latest of them before the others; then those with least to do
            staying.sort(key=lambda one: (one.ready_at <= now, one.machine.load, -one.ready_at))
            for replica in staying[: len(staying) - wanted]:
                replica.draining = True
                if replica.machine.load == 0:
                    self._gone(replica, now)

    def _close(self, second: float) -> None:
        out = self.out
        out.ended_at = second
        out.unanswered = self._in
        out.misses += self._in
        for replica in list(self._replicas):
            self._gone(replica, max(second, replica.asked_at))
