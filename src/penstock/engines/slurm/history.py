"""What ran on a cluster, as sacct tells it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from penstock.engines.slurm import parsing
from penstock.engines.slurm.errors import Refused

FIELDS = (
    "JobIDRaw",
    "JobID",
    "DBIndex",
    "JobName",
    "User",
    "Account",
    "Partition",
    "State",
    "Start",
    "End",
    "AllocTRES",
    "NodeList",
)
_SACCT = ("env", "SLURM_TIME_FORMAT=%s", "sacct", "-aDXnP", f"--format={','.join(FIELDS)}")
_RAN = "R,CD,CA,F,TO,NF,PR,OOM,BF,DL,RQ,RS,S"  # states of those that have run, or do
_SIZES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50, "": 1 << 20}
DIAGNOSIS = ("sdiag",)


@dataclass(frozen=True, slots=True)
class Run:
    """One allocation, from its start to its end: a job that is requeued has several, each with its own ``record``."""

    job: int
    shown: str  # as people know it: 12_3 of an array
    record: int  # slurmdbd's own number of it
    name: str
    user: str
    account: str
    partition: str
    state: str
    started_at: float
    ended_at: float | None
    nodes: tuple[str, ...]
    cpus: float
    memory: float  # bytes; 0 where the site does not hand it out
    gpus: Mapping[str, float]  # by Slurm's type of them; "" where none is told

    @property
    def whole(self) -> bool:
        """slurmdbd may hear of an end before it hears of the start: for some seconds a record is without its partition."""
        return bool(self.partition)


@dataclass(frozen=True, slots=True)
class Told:
    """The cluster's own time, and whether slurmdbd has by then been told of all that slurmctld knew."""

    at: float | None
    all: bool


def command(since: float) -> tuple[str, ...]:
    """Local times without a zone are read by the clock of whoever answers; seconds since the epoch are not."""
    return (
        *_SACCT,
        f"--starttime=uts{int(since)}",
        "--endtime=now",
        f"--state={_RAN}",
    )


def of_job(job: str) -> tuple[str, ...]:
    """All runs of one job."""
    return (*_SACCT, f"--jobs={job}")


def read(text: str) -> list[Run]:
    """Raises Refused for what is no answer of sacct's. Rows that never ran are left out."""
    return [run for line in text.splitlines() if (run := _run(line)) is not None]


def _run(line: str) -> Run | None:
    row = line.split("|")
    if len(row) != len(FIELDS):  # a job's name may hold the bar itself: what is too much is the name's
        more = len(row) - len(FIELDS)
        if more < 0:
            raise Refused(f"sacct answered a line of {len(row)} columns: {line[:200]!r}")
        row = [*row[:3], "|".join(row[3 : 4 + more]), *row[4 + more :]]
    job, shown, record, name, user, account, partition, state, start, end, tres, nodes = row
    if not (start.isdigit() and record.isdigit() and job.isdigit()) or not tres:
        return None
    counts = _tres(tres)
    typed = {kind.partition(":")[2]: much for kind, much in counts.items() if kind.startswith("gres/gpu:")}
    untyped = counts.get("gres/gpu", 0.0) - sum(typed.values())
    return Run(
        int(job),
        shown,
        int(record),
        name,
        user,
        account,
        partition,
        state.split(" ")[0],
        float(start),
        float(end) if end.isdigit() else None,
        parsing.hosts(nodes),
        counts.get("cpu", 0.0),
        counts.get("mem", 0.0),
        typed | ({"": untyped} if untyped > 0 else {}),
    )


def _tres(text: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for one in text.split(","):
        name, _, value = one.rpartition("=")
        match = re.fullmatch(r"([\d.]+)([KMGTP]?)", value)
        if match is not None:
            found[name] = float(match[1]) * (_SIZES[match[2]] if name == "mem" else 1)
    return found


def told(text: str) -> Told:
    """Of ``sdiag``."""
    at = re.search(r"sdiag output at [^(]*\((\d+)\)", text)
    waiting = re.search(r"DBD Agent queue size:\s*(\d+)", text)
    return Told(float(at[1]) if at else None, waiting is None or waiting[1] == "0")
