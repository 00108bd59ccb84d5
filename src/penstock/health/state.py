"""What is known of nodes' health, and what may be done about it. Frozen, and pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from penstock.telemetry.spec import Finding

Key = tuple[str, str, str, str]  # a finding's: node, rule, code, device


class Verb(StrEnum):
    """What may be done; a plan has at most one for each node at a time."""

    OBSERVE = "observe"
    CORDON = "cordon"  # no new work; what runs there goes on
    DRAIN = "drain"  # no new work; what runs there saves, leaves and starts again elsewhere
    RESTART_JOB = "restart-job"  # the node stays; the job that met it starts again
    RESET_GPU = "reset-gpu"  # advice: who administers the node does it
    REBOOT = "reboot"  # advice
    REPLACE = "replace"  # advice: a case for the vendor
    RETURN = "return"  # to service: cordoned by us, and well again


RANK = {Verb.OBSERVE: 0, Verb.RESTART_JOB: 1, Verb.CORDON: 2, Verb.DRAIN: 3}  # of what a rule may ask for
ADVICE = {None: 0, Verb.RESET_GPU: 1, Verb.REBOOT: 2, Verb.REPLACE: 3}
OUT = frozenset({Verb.CORDON, Verb.DRAIN})


class Hold(StrEnum):
    """Why something was not done."""

    SHADOW = "shadow"  # the rule is only tried out
    DOUBT = "doubt"  # what it rests on cannot be trusted
    SHARED = "shared"  # its rack has it, or another domain that it is in: it is not the node
    COMMON = "common"  # too many nodes have the same at once: it is hardly the nodes
    BREAKER = "breaker"  # too many nodes would go at once
    BUDGET = "budget"  # as many of its pool are out as may be
    QUIET = "quiet"  # not well for long enough yet
    CHECK = "check"  # a check is to pass first
    LEMON = "lemon"  # it came back too often: a person decides
    UNMANAGED = "unmanaged"  # Penstock only reads there
    FAILED = "failed"  # its engine refused, or did not answer


@dataclass(frozen=True, slots=True)
class Sighting:
    """A finding's coming again: when (by the server's clock, where the node's is not to be trusted), how many times, and
    which attempts (``project/name#2``) ran on the node.
    """

    at: float
    count: int = 1
    jobs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of a finding beside what it says itself."""

    since: float  # when the server first heard of it, this time
    sightings: tuple[Sighting, ...] = ()  # the newest, oldest first
    late_s: float = 0.0  # how old it was when it was first told
    ended_at: float | None = None
    acked_by: str = ""  # who said that it is known, and nothing is to be done
    heard_at: float = 0.0  # when it was told last, by the server's clock; it need not have been written down


@dataclass(frozen=True, slots=True)
class Outage:
    """A time that a node was out of service by our own doing."""

    since: float
    ended_at: float | None
    verb: Verb
    keys: tuple[Key, ...]  # of the findings it rested on


@dataclass(frozen=True, slots=True)
class NodeHealth:
    """One node as the planner sees it."""

    name: str
    ready: bool
    cordoned: bool  # by anybody
    cordoned_by_us: bool
    findings: tuple[Finding, ...] = ()  # active and recent ones
    jobs: tuple[str, ...] = ()  # attempts that run there: project/name#2
    pool: str = ""
    domains: tuple[str, ...] = ()  # the rack, block, power unit ... that it is in
    out_since: float | None = None  # since when it is out by our own doing
    draining: bool = False
    seen: Mapping[Key, Seen] = field(default_factory=dict)
    doubts: Mapping[str, str] = field(default_factory=dict)  # a source's name, and its problem
    outages: tuple[Outage, ...] = ()  # of the last weeks, oldest first; the one that lasts has no end
    checked_at: float | None = None  # when a check of the node passed last

    def of(self, finding: Finding) -> Seen:
        """Of one that nobody wrote down before: as much as it says itself."""
        found = self.seen.get(finding.key)
        return found or Seen(finding.first_at, (Sighting(finding.at, finding.count),))
