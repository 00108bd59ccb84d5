"""What a site says of its own Slurm -> the policy and the accounts to replay its history with.

One text: a slurm.conf, or what ``scontrol show config`` prints, and behind it, in any order, what ``scontrol -o show
partition``, ``sacctmgr -P show qos`` and ``sacctmgr -P show assoc`` print. What is not there has Slurm's defaults.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from penstock.base.errors import InvalidInput, Problem
from penstock.capacity.presets import slurm_seconds
from penstock.capacity.replay import Cluster, TraceJob
from penstock.scheduling.spec import Cohort, Queue, Quota, Quotas, Setup
from penstock.scheduling.state import Policy

DEPTH = 500  # bf_max_job_test's default (Slurm 22.05)
HUNDRED_YEARS_S = 100 * 366 * 86400.0  # "no decay"
TIER = 1e10  # a partition of a higher PriorityTier goes first, whatever the priorities
_WEIGHTS = ("age", "fairshare", "jobsize", "partition", "qos")


@dataclass(frozen=True, slots=True)
class Partition:
    factor: float = 1.0  # PriorityJobFactor
    tier: float = 1.0
    max_s: float = math.inf


@dataclass(frozen=True, slots=True)
class Assoc:
    """A row of ``sacctmgr show assoc``: an account (no user), or a user in it."""

    account: str
    parent: str
    user: str
    share: float
    gpus: float | None = None  # GrpTRES=gres/gpu


@dataclass(slots=True)
class Site:
    """``weights``: PriorityWeight*, by name; ``tres``: PriorityWeightTRES."""

    settings: dict[str, str] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    tres: dict[str, float] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)
    partitions: dict[str, Partition] = field(default_factory=dict)
    qos: dict[str, float] = field(default_factory=dict)
    assocs: list[Assoc] = field(default_factory=list)

    def policy(self, policy: Policy) -> Policy:
        fifo = self.settings.get("prioritytype", "").endswith("basic")
        backfilled = self.settings.get("schedulertype", "sched/backfill").endswith("backfill")
        return replace(
            policy,
            order="fifo" if fifo else "multifactor",
            blocking="strict",
            backfill="replan" if backfilled else "none",
            depth=self._parameter("bf_max_job_test", DEPTH),
            weights=tuple((name, self.weights[name]) for name in ("age", "fairshare") if self.weights.get(name)),
            decay_half_life_s=self.times.get("prioritydecayhalflife") or HUNDRED_YEARS_S,
            max_age_s=self.times.get("prioritymaxage") or policy.max_age_s,
            replan_s=self._parameter("bf_interval", 30),
            rescore_s=self.times.get("prioritycalcperiod") or policy.rescore_s,
        )

    def _parameter(self, name: str, default: int) -> int:
        found = re.search(rf"\b{name}=(\d+)", self.settings.get("schedulerparameters", ""))
        return int(found[1]) if found else default

    def setup(self, setup: Setup) -> Setup:
        """Accounts become queues, and cohorts where they have accounts below them; users have their shares there."""
        accounts = {one.account: one for one in self.assocs if not one.user}
        parents = {one.parent for one in accounts.values()}
        members: dict[str, dict[str, float]] = {}
        for one in self.assocs:
            if one.user:
                members.setdefault(one.account, {})[one.user] = one.share
        queues: dict[str, Queue] = {}
        cohorts: dict[str, Cohort] = {}
        for name, one in accounts.items():
            users = members.get(name, {})
            parent = one.parent if one.parent in accounts and one.parent != "root" else None
            inner = name in parents and name != "root"
            if inner:
                cohorts[name] = Cohort(name, parent, _limit(one.gpus, inside=parent is not None), one.share)
            if users or not inner:
                above, weight = (name, sum(users.values())) if inner else (parent, one.share)
                quotas = {} if inner else _limit(one.gpus, inside=above is not None)
                queues[name] = Queue(name, above, quotas, weight, users)
        return replace(setup, queues=queues, cohorts=cohorts) if queues else setup

    def job(self, cluster: Cluster) -> Callable[[TraceJob], TraceJob]:
        """Gives a job what does not change while it waits: the parts of its priority that are its own, and its
        partition's limit.
        """
        most_factor = max((one.factor for one in self.partitions.values()), default=0.0)
        most_qos = max(self.qos.values(), default=0.0)
        weight = {name: self.weights.get(name, 0.0) for name in _WEIGHTS}
        small = self.settings.get("priorityfavorsmall", "no").lower() == "yes"
        gpus = max(cluster.nodes * cluster.gpus, 1)
        cpus = cluster.nodes * cluster.cpus

        def fitted(job: TraceJob) -> TraceJob:
            part = self.partitions.get(job.partition, Partition(0.0))
            nodes = job.nodes or -(-math.ceil(job.gpus) // max(cluster.gpus, 1))
            size = (nodes / cluster.nodes + (job.cpus / cpus if cpus else job.gpus / gpus)) / 2
            priority = weight["jobsize"] * (1 - size if small else size)
            priority += weight["partition"] * part.factor / most_factor if most_factor else 0.0
            priority += weight["qos"] * self.qos.get(job.qos, 0.0) / most_qos if most_qos else 0.0
            priority += self.tres.get("gres/gpu", 0.0) * job.gpus / gpus
            priority += self.tres.get("cpu", 0.0) * job.cpus / cpus if cpus else 0.0
            priority += TIER * (part.tier - 1) if job.partition in self.partitions else 0.0
            limit = job.limit
            if limit is not None and limit > part.max_s and job.duration <= part.max_s:
                limit = part.max_s
            return replace(job, priority=job.priority + round(priority), limit=limit)

        return fitted

    def not_modelled(self) -> Iterator[str]:
        """What it says that a replay does not follow."""
        preempt = self.settings.get("preempttype", "preempt/none")
        if not preempt.endswith("none"):
            yield f"PreemptType={preempt}"
        flags = self.settings.get("priorityflags", "").upper()
        for flag in ("NO_FAIR_TREE", "SMALL_RELATIVE_TO_TIME", "DEPTH_OBLIVIOUS", "MAX_TRES"):
            if flag in flags:
                yield f"PriorityFlags={flag}"
        if self.settings.get("priorityusageresetperiod", "none").lower() not in ("none", ""):
            yield f"PriorityUsageResetPeriod={self.settings['priorityusageresetperiod']}"
        for name in ("bf_max_job_user", "bf_max_job_part", "bf_max_job_assoc", "bf_max_job_user_part"):
            if re.search(rf"\b{name}=[1-9]", self.settings.get("schedulerparameters", "")):
                yield name


def _limit(gpus: float | None, *, inside: bool) -> Quotas:
    return {} if gpus is None else {"default": {"gpus": Quota(gpus, 0.0 if inside else None)}}


def read(text: str) -> Site:
    """Raises InvalidInput with every value that cannot be read."""
    reader = _Reader(Site(), [])
    for n, line in enumerate(text.splitlines(), 1):
        reader.line(line.partition("#")[0].strip(), n)
    if reader.problems:
        raise InvalidInput("the slurm.conf cannot be used", details=reader.problems)
    return reader.site


@dataclass(slots=True)
class _Reader:
    site: Site
    problems: list[Problem]
    columns: list[str] = field(default_factory=list)  # of the table that is being read
    defaults: dict[str, str] = field(default_factory=dict)  # PartitionName=DEFAULT

    def line(self, line: str, n: int) -> None:
        if line.lower().startswith("partitionname="):
            self._partition(dict(pair.partition("=")[::2] for pair in line.split() if "=" in pair), n)
        elif "|" in line:
            self._row(line, n)
        elif "=" in line:
            name, _, value = line.partition("=")
            self._setting(name.strip().lower(), value.strip(), n)

    def _setting(self, name: str, value: str, n: int) -> None:
        self.site.settings[name] = "" if value in ("(null)", "N/A") else value
        if name == "priorityweighttres":
            for item in filter(None, self.site.settings[name].split(",")):
                resource, _, weight = item.partition("=")
                self.site.tres[resource.strip().lower()] = self._number(name, weight, n)
        elif name.startswith("priorityweight"):
            self.site.weights[name.removeprefix("priorityweight")] = self._number(name, value, n)
        elif name in ("prioritydecayhalflife", "prioritymaxage", "prioritycalcperiod"):
            seconds = slurm_span(value)
            if seconds is None:
                self.problems.append(Problem(name, f"{value!r} is no time: write D-HH:MM:SS", n))
            else:
                self.site.times[name] = seconds

    def _number(self, name: str, text: str, n: int) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            self.problems.append(Problem(name, f"{text!r} is no number", n))
            return 0.0
        return value

    def _partition(self, found: Mapping[str, str], n: int) -> None:
        values = self.defaults | {key.lower(): value for key, value in found.items()}
        if values["partitionname"].upper() == "DEFAULT":
            self.defaults = {key: value for key, value in values.items() if key != "partitionname"}
            return
        limit = slurm_span(values.get("maxtime", ""))
        self.site.partitions[values["partitionname"]] = Partition(
            self._number("PriorityJobFactor", values.get("priorityjobfactor", "1"), n),
            self._number("PriorityTier", values.get("prioritytier", "1"), n),
            math.inf if limit is None else limit,
        )

    def _row(self, line: str, n: int) -> None:
        """Of a table that sacctmgr printed, its first line the names of its columns."""
        values = [value.strip() for value in line.split("|")]
        if "Share" in values or ("Name" in values and "Priority" in values):
            self.columns = values
            return
        row = dict(zip(self.columns, values, strict=False))
        if "Share" in row and "Account" in row:
            limit = re.search(r"gres/gpu=(\d+)", row.get("GrpTRES", ""))
            share = 1.0 if row["Share"] in ("parent", "") else self._number("Share", row["Share"], n)
            parent = row.get("ParentName", row.get("Par Name", ""))
            gpus = float(limit[1]) if limit else None
            self.site.assocs.append(Assoc(row["Account"], parent, row.get("User", ""), share, gpus))
        elif "Name" in row:
            self.site.qos[row["Name"]] = self._number("Priority", row["Priority"] or "0", n)


def slurm_span(text: str) -> float | None:
    """``7-0``, ``7-00:00:00``, ``14:00:00``, or minutes; None where it is no time (UNLIMITED, INFINITE)."""
    if re.fullmatch(r"\d+", text):
        return int(text) * 60.0
    if match := re.fullmatch(r"(\d+)-(\d+)(?::(\d+))?", text):
        return int(match[1]) * 86400.0 + int(match[2]) * 3600.0 + int(match[3] or 0) * 60.0
    return slurm_seconds(text)
