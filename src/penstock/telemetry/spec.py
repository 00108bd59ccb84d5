"""What a source of telemetry is asked and answers, and what is told of a node: readings, findings. Frozen, and pure.

A source reads what one interface of the node says (NVML, the kernel's log, a metrics page) and decides nothing. Rules turn
readings into findings; `health/` decides what follows from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, Protocol

Labels = tuple[tuple[str, str], ...]  # sorted by name


@dataclass(frozen=True, slots=True)
class Point:
    """One value in base units. ``name``: ``penstock_node_...`` of our own, or the vendor's (``DCGM_FI_*``) as it is."""

    name: str
    value: float
    labels: Labels = ()
    type: Literal["gauge", "counter"] = "gauge"


@dataclass(frozen=True, slots=True)
class Line:
    """A record of a log that is read once: of the kernel's. ``key``: where it was, so that none is told twice."""

    at: float
    text: str
    key: str = ""
    facility: str = "kern"
    severity: int = 6  # as syslog(3)


@dataclass(frozen=True, slots=True)
class Reading:
    """All that a source said at once. ``problem``: why it could say nothing, or not all; what it said all the same is here."""

    source: str
    at: float
    points: tuple[Point, ...] = ()
    lines: tuple[Line, ...] = ()
    problem: str = ""


class Source(Protocol):
    """One file in ``sources/``. ``read`` takes as long as it takes: the agent calls it in a thread and gives up on it."""

    name: str
    every_s: float

    def read(self, now: float) -> Reading: ...

    def close(self) -> None: ...


class Severity(StrEnum):
    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with one device of one node, by one rule. The same again is the same finding, counted.

    ``rule`` is stable and PascalCase (``Xid``, ``GpuThermalThrottle``, ``LinkFlap``), ``code`` what it is about ("79").
    ``device``: a GPU's UUID or PCI address as the source names it, "mlx5_0/1", "eth0", "nvme0n1"; "" is the node.
    ``evidence`` is what it rests on: lines as they were written, values with their names. ``active`` False: it has ended.
    """

    rule: str
    node: str
    at: float  # when it was last seen
    first_at: float
    message: str
    severity: Severity = Severity.WARNING
    device: str = ""
    code: str = ""
    count: int = 1
    source: str = ""  # where it comes from: "kmsg", "nvml", or the program that told it: "gpud", "nhc", ...
    active: bool = True
    evidence: tuple[str, ...] = ()
    facts: Mapping[str, float | str] = field(default_factory=dict)  # few; what a rule or a report may ask for by name

    @property
    def key(self) -> tuple[str, str, str, str]:
        return (self.node, self.rule, self.code, self.device)
