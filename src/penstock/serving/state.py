"""What is seen of an inference service, frozen: the words that the planners, the gateway and the tables share."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

WHOLE = 10_000  # weights and shares are counted in hundredths of a percent


class ReplicaPhase(StrEnum):
    STARTING = "Starting"  # its job is not running yet, or its runtime loads the model
    WARMING = "Warming"  # the model is loaded and answers its first request
    READY = "Ready"
    DRAINING = "Draining"  # out of the routes; it answers what it has
    GONE = "Gone"


class Role(StrEnum):
    """Of a version in its service."""

    STABLE = "Stable"
    CANDIDATE = "Candidate"  # being rolled out
    RETIRED = "Retired"


class RolloutPhase(StrEnum):
    PREPARING = "Preparing"  # the candidate's replicas start
    PROGRESSING = "Progressing"
    PAUSED = "Paused"  # waits for `promote` or `rollback`
    PROMOTED = "Promoted"
    ROLLED_BACK = "RolledBack"


@dataclass(frozen=True, slots=True)
class Replica:
    """One job that serves one version. ``stages``: seconds of each part of its cold start (queued, started, loaded, warmed)."""

    id: str  # the job's
    name: str
    version: int
    phase: ReplicaPhase
    since: float
    address: str = ""
    port: int = 0
    grpc_port: int = 0
    stages: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Histogram:
    """Latencies in seconds: ``counts[i]`` of them lie above ``bounds[i-1]`` and at ``bounds[i]`` or below; the last count is
    of those above all bounds.
    """

    bounds: tuple[float, ...] = ()
    counts: tuple[float, ...] = ()

    @property
    def total(self) -> float:
        return sum(self.counts)

    def since(self, before: Histogram) -> Histogram:
        """What came after ``before``. Counters that fell were reset: all of them are then new."""
        if before.bounds != self.bounds or any(a < b for a, b in zip(self.counts, before.counts, strict=True)):
            return self
        return Histogram(self.bounds, tuple(a - b for a, b in zip(self.counts, before.counts, strict=True)))

    def plus(self, other: Histogram) -> Histogram:
        if not self.counts or not other.counts:
            return self if self.counts else other
        if self.bounds != other.bounds:
            raise ValueError("histograms of different bounds do not add up")
        return Histogram(self.bounds, tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)))

    def above(self, limit: float) -> float:
        """How many are surely longer than ``limit``: those of buckets that begin there or after."""
        return sum(self.counts[bisect_left(self.bounds, limit) + 1 :])

    def quantile(self, q: float) -> float | None:
        """Linear inside of a bucket; None of an empty one. What lies above all bounds is told as the last bound."""
        left = q * self.total
        if not self.total:
            return None
        low = 0.0
        for high, count in zip(self.bounds, self.counts, strict=False):
            if count and left <= count:
                return low + (high - low) * left / count
            left -= count
            low = high
        return self.bounds[-1] if self.bounds else None


@dataclass(frozen=True, slots=True)
class Counts:
    """Counters of one version's traffic as the gateway saw it, since the gateway began; ``active`` is now. ``refused``: what the
    version itself answered with 400 to 499; 429 says that it is full, and what the gateway refuses never comes to a version.
    """

    requests: float = 0.0
    errors: float = 0.0  # answers of 500 and above, resets and timeouts, retried ones among them
    active: float = 0.0
    seconds: float = 0.0  # summed latency
    latency: Histogram = Histogram()
    refused: float = 0.0

    @property
    def bad(self) -> float:
        """What no caller got an answer from. Callers' own mistakes are among them: all versions see as many of these."""
        return self.errors + self.refused

    def since(self, before: Counts) -> Counts:
        if self.requests < before.requests or self.errors < before.errors:
            return self
        return Counts(
            self.requests - before.requests,
            self.errors - before.errors,
            self.active,
            max(0.0, self.seconds - before.seconds),
            self.latency.since(before.latency),
            max(0.0, self.refused - before.refused),
        )


@dataclass(frozen=True, slots=True)
class Agreement:
    """What the comparator saw of a version in shadow, since it began."""

    compared: int = 0
    agreed: int = 0
    failed: int = 0  # of those compared: the shadow answered with an error where the stable one did not
    slower_s: float = 0.0  # summed difference of latencies
    examples: tuple[Mapping[str, object], ...] = ()  # bounded: request, both answers, what differs


# -- what rollout.py is asked, and what it answers (services' reconcile keeps both in rows)


@dataclass(frozen=True, slots=True)
class Want:
    """Of one version: so many replicas, and of WHOLE requests so many, and as copies so many."""

    replicas: int
    weight: int = 0
    mirror: int = 0


@dataclass(frozen=True, slots=True)
class RolloutSeen:
    """``rollout.decide(spec.rollout, seen, now)`` is asked about once a second and at every change. ``wanted``: replicas of
    the whole service. ``counts`` and ``agreement`` are since their source began: what they were at a step's beginning is in
    ``memory``, which the planner wrote itself (plain JSON). ``failures``: replicas of the candidate, in a row, that never
    became ready. ``asked``: "promote" or "rollback", by a person, until it is done.
    """

    stable: int
    candidate: int
    phase: RolloutPhase
    step: int
    since: float
    wanted: int
    ready: Mapping[int, int] = field(default_factory=dict)
    counts: Mapping[int, Counts] = field(default_factory=dict)
    agreement: Agreement | None = None
    metrics: Mapping[int, Mapping[str, float]] = field(
        default_factory=dict
    )  # that the ready replicas report, their mean
    failures: int = 0
    asked: str = ""
    memory: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RolloutDecision:
    """``wants`` names both versions while both live. ``evidence``: entries to add, plain JSON, each with ``at``, ``step``,
    ``what`` and what was compared. ``reason``: a base.reasons.Reason to tell of; "" for none.
    """

    phase: RolloutPhase
    step: int
    since: float
    wants: Mapping[int, Want]
    memory: Mapping[str, object] = field(default_factory=dict)
    evidence: tuple[Mapping[str, object], ...] = ()
    reason: str = ""
    message: str = ""
    again_s: float = 1.0
