"""What is known of nodes' health, and what may be done about it. Frozen, and pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from penstock.telemetry.spec import Finding


class Verb(StrEnum):
    """From the least to the most; a plan has at most one for each node at a time."""

    OBSERVE = "observe"
    CORDON = "cordon"  # no new work; what runs there goes on
    DRAIN = "drain"  # no new work; what runs there saves, leaves and starts again elsewhere
    RESTART_JOB = "restart-job"  # the node stays; the job that met it starts again
    RESET_GPU = "reset-gpu"  # advice: who administers the node does it
    REBOOT = "reboot"  # advice
    REPLACE = "replace"  # advice: a case for the vendor
    RETURN = "return"  # to service: cordoned by us, and well again


@dataclass(frozen=True, slots=True)
class NodeHealth:
    """One node as the planner sees it."""

    name: str
    ready: bool
    cordoned: bool  # by anybody
    cordoned_by_us: bool
    findings: tuple[Finding, ...] = ()  # active and recent ones
    jobs: tuple[str, ...] = ()  # ids of jobs that run there
    pool: str = ""
    rack: str = ""
    out_since: float | None = None  # since when it is out by our own doing
