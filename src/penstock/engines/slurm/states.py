"""From what Slurm says of a job, and what its run folder holds, to what is observed of its attempt. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from penstock.base.reasons import Reason
from penstock.engines.local.ending import Failure, mebibytes, root_cause
from penstock.engines.slurm import reasons
from penstock.engines.slurm.reasons import Why
from penstock.engines.slurm.runfolder import End, Facts
from penstock.engines.slurm.spec import SlurmJob
from penstock.engines.spec import Observation, RankExit, RankGroup, Stage

WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
STARTING = frozenset({"CONFIGURING"})
RUNNING = frozenset({"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"})
_GOING = WAITING | STARTING | RUNNING
REFUSED_CLAIM = 96  # of a batch script that found the attempt to be another's, or run before
_NO_FOLDER, _IS_ROOT = 97, 98


@dataclass(frozen=True, slots=True)
class Asked:
    """What the engine knows of an attempt besides: its share, and what was asked of it."""

    attempt_id: str
    groups: tuple[RankGroup, ...]
    prefix: str = ""
    stop: str = ""  # the reason for which it was told to stop
    time_limit_s: float | None = None
    procs: int = 1
    shimmed: bool = False
    folder: str = ""  # on the cluster


# Slurm counts a year for a job without a time limit: a start so far off says only that one of those is in the way.
_GUESSED_S = 180 * 86_400.0


def over(job: SlurmJob) -> bool:
    return job.state not in _GOING


def going(
    asked: Asked, job: SlurmJob, now: float, *, why: Why | None = None,
    devices: Mapping[str, tuple[int, ...]] | None = None,
) -> Observation:  # fmt: skip
    """Of a job that is not over."""
    seen = Observation(asked.attempt_id, Stage.QUEUED, now, engine_job=job.key, restarts=job.restarts)
    if job.state in WAITING:
        why = why or reasons.why(job)
        estimate = job.start_estimate
        if estimate is not None and estimate > now + _GUESSED_S:
            estimate = None
        return replace(seen, reason=why.reason, message=why.message, help=why.help, start_estimate=estimate)
    placed = placement(asked, job.nodes, devices or {})
    if job.state in STARTING:
        return replace(seen, stage=Stage.STARTING, groups=placed, message="its nodes are being made ready")
    return replace(seen, stage=Stage.RUNNING, groups=placed, started_at=job.started_at, queued_at=job.submitted_at)


def placement(asked: Asked, nodes: Sequence[str], devices: Mapping[str, tuple[int, ...]]) -> tuple[RankGroup, ...]:
    """Where Slurm has placed it; its node ranks are in Slurm's order."""
    shares = sorted(asked.groups, key=lambda group: group.node_rank)
    return tuple(
        replace(group, node=asked.prefix + node, gpus=tuple(map(str, devices.get(node, ()))))
        for group, node in zip(shares, nodes, strict=False)
    )


def ended(asked: Asked, job: SlurmJob, facts: Facts, now: float) -> Observation:
    """Of a job that is over, whichever of the two knows more of its end."""
    ranks = _ranks(asked, facts.ranks, job.nodes)
    end = facts.end
    reason, message = _why(asked, job, facts, ranks)
    code, number = _status(asked, job, end, ranks, reason)
    starts = [at for at in (facts.started_at, job.started_at if job.nodes else None) if at]
    begun = min(starts, default=None)  # a script begins after its job: a prolog takes its time
    at = end.at if end else job.ended_at or now
    return Observation(
        asked.attempt_id,
        Stage.EXITED,
        now,
        started_at=begun,
        ended_at=max(at, begun or at),
        reason=reason,
        message=message,
        exit_code=code,
        signal=number,
        restarts=max(job.restarts, facts.requeues) + max([facts.in_place, *(rank.restarts for rank in ranks)]),
        ranks=ranks,
        groups=placement(asked, job.nodes, {}),
        engine_job=job.key,
        queued_at=job.submitted_at,
    )


def lost(asked: Asked, key: str, facts: Facts, now: float, message: str) -> Observation:
    """Slurm has forgotten it, and its run folder tells no end."""
    return Observation(
        asked.attempt_id, Stage.LOST, now, started_at=facts.started_at, ended_at=now, reason=Reason.SupervisorLost,
        message=message, engine_job=key, ranks=_ranks(asked, facts.ranks, ()),
    )  # fmt: skip


def stopped(attempt_id: str, reason: str, now: float) -> Observation:
    """Before anything of it was with Slurm."""
    message = "stopped before it began"
    return Observation(attempt_id, Stage.EXITED, now, ended_at=now, reason=reason, message=message)


def refused(attempt_id: str, message: str, now: float) -> Observation:
    """By sbatch: no allocation was made."""
    return Observation(attempt_id, Stage.EXITED, now, ended_at=now, reason=Reason.LaunchFailed, message=message)


def _ranks(asked: Asked, ranks: Sequence[RankExit], nodes: Sequence[str]) -> tuple[RankExit, ...]:
    """Of ranks without a word of their own, that they were is known all the same once any of the attempt ran."""
    told = {rank.rank: replace(rank, node=asked.prefix + rank.node) for rank in ranks}
    if nodes and told and len(told) < (world := asked.procs * min(len(asked.groups), len(nodes))):
        for rank in range(world):
            node = nodes[min(rank // asked.procs, len(nodes) - 1)]
            told.setdefault(rank, RankExit(rank, asked.prefix + node, None, None))
    return tuple(told[rank] for rank in sorted(told))


def _why(asked: Asked, job: SlurmJob, facts: Facts, ranks: Sequence[RankExit]) -> tuple[str, str]:
    end = facts.end
    told = end.reason if end else ""
    if told == "Completed":
        return Reason.Completed, ""
    if job.state in ("NODE_FAIL", "BOOT_FAIL"):
        return Reason.NodeLost, _lost_node(asked, job, ranks)
    if asked.stop and (told in ("", "Stopped") and job.state not in ("OUT_OF_MEMORY", "TIMEOUT")):
        return asked.stop, "" if job.nodes else "stopped before it began"
    if (said := _by_slurm(asked, job, ranks)) is not None:
        return said
    if end is not None and told not in ("Failed", "Stopped", "TimeLimit"):
        known = told if told in Reason.__members__ else Reason.LaunchFailed
        return known, end.message
    if told == "TimeLimit":
        return Reason.TimeLimit, _time_limit(asked)
    if told == "Stopped":
        return Reason.Cancelled, "it was told to end (SIGTERM) in Slurm, not by Penstock"
    return _failed(asked, job, facts, ranks)


def _by_slurm(asked: Asked, job: SlurmJob, ranks: Sequence[RankExit]) -> tuple[str, str] | None:
    """Ends that Slurm has brought about, and of which the batch script could not know."""
    match job.state:
        case "OUT_OF_MEMORY":
            return Reason.OutOfMemory, _memory(asked, job, ranks)
        case "TIMEOUT":
            return Reason.TimeLimit, "Slurm's time limit for it was reached"
        case "DEADLINE":
            return Reason.TimeLimit, "it could not end before its deadline in Slurm"
        case "PREEMPTED":
            return Reason.Preempted, "Slurm gave its nodes to a job of higher priority"
        case "CANCELLED" | "REVOKED":
            by = f" by {job.cancelled_by}" if job.cancelled_by else ""
            return Reason.Cancelled, f"cancelled in Slurm{by}"
    return None


def _failed(asked: Asked, job: SlurmJob, facts: Facts, ranks: Sequence[RankExit]) -> tuple[str, str]:
    end = facts.end
    if end is None and job.state == "COMPLETED":
        return Reason.Completed, ""
    if end is None and not ranks and (said := _unbegun(asked, job, facts)):
        return Reason.LaunchFailed, said
    failure = _root_cause(asked, ranks)
    if failure is None:
        number = end.signal if end else job.signal
        code = end.exit_code if end else job.exit_code
        failure = Failure(_who(asked, None), None if number else code, number, 0.0)
    message = str(failure)
    restarts = max((rank.restarts for rank in ranks), default=0)
    if restarts:
        message += f", after {restarts} restart{'s' * (restarts > 1)} in place"
    return Reason.Failed, message


def _unbegun(asked: Asked, job: SlurmJob, facts: Facts) -> str:
    """Why its batch script ended before it began anything; slurmctld alone tells no exit code."""
    if job.exit_code == REFUSED_CLAIM:
        return "Slurm started it a second time after it had forgotten the first; it is not run twice"
    if job.exit_code == _IS_ROOT:
        return "jobs are never run as root"
    if job.exit_code == _NO_FOLDER or (job.exit_code is None and not facts.claim):
        return (
            f"its run folder {asked.folder} cannot be written on the node by the job's user: let that user write there, or "
            "give the engine another folder, which all nodes share (`penstock engines set ENGINE --folder DIR`)"
        )
    return ""


def _root_cause(asked: Asked, ranks: Sequence[RankExit]) -> Failure | None:
    newest = max((rank.restarts for rank in ranks), default=0)
    return root_cause(
        [
            Failure(_who(asked, rank.rank), rank.exit_code, rank.signal, rank.ended_at)
            for rank in ranks
            if rank.ended_at is not None and rank.exit_code != 0 and rank.restarts == newest
        ]
    )


def _who(asked: Asked, rank: int | None) -> str:
    if asked.procs * len(asked.groups) == 1 and not asked.shimmed:
        return "the command"
    return "the launcher" if rank is None else f"rank {rank}"


def _status(
    asked: Asked, job: SlurmJob, end: End | None, ranks: Sequence[RankExit], reason: str
) -> tuple[int | None, int | None]:
    if reason == Reason.NodeLost:
        return None, 9  # what was on the node ended at once
    if reason == Reason.Completed:
        return 0, None
    failures = [
        Failure("", rank.exit_code, rank.signal, rank.ended_at)
        for rank in ranks
        if rank.ended_at is not None and rank.exit_code != 0
    ]
    cause = root_cause(failures)
    if cause is not None:
        return cause.exit_code, cause.signal
    if end is not None:
        return end.exit_code, end.signal
    if not job.nodes:
        return None, None
    if asked.stop == reason:
        return None, 15  # before anything of it had begun
    return (None, job.signal) if job.signal else (job.exit_code, None)


def _lost_node(asked: Asked, job: SlurmJob, ranks: Sequence[RankExit]) -> str:
    nodes = [asked.prefix + node for node in job.nodes] or ["?"]
    silent = {rank.node for rank in ranks if rank.ended_at is None}
    struck = [node for node in nodes if node in silent] or nodes
    if len(struck) == 1:
        return f"node {struck[0]} was lost"
    return f"one of the nodes {', '.join(struck)} was lost"


def _time_limit(asked: Asked) -> str:
    if asked.time_limit_s is None:
        return "Slurm's time limit for it was reached"
    return f"it ran longer than its time limit of {asked.time_limit_s:g} s"


def _memory(asked: Asked, job: SlurmJob, ranks: Sequence[RankExit]) -> str:
    memory = asked.groups[0].memory if asked.groups else None
    limit = f"its limit of {mebibytes(memory)}" if memory else "the limit that Slurm has for it"
    failure = _root_cause(asked, ranks)
    where = ", ".join(asked.prefix + node for node in job.nodes)
    return f"it needed more memory than {limit} on {where}" + (f" ({failure})" if failure else "")
