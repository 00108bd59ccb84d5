"""A rule of the policy, and the numbers beside the rules. Frozen, and pure; ``policy.py`` reads them from data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from penstock.health.state import Verb

XID, SXID = "Xid", "SXid"
RECOVERY = "154"  # the Xid that carries the driver's own recommendation


class Scope(StrEnum):
    """How far it reaches."""

    APP = "app"
    GPU = "gpu"
    NODE = "node"
    FABRIC = "fabric"


@dataclass(frozen=True, slots=True)
class Answer:
    """What is done, and what is then advised to whoever administers the node."""

    do: Verb = Verb.OBSERVE
    advise: Verb | None = None


@dataclass(frozen=True, slots=True)
class Repeat:
    """The same device again: ``after`` times ``within_s`` seconds, with at least so many different jobs."""

    after: int
    within_s: float
    answer: Answer
    jobs: int = 0
    many: int = 0  # on so many devices with jobs of the same project it is the application after all; 0: never


@dataclass(frozen=True, slots=True)
class Rule:
    """``rule`` and ``code`` as findings have them; a rule without a code is for all that have none of their own."""

    rule: str
    code: str = ""
    title: str = ""
    cause: str = ""
    scope: Scope = Scope.NODE
    answer: Answer = Answer()
    fatal: Answer | None = None  # where the line itself says that it is fatal
    after: int = 1  # it waits for so many ...
    within_s: float = 0.0  # ... in so long
    holds_s: float = 0.0  # it waits until it has been so for so long
    lasts_s: float = 0.0  # one that came once counts for so long; 0: until it is told to have ended
    sticky: bool = False  # true until it is told to have ended, though nobody tells of it again
    repeat: Repeat | None = None
    quiet_s: float = 1800.0  # ended for so long before the node returns
    check: bool = False  # and a check passed since
    shadow: bool = False
    shared: str = ""  # what of a rack it may come from (heat, power, network): many there, and it is not the nodes
    follow_up: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)  # what each says is to be done: they disagree

    @property
    def name(self) -> str:
        return f"{self.rule} {self.code}".strip()


@dataclass(frozen=True, slots=True)
class Limit:
    """At most the ``share`` of a number of nodes, or ``least`` where that is more; where it says, ``within_s`` seconds."""

    share: float
    least: int
    within_s: float = 0.0

    def of(self, nodes: int) -> int:
        return max(self.least, int(self.share * nodes + 1e-9))


@dataclass(frozen=True, slots=True)
class Often:
    """``times`` within so long."""

    times: int
    within_s: float


@dataclass(frozen=True, slots=True)
class Trust:
    """What is believed: ``stale_s`` how late a finding may be told, or not be told again; ``clock_s`` how far a node's clock
    may be ahead.
    """

    stale_s: float = 900.0
    clock_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Checks:
    """Which a node is to pass; whether before its first use; for how long one holds for a node that is idle (0: for ever)."""

    run: tuple[str, ...] = ("clock", "fio")
    first: bool = False
    between_s: float = 0.0

    @property
    def lasting(self) -> bool:
        """Whether nodes are looked at for it though nothing is wrong."""
        return self.first or self.between_s > 0


@dataclass(frozen=True, slots=True)
class Policy:
    """All rules, by rule and code, and the numbers that hold for all."""

    version: str
    rules: Mapping[tuple[str, str], Rule]
    budget: Limit = Limit(0.1, 1)
    breaker: Limit = Limit(0.2, 3, 600.0)
    common: Limit = Limit(0.3, 3, 600.0)
    domain: Limit = Limit(0.5, 3, 600.0)  # of a rack, a block ...; it is over so long after
    trust: Trust = Trust()
    lemon: Often = Often(3, 30 * 86_400.0)
    escalate: Often = Often(2, 30 * 86_400.0)
    checks: Checks = Checks()
    restart_after_s: float = 60.0  # a job that met an Xid and has not ended by itself

    def of(self, rule: str, code: str) -> Rule | None:
        """None: nobody knows it. Of a table (Xid) a code that is not in it is unknown."""
        found = self.rules.get((rule, code))
        return found if found is not None or rule in {XID, SXID} else self.rules.get((rule, ""))
