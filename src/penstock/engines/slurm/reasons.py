"""Why a job waits in Slurm, in people's words. Pure.

Two tables: ``SAID`` for reasons that stand alone, and the parts of which Slurm makes the names of its limits
(``AssocGrpGRESRunMinutes`` = whose, over what, of what, how counted). A reason that is in neither is passed on as Slurm
says it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from penstock.base.quantities import format_duration, format_memory
from penstock.base.reasons import Reason
from penstock.engines.slurm.spec import Partition, Site, SlurmJob


@dataclass(frozen=True, slots=True)
class Why:
    """``help`` says what would let it start; empty where only time does."""

    reason: Reason
    message: str
    help: str = ""


@dataclass(frozen=True, slots=True)
class Limit:
    """The limit that holds it, where accounting was asked. ``holder``: ``account vision``. Memory in bytes, time in seconds."""

    holder: str = ""
    limit: float | None = None
    used: float | None = None
    asked: float | None = None


@dataclass(frozen=True, slots=True)
class _Said:
    reason: Reason
    message: str  # {partition} {account} {user} {qos} {job} stand for the job's own
    help: str = ""


_WAITS = Reason.WaitingForResources
_HELD = Reason.HeldByAdministrator
_NEVER = Reason.Unschedulable
_RELEASE = "`scontrol release {job}` lets it go"
_ADMINISTRATOR = "ask the site's administrator"
_LIMIT = "ask for less, or ask the site's administrator for a higher limit"

SAID: Mapping[str, _Said] = MappingProxyType(
    {
        "None": _Said(_WAITS, "Slurm's scheduler has not looked at it yet"),
        "Resources": _Said(
            _WAITS,
            "is first in line in partition {partition}; the nodes, CPUs, memory or GPUs it needs are in use",
            "waits for running jobs to end",
        ),
        "Priority": _Said(
            Reason.WaitingBehind,
            "jobs of higher priority are before it in partition {partition}",
            "a time limit: with a short one it may start before its turn, where it delays nobody (backfill)",
        ),
        "Dependency": _Said(Reason.WaitingForDependency, "waits for jobs that it depends on"),
        "DependencyNeverSatisfied": _Said(
            _NEVER, "depends on a job that did not end as it wants: it can never start", "cancel it, and submit it anew"
        ),
        "BeginTime": _Said(Reason.BackingOff, "its begin time has not come; after a requeue Slurm waits two minutes"),
        "Cleaning": _Said(Reason.BackingOff, "was requeued, and its nodes still clean up after its last run"),
        "Prolog": _Said(_WAITS, "the site's prolog is still running for it"),
        "JobHeldUser": _Said(_HELD, "is held by its owner", _RELEASE),
        "JobHeldAdmin": _Said(_HELD, "is held by an administrator of the site", f"{_ADMINISTRATOR} to release it"),
        "JobHoldMaxRequeue": _Said(_HELD, "was requeued too often; Slurm holds it", _RELEASE),
        "JobArrayTaskLimit": _Said(
            Reason.WaitingForArraySlot, "as many of its array's tasks run as the array allows at once"
        ),
        "ReqNodeNotAvail": _Said(
            _WAITS,
            "a node it needs cannot be used now: down, drained, or reserved",
            "`sinfo -R` says why; allow other nodes, or wait for it to come back",
        ),
        "NodeDown": _Said(_WAITS, "a node it needs is down", "`sinfo -R` says why; it goes on when the node is back"),
        "FrontEndDown": _Said(_WAITS, "no front-end node is up to start it", _ADMINISTRATOR),
        "PartitionDown": _Said(
            _WAITS, "partition {partition} is down: it takes jobs and starts none", "another partition, or wait"
        ),
        "PartitionInactive": _Said(
            _WAITS, "partition {partition} is inactive: it starts no jobs", "another partition, or wait"
        ),
        "PartitionNodeLimit": _Said(
            _NEVER,
            "asks for more or fewer nodes than partition {partition} allows, or than are up in it",
            "ask for fewer nodes, or another partition",
        ),
        "PartitionTimeLimit": _Said(
            _NEVER,
            "its time limit is longer than partition {partition} allows",
            "a shorter time limit, or another partition",
        ),
        "PartitionConfig": _Said(
            _NEVER, "partition {partition} does not allow what it asks for", "ask for less, or another partition"
        ),
        "Licenses": _Said(_WAITS, "the licences it needs are in use", "waits for jobs that hold them to end"),
        "Reservation": _Said(_WAITS, "waits for its reservation to begin, or for room in it"),
        "ReservationDeleted": _Said(_HELD, "its reservation was deleted; Slurm holds it", "submit it without one"),
        "ReservationInvalid": _Said(_NEVER, "its reservation is not valid for it", "submit it without one"),
        "BadConstraints": _Said(
            _NEVER,
            "no node meets its constraints (features, GPUs of a kind, memory)",
            "change what it asks for: `penstock nodes` shows what there is",
        ),
        "Constraints": _Said(_NEVER, "its constraints cannot be met now", "change what it asks for"),
        "SchedDefer": _Said(_WAITS, "the site looks at jobs in turns, and not at once (SchedulerParameters=defer)"),
        "InvalidAccount": _Said(
            _NEVER,
            "account {account} is not valid for {user} here",
            "name an account: `sacctmgr show assoc user={user}`",
        ),
        "InvalidQOS": _Said(
            _NEVER, "QoS {qos} is not valid for {user} here", "name a QoS: `sacctmgr show assoc user={user} format=qos`"
        ),
        "QOSNotAllowed": _Said(
            _NEVER, "QoS {qos} may not be used in partition {partition}", "another QoS, or another partition"
        ),
        "AccountNotAllowed": _Said(
            _NEVER, "account {account} may not use partition {partition}", "another account, or another partition"
        ),
        "AccountingPolicy": _Said(Reason.QuotaExceeded, "the site's accounting policy does not let it start", _LIMIT),
        "QOSUsageThreshold": _Said(
            Reason.QuotaExceeded,
            "{user}'s fair share has fallen below what QoS {qos} asks for",
            "waits for past use to fade; another QoS may let it start",
        ),
        "QOSJobLimit": _Said(Reason.QuotaExceeded, "QoS {qos} has as many jobs as it may", "waits for them to end"),
        "QOSResourceLimit": _Said(
            Reason.QuotaExceeded, "QoS {qos} uses as much as it may", "waits for its jobs to end"
        ),
        "QOSTimeLimit": _Said(Reason.QuotaExceeded, "QoS {qos} has used all the time it may", _LIMIT),
        "AssociationJobLimit": _Said(
            Reason.QuotaExceeded, "account {account} has as many jobs as it may", "waits for them to end"
        ),
        "AssociationResourceLimit": _Said(
            Reason.QuotaExceeded, "account {account} uses as much as it may", "waits for its jobs to end"
        ),
        "AssociationTimeLimit": _Said(Reason.QuotaExceeded, "account {account} has used all the time it may", _LIMIT),
        "MaxMemPerLimit": _Said(
            _NEVER, "asks for more memory on a CPU or node than the site allows", "ask for less memory, or more CPUs"
        ),
        "MaxPoweredUpNodes": _Said(_WAITS, "as many nodes are powered up as the site allows"),
        "MpiPortsBusy": _Said(_WAITS, "the ports that its steps need are in use on its nodes"),
        "PowerNotAvail": _Said(_WAITS, "there is not enough power for it now"),
        "PowerReserved": _Said(_WAITS, "the power it needs is reserved for others"),
        "FedJobLock": _Said(_WAITS, "waits for the clusters of the federation to agree on who runs it"),
        "BurstBufferResources": _Said(
            _WAITS, "the burst buffer has no room for it", "waits for jobs that use it to end"
        ),
        "BurstBufferStageIn": _Said(_WAITS, "its files are being copied into the burst buffer"),
        "BurstBufferOperation": _Said(_HELD, "the burst buffer failed; Slurm holds it", _RELEASE),
        "BlockMaxError": _Said(_WAITS, "a block of nodes it needs has failed too often", _ADMINISTRATOR),
        "BlockFreeAction": _Said(_WAITS, "a block of nodes it needs is being freed"),
        "JobLaunchFailure": _Said(_HELD, "could not be launched on its nodes; Slurm holds it", _RELEASE),
        "SystemFailure": _Said(_WAITS, "was requeued after a failure of Slurm or of a node"),
        "NonZeroExitCode": _Said(_WAITS, "was requeued after it ended with an error"),
        "RaisedSignal": _Said(_WAITS, "was requeued after a signal ended it"),
        "TimeLimit": _Said(_WAITS, "was requeued after its time limit"),
        "OutOfMemory": _Said(_WAITS, "was requeued after it used more memory than it asked for", "ask for more memory"),
        "InactiveLimit": _Said(_WAITS, "was requeued after it was idle for longer than the site allows"),
        "DeadLine": _Said(
            _NEVER, "cannot end before its deadline any more", "a later deadline, or a shorter time limit"
        ),
    }
)

# What Slurm writes as a sentence instead of a name (spaces may come as underscores).
_SENTENCES: tuple[tuple[str, _Said], ...] = (
    (
        "nodes required for job are down",
        _Said(
            _WAITS,
            "the nodes it needs are down, drained, or kept for jobs in partitions that come first",
            "`sinfo -R` says which are down, and why",
        ),
    ),
    ("launch failed requeued held", SAID["JobLaunchFailure"]),
    (
        "user env retrieval failed",
        _Said(_HELD, "the environment of {user} could not be read on its node; Slurm holds it", _RELEASE),
    ),
    ("job requeued in held state", _Said(_HELD, "was requeued in held state", _RELEASE)),
    ("partition_down", SAID["PartitionDown"]),
    ("reserved for maintenance", _Said(_WAITS, "the nodes it needs are reserved for maintenance", "waits for its end")),
    ("dependency", SAID["Dependency"]),
    ("burst_buffer", SAID["BurstBufferOperation"]),
)

_LIMITS = re.compile(
    r"(?P<whose>Assoc|QOS|)(?P<over>Grp|Max|Min)"
    r"(?P<what>Cpu|CPU|Memory|Mem|Node|GRES|License|BB|Billing|Energy|Unknown|SubmitJobs?|Jobs?|WallDuration|Wall)"
    r"(?P<time>RunMinutes|RunMins|Minutes|)(?P<each>PerJob|PerNode|PerUser|PerAccount|)(?:Limit|NotSatisfied|)"
)
_WHAT: Mapping[str, tuple[str, str]] = MappingProxyType(  # what people call it, and sacctmgr
    {
        "cpu": ("CPUs", "cpu"),
        "mem": ("memory", "mem"),
        "memory": ("memory", "mem"),
        "node": ("nodes", "node"),
        "gres": ("GPUs (or another generic resource)", "gres/gpu"),
        "license": ("licences", "license"),
        "bb": ("burst buffer", "bb"),
        "billing": ("billing units", "billing"),
        "energy": ("energy", "energy"),
        "unknown": ("a resource", "TRES"),
        "job": ("running jobs", "Jobs"),
        "submitjob": ("jobs, running and waiting,", "SubmitJobs"),
        "wall": ("wall time", "Wall"),
        "wallduration": ("wall time", "Wall"),
    }
)
_ONE = {"Jobs": "job", "SubmitJobs": "submitjob"}
_ITSELF = ("PerJob", "PerNode")


def why(job: SlurmJob, site: Site | None = None, limit: Limit | None = None) -> Why:
    """Why ``job``, which is pending, has not started. Total: any text of Slurm's is answered."""
    name, _, rest = job.reason.replace("_", " ").partition(",")
    name = name.strip() or "None"
    if name == "None" and job.restarts:
        name = "BeginTime"  # a requeue has set it; the scheduler says so when it next comes by
    said = SAID.get(name) or _sentence(job.reason)
    rest = rest.strip()
    if name == "ReqNodeNotAvail" and rest:
        return _unavailable(job, rest)
    if said is not None:
        message = _own(said.message, job) + _of_partition(name, _partition(job, site))
        return Why(said.reason, message, _own(said.help, job))
    parts = _LIMITS.fullmatch(name)
    if parts is not None:
        return _limited(name, parts, job, limit or Limit())
    return Why(_WAITS, f"Slurm says: {job.reason}", _ADMINISTRATOR)


def known(reason: str) -> bool:
    """Whether one of Slurm's own names is told in words of ours."""
    return reason in SAID or _LIMITS.fullmatch(reason) is not None


def _sentence(text: str) -> _Said | None:
    said = text.replace("_", " ").strip("() ").lower()
    return next((one for start, one in _SENTENCES if said.startswith(start.replace("_", " "))), None)


def _own(text: str, job: SlurmJob) -> str:
    """The job's own names in a text of ours; nothing in a name is read as a place for another."""
    own = {
        "partition": job.partition or "its own",
        "account": job.account or "its own",
        "user": job.user or "its user",
        "qos": job.qos or "its own",
        "job": str(job.id),
    }
    return re.sub(r"\{(\w+)\}", lambda found: own[found[1]], text)


def _unavailable(job: SlurmJob, rest: str) -> Why:
    said = SAID["ReqNodeNotAvail"]
    nodes = rest.partition("UnavailableNodes:")[2].strip()
    if nodes and nodes != "(null)":
        return Why(said.reason, f"nodes it needs cannot be used now (down, drained or reserved): {nodes}", said.help)
    if "maintenance" in rest.lower():
        return Why(said.reason, "the nodes it needs are reserved for maintenance", "waits for its end")
    return Why(said.reason, f"{_own(said.message, job)} ({rest})", said.help)


def _partition(job: SlurmJob, site: Site | None) -> Partition | None:
    """The one it waits in: the first of those it names."""
    names = job.partition.split(",")
    return next((one for one in site.partitions if one.name in names), None) if site is not None else None


def _of_partition(name: str, partition: Partition | None) -> str:
    if partition is None:
        return ""
    if name == "PartitionTimeLimit" and partition.max_time_s is not None:
        return f" ({format_duration(partition.max_time_s)})"
    if name == "PartitionNodeLimit":
        most = "" if partition.max_nodes is None else f"{partition.max_nodes} nodes at the most, "
        return f" ({most}{len(partition.nodes)} in all)"
    return ""


def _limited(name: str, parts: re.Match[str], job: SlurmJob, limit: Limit) -> Why:
    """``account vision has all the GPUs it may: needs 24, limit 16, in use 0 (AssocGrpGRES of Slurm)``."""
    over, kind, each = parts["over"], _ONE.get(parts["what"], parts["what"].lower()), parts["each"]
    what, tres = _WHAT[kind]
    holder = limit.holder or _holder(parts["whose"], over, each, job)
    figures = _figures(kind, parts["time"], limit)
    minutes = parts["time"]
    if over == "Min":
        message = f"asks for fewer {what} than {holder} wants{figures} ({name} of Slurm)"
        return Why(_NEVER, message, "ask for more, or name another QoS")
    what += {"": "", "Minutes": ", counted in minutes of use,"}.get(minutes, ", counted to the end of what runs,")
    itself = each in _ITSELF or kind == "wallduration"
    never = itself or (limit.limit is not None and limit.asked is not None and limit.asked > limit.limit)
    if never:
        where = {"PerJob": " of one job", "PerNode": " on one node"}.get(each, "")
        message = f"needs more {what} than {holder} allows{where}{figures} ({name} of Slurm)"
        return Why(_NEVER, message, _never_help(over, tres, limit, job))
    message = f"{holder} has no room for it within its limit of {what.rstrip(',')}{figures} ({name} of Slurm)"
    return Why(Reason.QuotaExceeded, message, _help(over, kind, tres, limit))


def _holder(whose: str, over: str, each: str, job: SlurmJob) -> str:
    account, user, qos = (job.account or "its own", job.user or "its user", job.qos or "its own")
    if whose == "Assoc":
        return f"account {account} (or one above it)" if over == "Grp" else f"{user} in account {account}"
    of = {"PerUser": f"{user} in ", "PerAccount": f"account {account} in "}.get(each, "")
    return f"{of}QoS {qos}" if qos != "its own" else f"{of}its QoS"


def _figures(kind: str, time: str, limit: Limit) -> str:
    def said(value: float) -> str:
        if kind in ("mem", "memory") and not time:
            return format_memory(int(value))
        return format_duration(value) if kind.startswith("wall") else f"{value:g}"

    told = [
        f"{word} {said(value)}"
        for word, value in (("needs", limit.asked), ("limit", limit.limit), ("in use", limit.used))
        if value is not None
    ]
    return f": {', '.join(told)}" if told else ""


def _never_help(over: str, tres: str, limit: Limit, job: SlurmJob) -> str:
    if tres == "Wall":
        return "a shorter time limit, or another QoS or account"
    holder = limit.holder or (f"account {job.account}" if job.account else "the account")
    return f"ask for less; or an administrator raises {over}TRES of {holder}"


def _help(over: str, kind: str, tres: str, limit: Limit) -> str:
    setting = f"{over}{tres}" if kind in ("job", "submitjob", "wall") else f"{over}TRES={tres}"
    raised = f" of {limit.holder}" if limit.holder else ""
    return f"waits for others under the same limit to end; or an administrator raises {setting}{raised}"
