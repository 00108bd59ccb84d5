"""What any engine is told and answers. An engine decides nothing: it validates, runs, observes, stops and shows logs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from penstock.base.errors import Problem


@dataclass(frozen=True, slots=True)
class MigInstance:
    id: str  # what CUDA_VISIBLE_DEVICES takes: its MIG UUID
    profile: str  # 3g.40gb


@dataclass(frozen=True, slots=True)
class Gpu:
    id: str  # what CUDA_VISIBLE_DEVICES takes: a UUID or an index
    model: str
    memory: int = 0  # bytes
    mig: tuple[MigInstance, ...] = ()  # what it is cut into; then no job can have it whole


@dataclass(frozen=True, slots=True)
class NodeOffer:
    """What an engine offers on one node: CPUs in cores, memory in bytes."""

    name: str
    cpus: float
    memory: int
    gpus: tuple[Gpu, ...] = ()
    ready: bool = True
    message: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)  # what the engine knows of it: topology/rack, say
    closed: str = ""  # the site gives it no new work: who said so, when and why; not of what Penstock itself closed
    address: str = ""  # where other machines reach it; empty: by its name
    cordoned: bool | None = None  # whether ``Engine.cordon`` holds there; None: that is not the engine's to know


@dataclass(frozen=True, slots=True)
class RankGroup:
    """One node's share of an attempt."""

    node: str
    node_rank: int
    cpus: float
    memory: int | None
    gpus: tuple[str, ...] = ()
    gpu_milli: int = 0  # of the one GPU, where it is not to have all of it


@dataclass(frozen=True, slots=True)
class JobNeeds:
    """What an engine must know to say whether it could run a job."""

    launcher: str
    procs: int
    nodes: int
    environment: Mapping[str, Any]
    least: int = 0  # nodes that will do; 0: all
    interactive: bool = False
    cpus: float = 1.0  # on each node, as all below
    memory: int | None = None
    gpus: int = 0
    gpu_models: tuple[str, ...] = ()
    gpu_milli: int = 0
    mig: str | None = None
    time_limit_s: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Launch:
    """Everything an engine needs to run one attempt. ``submit`` is idempotent by ``attempt_id`` ("<job id>.<number>").

    An engine that schedules itself is told of groups without a node ("", or one that is asked for by name) and without
    GPUs' ids: ``gpus_per_node`` says how many, and ``Observation.groups`` later which.
    """

    attempt_id: str
    job_id: str
    job_name: str
    project: str
    user: str
    attempt: int
    run_dir: str  # absolute, chosen and committed before submit
    job_dir: str  # its parent: holds work/ and checkpoints/
    groups: tuple[RankGroup, ...]
    procs: int
    launcher: str
    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    snapshot: str | None = None  # path of the gzip tar to unpack into work/
    workdir: str | None = None  # folder to run in when there is no snapshot
    unix_user: str | None = None
    time_limit_s: float | None = None
    grace_s: float = 30.0
    restarts_left: int = 0  # restarts in place that this attempt may still make
    interactive: bool = False
    idle_timeout_s: float | None = None
    log_first_bytes: int = 4 << 20
    log_newest_bytes: int = 16 << 20
    gpus_per_node: int = 0  # this and all below is read by engines that schedule themselves
    gpu_models: tuple[str, ...] = ()  # any of these will do; empty: any
    queue: str = ""
    priority: int = 0
    exclude_nodes: tuple[str, ...] = ()
    least: int = 0  # so many of ``groups`` will do, and the engine takes as many as it can have; 0: all
    options: Mapping[str, Any] = field(default_factory=dict)  # the engine's own, passed through: {"constraint": "a100"}
    array: tuple[str, int] | None = None  # of a task: the array's job id, and its index


class Stage(StrEnum):
    ABSENT = "Absent"  # nothing was started: submit may be called (again)
    QUEUED = "Queued"  # held in the line of an engine that schedules itself; ``reason`` and ``message`` say why
    STARTING = "Starting"
    RUNNING = "Running"
    EXITED = "Exited"
    LOST = "Lost"  # it ran, and how it ended cannot be known (node gone, supervisor killed)


@dataclass(frozen=True, slots=True)
class RankExit:
    rank: int
    node: str
    exit_code: int | None
    signal: int | None
    restarts: int = 0
    ended_at: float | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """One time that the ranks failed, by its root: the rank that failed first, not those that its end brought down.

    ``restart``: how many restarts in place came before. ``step``: the highest that any rank had reported since that start;
    None: none yet. ``ran_s``: since that start.
    """

    restart: int
    rank: int | None  # None: a launcher's own, or not known
    node: str
    exit_code: int | None
    signal: int | None
    step: int | None
    at: float
    ran_s: float
    lines: tuple[str, ...] = ()  # the last that it wrote


@dataclass(frozen=True, slots=True)
class Observation:
    """What an engine saw of an attempt. ``reason`` is a ``base.reasons.Reason`` value: why it waits, or how it ended.

    ``unknown_since``: the engine's own service could not be asked since then (``message`` says why); all else is what was
    last known. QUEUED after RUNNING: the engine took it back into its line; ``ended_at`` is when it ceased to run. RUNNING
    with a later ``started_at``: that went unseen, and ``queued_at`` is when it came into the line for this run, if that is known.
    """

    attempt_id: str
    stage: Stage
    at: float
    started_at: float | None = None
    ended_at: float | None = None
    reason: str | None = None
    message: str = ""
    exit_code: int | None = None
    signal: int | None = None
    restarts: int = 0  # restarts in place so far
    ranks: tuple[RankExit, ...] = ()
    progress: Mapping[str, Any] | None = None
    happened: tuple[Mapping[str, Any], ...] = ()  # rank exits and restarts in place since the last observation
    groups: tuple[RankGroup, ...] = ()  # where an engine that schedules itself has placed it, from its start on
    gpu_model: str = ""  # of all GPUs in ``groups``
    engine_job: str = ""  # the engine's own name for it: a Slurm job id
    start_estimate: float | None = None  # epoch seconds, of one that is QUEUED
    help: str = ""  # what would let one that is QUEUED start; empty where only time does
    unknown_since: float | None = None
    queued_at: float | None = None
    failures: tuple[Failure, ...] = ()  # of this attempt, those that were not told yet or all that are known


@dataclass(frozen=True, slots=True)
class GpuSample:
    """How busy a GPU was of late: ``utilization`` in percent, as NVML's ``utilization.gpu`` has it."""

    node: str
    gpu: str
    utilization: float
    at: float


@dataclass(frozen=True, slots=True)
class LogRequest:
    rank: str | None = None  # None: all ranks merged by time
    follow: bool = False
    since: float | None = None  # epoch seconds
    tail: int | None = None  # lines
    prefix: bool | None = None  # None: prefix when merged and more than one rank
    timestamps: bool = False
    raw: bool = False  # leave control sequences in


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """``command`` for exec; ``port`` (then command is empty) for port-forward."""

    command: tuple[str, ...] = ()
    tty: bool = False
    cols: int = 80
    rows: int = 24
    port: int | None = None
    node: str | None = None


class Session(Protocol):
    """A terminal, a command's pipes, or a connection to a port inside a running allocation."""

    async def receive(self) -> bytes | None: ...  # None: the end of its output
    async def send(self, data: bytes) -> None: ...
    async def resize(self, cols: int, rows: int) -> None: ...
    async def close_input(self) -> None: ...
    async def wait(self) -> int | None: ...  # the exit code; None for a port
    async def close(self) -> None: ...


class LogReader(Protocol):
    def read(self, request: LogRequest, finished: Callable[[], bool]) -> AsyncIterator[bytes]: ...
    async def progress(self) -> list[Mapping[str, Any]]: ...
    async def watched(self) -> list[Mapping[str, Any]]: ...  # what penstock.watch said: the first of it and the newest


class Engine(Protocol):
    """``submit``, ``adopt`` and ``stop`` may raise ``errors.Unreachable``, and are then called again: what was asked may
    have been done. ``cordon`` raises Conflict where the site's nodes are not Penstock's to change, and (unless ``force``) where it was the
    site that closed the node which is to be opened.
    """

    name: str
    schedules_itself: bool

    @property
    def unknown_since(self) -> float | None: ...  # its own service does not answer since then; None: it does
    async def start(self, sink: Callable[[Observation], None]) -> None: ...
    async def close(self) -> None: ...
    def nodes(self) -> Sequence[NodeOffer]: ...
    def validate(self, needs: JobNeeds) -> list[Problem]: ...
    async def submit(self, launch: Launch) -> None: ...
    async def submit_array(self, launches: Sequence[Launch]) -> None: ...  # tasks of one array, all at once
    async def adopt(self, attempt_id: str, run_dir: str) -> Observation: ...
    async def stop(self, attempt_id: str, run_dir: str, *, reason: str, grace_s: float) -> None: ...
    async def lose(self, node: str) -> None: ...
    async def restore(self, node: str) -> None: ...
    async def cordon(self, node: str, why: str | None, *, force: bool = False) -> None: ...  # None: take new work again
    async def gpu_samples(self) -> Sequence[GpuSample]: ...  # of GPUs that can be asked, now
    def logs(self, run_dir: str) -> LogReader: ...
    async def session(self, attempt_id: str, run_dir: str, request: SessionRequest) -> Session: ...
