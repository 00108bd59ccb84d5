"""What the server keeps of each attempt on a cluster: ``slurm.json`` in its run folder, and the same in memory.

It is written before sbatch is called, so that whatever becomes of this server, the attempt is found again by the tag in its
Slurm job's name; and once more when its end is known, since Slurm forgets. It is not forced to the disk, which would take
longer than sbatch: a power cut may take the newest records away, and what the rows know of and no record does (``lost``) is
looked for by the tags that it may have.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from penstock.engines import launchers
from penstock.engines.local import folder
from penstock.engines.slurm import script, states
from penstock.engines.slurm.pace import Pace
from penstock.engines.slurm.spec import SlurmConfig, SlurmJob, tag
from penstock.engines.spec import Launch, Observation, RankExit, RankGroup, Stage

FORMAT = 1
FILE = "slurm.json"


@dataclass(slots=True)
class Stop:
    """``sent_at``: when the batch script was told last; ``killed_at``: when the grace was ended."""

    reason: str
    grace_s: float
    at: float
    sent_at: float = 0.0
    killed_at: float = 0.0
    cancelled_at: float = 0.0


@dataclass(slots=True)
class Attempt:
    """One attempt that this engine knows of. ``launch`` is there only in the server that submitted it."""

    attempt_id: str
    run_dir: str
    folder: str  # on the cluster: its run folder
    user: str | None
    name: str  # of its Slurm job
    tag: str
    asked: states.Asked
    index: int | None = None  # in a Slurm array
    key: str = ""  # what Slurm calls it, once sbatch has said so
    uncertain: bool = False  # sbatch was called, and it is not known what came of it
    gpus: int = 0
    stop: Stop | None = None
    end: Observation | None = None
    in_place: int = 0  # restarts that were told
    retried: bool = False  # it is not the job's only attempt, or may not be
    # of this server alone
    lost: bool = False  # it may have had a record, and an index and a tag of others, before
    launch: Launch | None = None
    told: Observation | None = None
    looked_at: SlurmJob | None = None  # as Slurm told it then
    groups: tuple[RankGroup, ...] = ()
    devices: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    missing_since: float | None = None  # Slurm does not know it any more
    silent_since: float | None = None  # it is over in Slurm, and its run folder does not say so yet
    sending: bool = False
    fetching: bool = False  # its files, from nodes that share none
    pace: Pace | None = None
    slurm_id: int = 0  # its number of its own, which a task of an array has once it runs
    again: bool = False  # its ranks were started again in place, and that is not told yet
    requeues: int = 0
    requeued_at: float | None = None

    @property
    def over(self) -> bool:
        return self.end is not None

    def record(self) -> dict[str, Any]:
        """What ``slurm.json`` holds."""
        asked = self.asked
        return {
            "format": FORMAT,
            "attempt_id": self.attempt_id,
            "folder": self.folder,
            "user": self.user,
            "name": self.name,
            "tag": self.tag,
            "index": self.index,
            "key": self.key,
            "gpus": self.gpus,
            "groups": [asdict(group) for group in asked.groups],
            "time_limit_s": asked.time_limit_s,
            "procs": asked.procs,
            "shimmed": asked.shimmed,
            "in_place": self.in_place,
            "retried": self.retried,
            "stop": None if self.stop is None else {"reason": self.stop.reason, "grace_s": self.stop.grace_s, "at": self.stop.at},
            "end": None if self.end is None else _end(self.end),
        }  # fmt: skip

    def save(self) -> None:
        """Blocking."""
        os.makedirs(self.run_dir, mode=0o711, exist_ok=True)
        folder.write_json(f"{self.run_dir}/{FILE}", self.record())


def fresh(launch: Launch, config: SlurmConfig, home: str) -> Attempt:
    """Of a launch that was never submitted; ``home`` is the jobs' folder on the cluster."""
    name = script.name_of([launch])
    where = script.place(home, launch)
    asked = states.Asked(
        launch.attempt_id,
        launch.groups,
        config.node_prefix,
        "",
        launch.time_limit_s,
        launch.procs,
        launchers.effective_launcher(launch) != "none",
        where.run,
    )
    return Attempt(
        launch.attempt_id,
        launch.run_dir,
        where.run,
        launch.unix_user,
        name,
        tag(launch.attempt_id),
        asked,
        gpus=launch.gpus_per_node,
        retried=launch.attempt > 1 or launch.restarts_left > 0,
        launch=launch,
    )


def save_all(attempts: Sequence[Attempt]) -> None:
    """Blocking."""
    for attempt in attempts:
        attempt.save()


def forestalled(attempt_id: str, run_dir: str, end: Observation) -> Attempt:
    """Of an attempt that was told to stop before it was ever submitted."""
    asked = states.Asked(attempt_id, ())
    return Attempt(attempt_id, run_dir, "", None, "", tag(attempt_id), asked, end=end)


def recorded(run_dirs: Iterable[str]) -> set[str]:
    """Blocking. Those in which there is a record."""
    return {run_dir for run_dir in run_dirs if os.path.exists(f"{run_dir}/{FILE}")}


def load(run_dir: str, config: SlurmConfig) -> Attempt | None:
    """Blocking. None where there is none, or nothing that can be read."""
    record = folder.read_json(f"{run_dir}/{FILE}")
    if record is None or record.get("format") != FORMAT:
        return None
    stop, end = record["stop"], record["end"]
    groups = tuple(RankGroup(**{**group, "gpus": tuple(group["gpus"])}) for group in record["groups"])
    asked = states.Asked(
        record["attempt_id"],
        groups,
        config.node_prefix,
        stop["reason"] if stop else "",
        record["time_limit_s"],
        record["procs"],
        record["shimmed"],
        record["folder"],
    )
    return Attempt(
        record["attempt_id"],
        run_dir,
        record["folder"],
        record["user"],
        record["name"],
        record["tag"],
        asked,
        record["index"],
        record["key"],
        not record["key"],
        record["gpus"],
        Stop(**stop) if stop else None,
        _observation(record["attempt_id"], end) if end else None,
        record.get("in_place", 0),
        record.get("retried", False),
    )


_ENDS = (
    "at", "started_at", "ended_at", "reason", "message", "exit_code", "signal", "restarts", "engine_job", "gpu_model",
    "queued_at",
)  # fmt: skip


def _end(seen: Observation) -> dict[str, Any]:
    return {
        "stage": seen.stage.value,
        **{name: getattr(seen, name) for name in _ENDS},
        "ranks": [asdict(rank) for rank in seen.ranks],
        "groups": [asdict(group) for group in seen.groups],
    }


def _observation(attempt_id: str, end: Mapping[str, Any]) -> Observation:
    return Observation(
        attempt_id,
        Stage(end["stage"]),
        **{name: end[name] for name in _ENDS if name in end},
        ranks=tuple(RankExit(**rank) for rank in end["ranks"]),
        groups=tuple(RankGroup(**{**group, "gpus": tuple(group["gpus"])}) for group in end["groups"]),
    )
