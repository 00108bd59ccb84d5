"""What an operator writes about queues, and the frozen ``Setup`` that the planners are given of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from penstock.scheduling.state import Policy, Reservation

RESOURCES = ("gpus", "cpus", "memory")  # memory in bytes, cpus in cores


@dataclass(frozen=True, slots=True)
class Quota:
    """Of one resource in one flavor. None: unlimited (borrowing), everything (lending)."""

    nominal: float
    borrowing_limit: float | None = None
    lending_limit: float | None = None


Quotas = Mapping[str, Mapping[str, Quota]]  # flavor -> resource -> quota


@dataclass(frozen=True, slots=True)
class Queue:
    """Where workloads wait. No quotas at all: whatever is free. ``reclaim_after_s``: an idle holder may be evicted then."""

    name: str
    cohort: str | None = None
    quotas: Quotas = field(default_factory=dict)
    weight: float = 1.0
    user_weights: Mapping[str, float] = field(default_factory=dict)
    projects: tuple[str, ...] = ()  # whose jobs go here by default
    reclaim_within_cohort: str = "any"  # never | lower_priority | any
    preempt_within_queue: str = "never"  # never | lower_priority
    reclaim_after_s: float | None = None
    max_limit_s: float | None = None
    qos: float = 0.0  # multifactor: 0..1

    @property
    def limited(self) -> bool:
        return bool(self.quotas)


@dataclass(frozen=True, slots=True)
class Cohort:
    """Queues (and cohorts) that lend to each other what they do not use."""

    name: str
    parent: str | None = None
    quotas: Quotas = field(default_factory=dict)
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Flavor:
    """A kind of node: by GPU model, by labels, or both. The first flavor that matches a node is its flavor."""

    name: str
    gpu_models: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything that an operator decides about scheduling. ``Setup()``: one queue "default" and no quota."""

    policy: Policy = field(default_factory=Policy)
    queues: Mapping[str, Queue] = field(default_factory=lambda: {"default": Queue("default")})
    cohorts: Mapping[str, Cohort] = field(default_factory=dict)
    flavors: Mapping[str, Flavor] = field(default_factory=dict)
    reservations: tuple[Reservation, ...] = ()
