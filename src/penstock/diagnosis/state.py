"""What is known of a job that is looked into, and what is made of it. Frozen, and pure.

Durations are seconds and never differences between two hosts' clocks. What is not known is None or absent, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from penstock.telemetry.spec import Finding


@dataclass(frozen=True, slots=True)
class Step:
    """One step of one rank. ``compute``: forward and backward without waiting for others; ``comm``: communication that
    nothing overlapped, waiting for others included. None: not measured.
    """

    step: int
    at: float  # its end, by the rank's own clock
    total: float
    data: float | None = None
    compute: float | None = None
    comm: float | None = None
    optimizer: float | None = None
    checkpoint: float | None = None
    gc: float | None = None
    tokens: float | None = None
    loss: float | None = None
    grad_norm: float | None = None


@dataclass(frozen=True, slots=True)
class Counters:
    """What a rank's process and its node had counted at a time; names as in ``worker/counting.py``, cumulative but for gauges.

    cpu_s, run_delay_s (/proc/self/schedstat), throttled_s (its cgroup), nonvoluntary (context switches), major_faults, rss_bytes,
    read_bytes, write_bytes, io_wait_s (delayacct, where it is on), io_pressure_s, cpu_pressure_s, memory_pressure_s (PSI "some"),
    retransmits, segments_out, net_rx_bytes, net_tx_bytes, send_queue_bytes, open_files, max_files, oom_kills, clock_offset_s, checksum, moved_step;
    by peer ("rtt_s:10.0.0.2"): rtt_s, segments, resent, sent_bytes; of torch: recompiles, alloc_retries, gpu_reserved_bytes, gpu_allocated_bytes.
    """

    at: float
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class LogLine:
    at: float
    text: str
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class Rank:
    """One rank's part of the evidence, of the life that is looked at."""

    rank: int
    node: str
    steps: tuple[Step, ...] = ()
    counters: tuple[Counters, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    lines: tuple[LogLine, ...] = ()  # those that may matter: errors, warnings, NCCL and torch; the first of them first
    stack: tuple[str, ...] = ()  # innermost first
    state: str = ""  # of /proc: R, S, D, T, Z; "gone"
    last_collective: int | None = None  # Flight Recorder's collective_seq_id
    gpu: str = ""
    exit_code: int | None = None
    signal: int | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """Samples of one value of a node or a device: (epoch seconds, value), by time."""

    name: str
    device: str
    samples: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class NodeEvidence:
    name: str
    series: tuple[Series, ...] = ()
    findings: tuple[Finding, ...] = ()
    kernel: tuple[LogLine, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Happened:
    """An event of the job that matters: a restart, a hang, a save, a preemption."""

    at: float
    what: str  # a Reason, or the checkpointer's word
    message: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Evidence:
    job: str
    project: str
    phase: str
    at: float  # when it was collected
    ranks: tuple[Rank, ...] = ()
    nodes: tuple[NodeEvidence, ...] = ()
    happened: tuple[Happened, ...] = ()
    spec: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    topology: str = ""  # "ddp", "fsdp", "pipeline"; "" is not known
    baseline: float | None = None  # median seconds a step, of the same job before it became slow, or of one like it
    missing: tuple[str, ...] = ()  # what could not be had, and why


@dataclass(frozen=True, slots=True)
class Culprit:
    kind: str  # "rank", "node", "link", "gpu", "job"
    name: str  # "1", "node-3", "node-1->node-2"


@dataclass(frozen=True, slots=True)
class Ranked:
    """A cause that may be, with what speaks for and against it, most telling first."""

    cause: str
    score: float  # 0 to 1; the sum over all need not be 1
    culprits: tuple[Culprit, ...] = ()
    evidence: tuple[str, ...] = ()
    against: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """``verdict``: a cause's id, "healthy" or "unknown". ``slowdown``: seconds a step now over the baseline's; None: not known."""

    verdict: str
    confidence: float
    culprits: tuple[Culprit, ...] = ()
    causes: tuple[Ranked, ...] = ()
    slowdown: float | None = None
    timeline: tuple[Happened, ...] = ()
    missing: tuple[str, ...] = ()
