"""The snapshot that the scheduling planners are given, and what they answer. All frozen; times are epoch seconds,
memory is bytes, CPUs are cores, GPU shares are thousandths of one GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from penstock.base.reasons import Reason


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device. ``mig``: the MIG geometry it is cut into, e.g. ``("3g.40gb", "3g.40gb")``; empty = whole."""

    id: str
    model: str = ""
    mig: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NodeState:
    """One node's capacity and whether it takes new work. What is free follows from what is held on it.

    ``topology`` is the path of domains above the host, widest first: ``("block-1", "rack-3")``. A domain's identity is
    its path, so rack-1 of two blocks are two racks. ``flavor`` is the resource flavor (Kueue) that quotas count it under.
    """

    name: str
    cpus: float = 0.0
    memory: int = 0
    gpus: tuple[Gpu, ...] = ()
    flavor: str = "default"
    topology: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    open: bool = True
    why_closed: str = ""  # "cordoned by alice: bad DIMM"


@dataclass(frozen=True, slots=True)
class Ask:
    """What one group needs on one node. ``gpu_milli`` (1..999) is a share of one GPU and excludes ``gpus``;
    ``mig`` names the instance profile of which ``gpus`` counts the instances.
    """

    cpus: float = 0.0
    memory: int = 0
    gpus: int = 0
    gpu_milli: int = 0
    gpu_models: tuple[str, ...] = ()  # empty: any model will do
    mig: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """``count`` groups of the same ask, each on a node of its own."""

    count: int
    ask: Ask


@dataclass(frozen=True, slots=True)
class Topology:
    """All groups in one domain of ``level`` (``"block"``, ``"rack"``, ``"host"``): required, or preferred (climbs upward)."""

    level: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class Workload:
    """A gang: all parts start in one decision or none. ``limit_s``: the time limit, after which it is ended for certain.

    With a ``least`` (partial admission) it has one part, of which from ``shrink_at`` on fewer groups will do, and ``most`` is
    how many it would have: held, its part counts those that it has.
    """

    id: str
    name: str
    queued_at: float
    parts: tuple[Part, ...]
    queue: str = "default"
    user: str = ""
    project: str = ""
    priority: int = 0
    limit_s: float | None = None  # None: unlimited; backfill then takes it for endless
    estimate_s: float | None = None  # what sjf sorts by; None: the limit
    flavors: tuple[str, ...] = ()  # allowed, in order of preference; empty: any that fits
    topology: Topology | None = None
    exclude: frozenset[str] = frozenset()  # nodes it must not have (a node that just failed under it)
    reservations: frozenset[str] = frozenset()  # reservations that it may use
    preemptible: bool = True
    evictions: int = 0  # how often it was evicted already
    seq: int = 0  # order of arrival among equals
    grace_s: float = 0.0
    least: int = 0  # groups; 0: all or none
    most: int = 0
    shrink_at: float = 0.0
    grow_after_s: float = 0.0
    lost: frozenset[str] = frozenset()  # of ``exclude``: nodes that were lost, and that will do again if they come back


@dataclass(frozen=True, slots=True)
class Share:
    """One group's place: a node, and the ids of its GPUs there; ``milli`` of the one GPU, or the MIG instances."""

    node: str
    ask: Ask
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Held:
    """A workload that holds its place. ``ends_by`` = start + limit, None if unlimited. ``borrowed``: per quota state."""

    workload: Workload
    shares: tuple[Share, ...]
    since: float
    leaving: bool = False  # evicted, in its grace; its place is not free yet
    ready_at: float | None = None  # when a leaving one is gone at the latest
    idle_since: float | None = None  # its GPUs have done nothing since then, as telemetry says
    counted: bool = True  # against its queue's quota; not once it was evicted

    @property
    def ends_by(self) -> float | None:
        return None if self.workload.limit_s is None else self.since + self.workload.limit_s


@dataclass(frozen=True, slots=True)
class Reservation:
    """Nodes set apart between two times. ``maintenance``: nobody may run there; else only workloads that name it, of
    ``projects`` or ``users`` where it says whose. ``drain``: who is still there at its start and may not is to leave.
    """

    name: str
    start: float
    end: float
    nodes: frozenset[str]
    maintenance: bool = False
    projects: frozenset[str] = frozenset()
    users: frozenset[str] = frozenset()
    drain: bool = False

    def keeps_out(self, w: Workload) -> bool:
        """Whether it may not run there while this lasts."""
        if self.maintenance or self.name not in w.reservations:
            return True
        return bool(self.projects or self.users) and w.project not in self.projects and w.user not in self.users

    @property
    def kind(self) -> str:
        return "maintenance" if self.maintenance else "reservation"


@dataclass(frozen=True, slots=True)
class Policy:
    """Who is served first, what a blocked head does to the rest, and what may overtake. ``name`` prints all of it.

    order: ``fifo`` (priority, then arrival), ``sjf`` (shortest estimate), ``fairshare`` (least dominant share, decayed),
    ``multifactor`` (Slurm's priority/multifactor weights). blocking: ``strict`` = nothing overtakes a blocked head but
    by backfill; ``skip`` = whatever fits starts. backfill: ``none``, ``easy``, ``conservative``; ``replan`` is for replays of Slurm alone: conservative, but all
    promises are made anew at each look, so that they may move later too. placement: ``bestfit``
    ("consolidate": fewest sufficient free GPUs, ties: first node), ``firstfit`` (the first node that fits), ``spread``, ``fgd``. depth: queued workloads looked at
    by backfill in a cycle (Slurm's bf_max_job_test, 100).
    """

    order: str = "fifo"
    blocking: str = "strict"
    backfill: str = "none"
    placement: str = "bestfit"
    depth: int = 100
    preemption: bool = False
    decay_half_life_s: float = 7 * 86400.0
    weights: tuple[tuple[str, float], ...] = ()  # multifactor: age, fairshare, jobsize, partition, qos
    max_age_s: float = 7 * 86400.0  # multifactor: age saturates (PriorityMaxAge)
    max_evictions: int = 3  # a workload evicted this often is not chosen again
    rescore_s: float = 300.0  # multifactor: priorities are worked out anew so often (PriorityCalcPeriod)
    replan_s: float = 30.0  # backfill "replan": at most so often (bf_interval)

    @property
    def name(self) -> str:
        return f"{self.order}-{self.blocking}" + (f"-{self.backfill}" if self.backfill != "none" else "")


@dataclass(frozen=True, slots=True)
class Admit:
    id: str
    shares: tuple[Share, ...]
    flavor: str = "default"
    message: str = ""
    backfilled: bool = False
    borrowed: float = 0.0  # GPUs above the queue's nominal quota that it made the queue hold


@dataclass(frozen=True, slots=True)
class Evict:
    """``reason``: Preempted (a higher priority), Reclaimed (its queue had borrowed), Idle... ; ``for_id`` then starts."""

    id: str
    reason: Reason
    message: str
    for_id: str = ""


@dataclass(frozen=True, slots=True)
class Promise:
    """No later than ``start`` on these nodes, while runtimes keep to their limits and nobody of higher order arrives."""

    id: str
    start: float
    shares: tuple[Share, ...]


@dataclass(frozen=True, slots=True)
class Awaited:
    """Whom ``victims`` were evicted for, and the nodes that are kept for it until the last of them has left."""

    id: str
    flavor: str
    nodes: tuple[str, ...]
    victims: frozenset[str]


@dataclass(frozen=True, slots=True)
class Usage:
    """What one account of the fair-share tree has used, decayed, as of ``at``; ``rate``: what it held from then on."""

    path: tuple[str, ...]
    decayed: float
    at: float
    rate: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Why one is not admitted, in words with figures, what would help, and when it may start at the earliest guess."""

    id: str
    reason: Reason
    message: str
    helps: tuple[str, ...] = ()
    start_estimate: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """In the order in which to do them: evictions, then admissions. ``wait``: only those looked at in this cycle."""

    admit: tuple[Admit, ...] = ()
    evict: tuple[Evict, ...] = ()
    promises: tuple[Promise, ...] = ()
    wait: tuple[Wait, ...] = ()
    blocked_by: str | None = None  # the id of the head that the rest wait behind


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything a planner is told at once; the incremental ``Scheduler`` must decide as if given this."""

    nodes: tuple[NodeState, ...] = ()
    held: tuple[Held, ...] = ()
    queued: tuple[Workload, ...] = ()
    reservations: tuple[Reservation, ...] = ()
    promises: tuple[Promise, ...] = ()
    awaiting: tuple[Awaited, ...] = ()
    usage: tuple[Usage, ...] = ()
