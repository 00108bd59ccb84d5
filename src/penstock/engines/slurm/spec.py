"""The words of the Slurm engine: how a site is reached, what is asked of its controller, and what that answers. Pure.

Three seams. A ``Transport`` runs a command or opens a stream where Slurm's commands are (this machine, or a login node by
SSH). A ``Controller`` asks slurmctld and slurmdbd, by Slurm's commands over a transport or by slurmrestd. The engine
above them knows neither.

The run folder of an attempt, on the cluster, is ``<folder>/<attempt id>`` and belongs to the job's user:

    claim              the Slurm job id (an array's: 12_3) whose batch script made it first: no second one runs the attempt;
                       and requeues before it
    work/              the snapshot, unpacked; the working folder unless the launch names another
    logs/<rank>.out    what a rank wrote, standard output and error together; logs/batch.out: what the batch script said
    progress/<rank>    JSON lines, from PENSTOCK_REPORT_FD
    ranks/<rank>       a line for each of its ends: node, exit code, signal (0: none), epoch seconds, restarts before it in
                       this run, and under a launcher the bytes of its log and of its reports by then, and before it a
                       line for its start: +
    restarts           a line for each restart in place: how many so far, requeues before it, which of this run, epoch seconds
    started            one line by the batch script: epoch seconds, requeues before it; of a single process: claim tells it
    ended              one line by the batch script: epoch seconds, exit code, signal (0: none), reason, message

A time that is ``-`` is the file's own. ``<folder>/<job id>/checkpoints`` stays for the next attempt. The server's own
``run_dir`` of the attempt holds ``slurm.json`` alone: the intent, the Slurm job id, what was asked to stop, and the end once
it is known.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

_TAGGED = re.compile(r"\.([0-9A-Z]{26})\.(\d{1,9})\Z")


@dataclass(frozen=True, slots=True)
class SlurmConfig:
    """One site. ``folder`` is an absolute path, or begins with ``~`` (the home of each job's user)."""

    name: str
    ssh: str | None = None  # user@host[:port] of a login node; None: Slurm's commands are on this machine
    rest: str | None = None  # http(s)://host:port of slurmrestd; files still go by ssh, or lie on this machine
    token: str | None = None  # a JWT for slurmrestd (`scontrol token`)
    folder: str = "~/.penstock"
    shared: bool = True  # whether ``folder`` is the same on the login node and on every compute node
    partition: str | None = None  # of jobs that name none; and only its nodes are offered
    node_prefix: str = ""  # before every node's name, where two engines have nodes of one name
    managed: bool = False  # whether Penstock may change nodes, accounts, associations and QoS
    poll_s: float = 2.0
    environment: Mapping[str, str] = field(default_factory=dict)  # of Slurm's commands: SLURM_CONF, say
    options: Mapping[str, str | int | bool] = field(default_factory=dict)  # sbatch's, of every job: {"account": "ml"}


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that ran to its end."""

    code: int
    out: bytes
    err: bytes


class Stream(Protocol):
    """A command that runs on: a session, or a log that is followed."""

    async def read(self) -> bytes | None: ...  # None: the end
    async def write(self, data: bytes) -> None: ...
    async def close_input(self) -> None: ...
    async def resize(self, cols: int, rows: int) -> None: ...
    async def wait(self) -> int: ...  # its exit code
    async def close(self) -> None: ...  # end it


class Transport(Protocol):
    """Runs commands as ``user`` (None: as whoever it comes as). Words are passed as they are: nothing is seen by a shell
    that a caller did not mean for one. Raises ``errors.Unreachable`` when the site cannot be reached or does not answer
    within ``timeout_s``; a command that fails is a ``Completed``.
    """

    async def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", user: str | None = None, timeout_s: float = 30.0
    ) -> Completed: ...
    async def open(
        self, argv: Sequence[str], *, user: str | None = None, tty: tuple[int, int] | None = None
    ) -> Stream: ...
    async def home(self, user: str | None) -> str: ...  # of the user there
    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class SlurmJob:
    """A job as slurmctld or slurmdbd tells it. Times in epoch seconds."""

    id: int
    name: str  # ends in the attempt's id: ``tag``
    state: str  # the base state: PENDING, RUNNING, COMPLETED, NODE_FAIL ...
    reason: str = ""  # Slurm's own, without the comment in brackets
    user: str = ""
    account: str = ""
    partition: str = ""
    qos: str = ""
    nodes: tuple[str, ...] = ()
    submitted_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    start_estimate: float | None = None
    exit_code: int | None = None
    signal: int | None = None
    restarts: int = 0  # requeues
    array_job: int | None = None
    array_index: int | None = None
    gpus: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # by node: indices, where Slurm tells them
    cancelled_by: str | None = None  # a Unix user, where accounting tells
    comment: str = ""

    @property
    def key(self) -> str:
        """What Slurm's commands call it: 12, or 12_3 of an array, whose tasks share one id until they start."""
        return str(self.id) if self.array_index is None else f"{self.array_job}_{self.array_index}"


@dataclass(frozen=True, slots=True)
class SlurmNode:
    """Memory in bytes. ``state`` is Slurm's with its flags: ``IDLE+DRAIN``."""

    name: str
    state: str
    cpus: int
    memory: int
    gres: str = ""  # as configured: gpu:h100:8(S:0-1)
    gres_used: str = ""
    reason: str = ""
    reason_by: str = ""
    reason_at: float | None = None
    partitions: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    topology: str = ""  # spine.leaf1.gpu01, where a topology plug-in tells it
    address: str = ""


@dataclass(frozen=True, slots=True)
class Submission:
    """What ``submit`` sends. ``options`` are sbatch's long options without dashes: True stands for a bare one."""

    script: bytes
    options: Mapping[str, str | int | bool]
    user: str | None
    cwd: str = "/"
    array: str | None = None  # 0-99, 3,5,7


@dataclass(frozen=True, slots=True)
class Partition:
    name: str
    default: bool
    state: str  # UP, DOWN, DRAIN, INACTIVE
    max_time_s: float | None
    default_time_s: float | None
    nodes: tuple[str, ...]
    allow_accounts: tuple[str, ...] = ()  # empty: all
    allow_qos: tuple[str, ...] = ()
    max_nodes: int | None = None
    preempt_mode: str = ""


@dataclass(frozen=True, slots=True)
class Site:
    """What ``penstock engines add`` finds out."""

    version: str
    cluster: str
    partitions: tuple[Partition, ...]
    gres_types: tuple[str, ...]
    topology: str  # topology/tree, topology/block, topology/none
    accounting: str  # accounting_storage/slurmdbd, or none
    enforce: tuple[str, ...]  # associations, limits, qos, safe
    select: str  # select/cons_tres
    config: Mapping[str, str]  # all that `scontrol show config` said
    api: str = ""  # v0.0.38, where slurmrestd was asked


class Controller(Protocol):
    """slurmctld and slurmdbd. Every method raises ``errors.Unreachable`` when they do not answer, and
    ``errors.Refused`` (with Slurm's words) when they do and will not.
    """

    async def submit(self, submission: Submission) -> int: ...  # the job's id
    async def jobs(self, keys: Collection[str]) -> list[SlurmJob]: ...  # those slurmctld still knows: one query
    async def named(self, tags: tuple[str, ...]) -> list[SlurmJob]: ...  # by their ends; of slurmctld, else slurmdbd
    async def finished(self, keys: Sequence[str]) -> list[SlurmJob]: ...  # from slurmdbd; () where there is none
    async def devices(self, keys: Sequence[str]) -> dict[str, dict[str, tuple[int, ...]]]: ...  # GPUs by job and node
    async def signal(self, key: str, signal: str, *, user: str | None = None) -> None: ...  # its batch script alone
    async def cancel(self, key: str, *, user: str | None = None) -> None: ...
    async def nodes(self) -> list[SlurmNode]: ...
    async def set_node(self, name: str, state: str, reason: str = "") -> None: ...  # DRAIN, RESUME, DOWN
    async def site(self) -> Site: ...


def tag(attempt_id: str) -> str:
    """What the name of its Slurm job ends in: found again after any interruption."""
    return f".{attempt_id}"


def attempt_of(name: str) -> tuple[str, int] | None:
    """The job id and the attempt's number that a Slurm job's name ends in; None of a name that is none of ours."""
    match = _TAGGED.search(name)
    return None if match is None else (match[1], int(match[2]))


def job_name(job_name_: str, attempt_id: str) -> str:
    return f"{job_name_}{tag(attempt_id)}"
