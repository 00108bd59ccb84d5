"""Made-up traffic for the rollout's planner, second by second in virtual time: no process, no clock."""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from penstock.serving import rollout
from penstock.serving.analysis import plus
from penstock.serving.spec import Rollout
from penstock.serving.state import WHOLE, Agreement, Counts, Histogram, RolloutDecision, RolloutPhase, RolloutSeen

BOUNDS = tuple(0.0005 * 1.1**n for n in range(120))
STABLE, CANDIDATE = 1, 2


@dataclass(frozen=True, slots=True)
class Way:
    """How a version answers: latencies are lognormal about ``median`` with ``spread``."""

    errors: float = 0.0
    median: float = 0.02
    spread: float = 0.2
    agrees: float = 1.0


@dataclass(frozen=True, slots=True)
class Traffic:
    """``per_s``: requests; ``jitter``: how much that, and both versions' latencies, vary from second to second; ``own``: how much
    the latencies of each vary besides, as with a noisy neighbour.
    """

    per_s: float = 200.0
    stable: Way = Way()
    candidate: Way = Way()
    jitter: float = 0.0
    own: float = 0.0
    replicas: int = 4
    metrics: Callable[[float], dict[str, float]] | None = None


@dataclass(slots=True)
class World:
    """Counters as the gateway would have them. Replicas are ready at once when they are wanted."""

    traffic: Traffic
    chance: random.Random
    stable: Counts = field(default_factory=Counts)
    candidate: Counts = field(default_factory=Counts)
    agreement: Agreement = field(default_factory=Agreement)

    def second(self, weight: int, mirror: int) -> None:
        slower = math.exp(self.chance.gauss(0.0, self.traffic.jitter))
        total = _poisson(self.chance, self.traffic.per_s * math.exp(self.chance.gauss(0.0, self.traffic.jitter)))
        ours = sum(self.chance.randrange(WHOLE) < weight for _ in range(total))
        self.stable = plus(self.stable, self._answers(self.traffic.stable, total - ours, slower))
        self.candidate = plus(self.candidate, self._answers(self.traffic.candidate, ours, slower))
        compared = sum(self.chance.randrange(WHOLE) < mirror for _ in range(total))
        agreed = sum(self.chance.random() < self.traffic.candidate.agrees for _ in range(compared))
        before = self.agreement
        self.agreement = replace(before, compared=before.compared + compared, agreed=before.agreed + agreed)

    def _answers(self, way: Way, count: int, slower: float) -> Counts:
        chance = self.chance
        median = way.median * slower * math.exp(chance.gauss(0.0, self.traffic.own))
        buckets = [0.0] * (len(BOUNDS) + 1)
        seconds = 0.0
        for _ in range(count):
            took = median * math.exp(chance.gauss(0.0, way.spread))
            buckets[bisect_left(BOUNDS, took)] += 1
            seconds += took
        errors = sum(chance.random() < way.errors for _ in range(count))
        return Counts(count, errors, 0.0, seconds, Histogram(BOUNDS, tuple(buckets)))


def _poisson(chance: random.Random, mean: float) -> int:
    if mean > 50:
        return max(0, round(chance.gauss(mean, math.sqrt(mean))))
    count, left = 0, chance.expovariate(1.0)
    while left < mean:
        count, left = count + 1, left + chance.expovariate(1.0)
    return count


def follow(
    spec: Rollout, traffic: Traffic, seed: int, limit: float = 7200.0
) -> Iterator[tuple[float, RolloutDecision]]:
    """Each second's decision, until the rollout is over or ``limit`` seconds have gone by."""
    world = World(traffic, random.Random(seed))
    asked: dict[str, Any] = {"phase": RolloutPhase.PREPARING, "step": 0, "since": 0.0, "memory": {}}
    ready = {STABLE: traffic.replicas, CANDIDATE: 0}
    now = 0.0
    while now <= limit:
        seen = RolloutSeen(
            STABLE,
            CANDIDATE,
            wanted=traffic.replicas,
            ready=ready,
            counts={STABLE: world.stable, CANDIDATE: world.candidate},
            agreement=world.agreement,
            metrics={CANDIDATE: traffic.metrics(now)} if traffic.metrics is not None else {},
            **asked,
        )
        decision = rollout.decide(spec, seen, now)
        yield now, decision
        if decision.phase in rollout.OVER:
            return
        asked = {name: getattr(decision, name) for name in ("phase", "step", "since", "memory")}
        candidate = decision.wants[CANDIDATE]
        if now >= 10:  # replicas take a while to start, and the stable version is watched meanwhile
            ready = {number: want.replicas for number, want in decision.wants.items()}
        now += 1.0
        world.second(candidate.weight if ready[CANDIDATE] else 0, candidate.mirror if ready[CANDIDATE] else 0)


@dataclass(frozen=True, slots=True)
class Outcome:
    """``seconds``: of traffic to the candidate (copies among it), until the rollout was over."""

    phase: RolloutPhase
    seconds: float
    message: str
    evidence: float


def outcome(spec: Rollout, traffic: Traffic, seed: int, limit: float = 7200.0) -> Outcome:
    began = None
    most = 0.0
    now, last = 0.0, None
    for now, last in follow(spec, traffic, seed, limit):
        want = last.wants.get(CANDIDATE)
        if began is None and want is not None and (want.weight or want.mirror):
            began = now
        for entry in last.evidence:
            tests: Any = entry["tests"]
            most = max([most, *(test["evidence"] for test in tests)])
    assert last is not None
    return Outcome(last.phase, now - (now if began is None else began), last.message, most)
