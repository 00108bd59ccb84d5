"""The scheduler's view of the database, kept between cycles: the event log names what changed, and only that is read again.

Rows are the truth. A mark says "read this row again"; how often a row is read, and in which order, changes nothing.
"""

from __future__ import annotations

import gc
import heapq
import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import bindparam, func, select
from sqlalchemy.engine import Connection, Row

from penstock.base.reasons import Reason
from penstock.fleet import inventory
from penstock.fleet.labels import topology
from penstock.jobs import avoided
from penstock.jobs.spec import JobSpec
from penstock.jobs.state import ACTIVE, Phase
from penstock.jobs.tables import attempts, jobs
from penstock.scheduling import kept, live, outlook, partial, patience, restart, windows
from penstock.scheduling.cycle import Scheduler
from penstock.scheduling.spec import Setup, flavor_of
from penstock.scheduling.state import Ask, Gpu, Held, NodeState, Part, Share, Topology, Workload
from penstock.store.events import EventRow

EVICTED = (str(Reason.Preempted), str(Reason.Reclaimed), str(Reason.IdleReclaimed))
# After these a row is as the view has it: it wrote them itself, or they change nothing that it decides by.
QUIET = frozenset(
    {
        *(Reason.AttemptStarted, Reason.Started, Reason.RankExited, Reason.RankRestarted, Reason.Progressing),
        *(Reason.WaitingForResources, Reason.WaitingBehind, Reason.Unschedulable, Reason.QuotaExceeded),
        *(Reason.HandedOver, Reason.HeldByAdministrator, Reason.Requeued),
        *(Reason.EngineUnreachable, Reason.EngineReached),
    }
)
SETTLED = 1000  # jobs above which the garbage collector's passes are felt
IDLENESS = frozenset({Reason.GpuIdle, Reason.GpuIdleEnded})
AT_ONCE = 500  # ids in one statement; SQLite takes 32,766 variables, and a long statement is compiled anew
_SOME = select(jobs).where(jobs.c.id.in_(bindparam("ids", expanding=True)))
_ONE = select(jobs).where(jobs.c.id == bindparam("id"))
_TASKS = select(jobs.c.id).where(jobs.c.array_of == bindparam("parent"))
_LIVE = select(jobs).where(jobs.c.phase.in_([Phase.PENDING.value, *(p.value for p in ACTIVE)]))
_ATTEMPT = select(attempts).where(attempts.c.job_id == bindparam("job_id"), attempts.c.number == bindparam("number"))
_RUNNING = select(attempts).where(
    attempts.c.job_id.in_(bindparam("ids", expanding=True)), attempts.c.ended_at.is_(None)
)
_EVICTIONS = (
    select(attempts.c.job_id, func.count()).where(attempts.c.stop_reason.in_(EVICTED)).group_by(attempts.c.job_id)
)


@dataclass(slots=True)
class Memory:
    """Parsed specs, so that nothing is parsed twice. Bounded. ``speed`` is the own engine's: how many times as fast as the
    clock the times pass that a spec states (a simulated fleet's; else 1); ``own`` its name: no other one's nodes and jobs
    are the planners' concern (empty: there is no other).
    """

    speed: float = 1.0
    own: str = ""
    progress: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # the last report, by job
    specs: OrderedDict[tuple[str, int], JobSpec] = field(default_factory=OrderedDict)

    def spec(self, row: Row[Any]) -> JobSpec:
        key = (row.id, row.generation)
        found = self.specs.get(key)
        if found is None:
            found = self.specs[key] = JobSpec.model_validate_json(row.spec)
            if len(self.specs) > 2048:
                self.specs.popitem(last=False)
        return found


class View:
    """``cycle`` and ``mark`` are called in the store's writer thread alone; ``fresh`` makes one for a reader."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.scheduler: Scheduler | None = None
        self.setup = Setup()
        self.rows: dict[str, Row[Any]] = {}  # of those that wait
        self.elsewhere: dict[str, Row[Any]] = {}  # of those that are to be handed over to another engine
        self.stranded: dict[str, Row[Any]] = {}  # of those whose engine is not there
        self.engines_changed = False
        self.mig: dict[
            str, dict[str, dict[str, str]]
        ] = {}  # by node: a planner's name of an instance -> {"id","profile"}
        self.told: dict[str, float] = {}  # when their rows were last made to say why they wait
        self.evictions: dict[str, int] = {}
        self._jobs: set[str] = set()
        self._arrays: set[str] = set()
        self._idle: set[str] = set()
        self._nodes: set[str] = set()
        self._windows = False  # reservations changed
        self._later: list[tuple[float, str]] = []  # a heap of (not before, id)
        self._parts: dict[tuple[Any, ...], tuple[Part, ...]] = {}
        self.stored = kept.Stored()
        self.outlooks: outlook.Waits = {}
        self.unavoidable: dict[str, frozenset[str]] = {}  # by job: nodes that it would avoid, but no others fit
        self._off: dict[str, frozenset[str]] = {}  # by job in line that avoids nodes: those, if the others would do
        self._now = 0.0
        self._settled = 0  # so many jobs are left alone by the garbage collector

    # -- what changed

    def mark(self, event: EventRow) -> None:
        """An event of this or another server."""
        if self.scheduler is None:
            return
        if event.kind == "Job" and event.reason in IDLENESS:
            self._idle.add(event.subject_id)
        elif event.kind == "Job" and event.reason not in QUIET:
            self._jobs.add(event.subject_id)
        elif event.kind == "Node":
            self._nodes.add(event.name)
        elif event.kind == "Reservation":
            self._windows = True
        elif event.reason in (Reason.QueuesChanged, Reason.BackupRestored):
            self.forget()

    def touch(self, job_id: str, *, array: bool = False) -> None:
        """A row changed and no event says so: a task was given its slot, a dependency was met."""
        if self.scheduler is not None:
            (self._arrays if array else self._jobs).add(job_id)

    def forget(self) -> None:
        """What is known may be wrong: the next cycle reads everything."""
        self.scheduler = None

    # -- bringing it up to date

    def refresh(self, conn: Connection, now: float) -> Scheduler:
        """The scheduler as the rows are now."""
        if self.scheduler is None:
            return self.build(conn, now)
        scheduler = self.scheduler
        self._now = now
        if self._nodes:
            self._read_nodes(conn, scheduler)
            self._jobs.update(self._off)  # other nodes may fit now, or none
        if self._windows:
            windows.take_over(conn, scheduler, now)
            self._windows = False
        for parent in self._arrays:
            self._jobs.update(conn.execute(_TASKS, {"parent": parent}).scalars())
        while self._later and self._later[0][0] <= now:
            self._jobs.add(heapq.heappop(self._later)[1])
        if self._jobs:
            ids, self._jobs = list(self._jobs), set()
            for id_ in set(ids).difference(row.id for row in self._take_in(conn, scheduler, ids, now)):
                self._gone(scheduler, id_, now)
        self._arrays.clear()
        if self._idle:
            self._read_idle(conn, scheduler)
        if self.engines_changed:
            self.engines_changed = False
            self.elsewhere |= self.stranded
            self.stranded.clear()
        self._settle()
        for id_ in scheduler.partial.small:
            self._tell_end(scheduler, id_)
        return scheduler

    def _tell_end(self, scheduler: Scheduler, id_: str) -> None:
        """When one that runs on fewer nodes than it would have expects to be done."""
        seen = self.memory.progress.get(id_, {})
        left, at = seen.get("eta_s"), seen.get("at")
        if isinstance(left, int | float) and isinstance(at, int | float):
            scheduler.partial.ends[id_] = at + left

    def build(self, conn: Connection, now: float) -> Scheduler:
        """From everything: at the take-over of leadership, after a restore, under another setup."""
        self.setup = live.current(conn)
        self._now = now
        scheduler = Scheduler(at_speed(self.setup, self.memory.speed))
        for node in inventory.all_nodes(conn):
            if self.ours(node.engine):
                scheduler.put_node(self.node(node))
        windows.take_over(conn, scheduler, now)
        self._windows = False
        for known in (
            self._jobs,
            self._arrays,
            self._idle,
            self._nodes,
            self.rows,
            self.told,
            self._off,
            self.unavoidable,
        ):
            known.clear()
        self.elsewhere.clear()
        self.stranded.clear()
        self._later.clear()
        self.evictions = dict(conn.execute(_EVICTIONS).all())
        for row in conn.execute(_LIVE).all():
            self._job(conn, scheduler, row, now)
        self.stored = kept.load(conn, scheduler, self.tag, now)
        self.outlooks = outlook.load(conn)
        self.scheduler = scheduler
        self._settled = 0
        self._settle()
        return scheduler

    def _settle(self) -> None:
        """What is kept from cycle to cycle lives long: once it is much, the garbage collector is told not to walk it, which
        would take longer than a cycle and happen in the middle of one.
        """
        known = len(self.rows) + len(self.scheduler.held) if self.scheduler is not None else 0
        if known > 2 * self._settled + SETTLED:
            self._settled = known
            gc.unfreeze()
            gc.collect()
            gc.freeze()

    def _read_idle(self, conn: Connection, scheduler: Scheduler) -> None:
        ids, self._idle = sorted(self._idle), set()
        for start in range(0, len(ids), AT_ONCE):
            for attempt in conn.execute(_RUNNING, {"ids": ids[start : start + AT_ONCE]}):
                patience.set_idle(scheduler, attempt.job_id, all_idle_since(attempt))

    def _read_nodes(self, conn: Connection, scheduler: Scheduler) -> None:
        names, self._nodes = self._nodes, set()
        found = {row.name: row for row in inventory.some_nodes(conn, names) if self.ours(row.engine)}
        for row in found.values():
            scheduler.put_node(self.node(row))
        for name in names - found.keys():
            scheduler.drop_node(name)

    def _take_in(self, conn: Connection, scheduler: Scheduler, ids: list[str], now: float) -> Iterator[Row[Any]]:
        for start in range(0, len(ids), AT_ONCE):
            some = ids[start : start + AT_ONCE]
            found = conn.execute(_ONE, {"id": some[0]}) if len(some) == 1 else conn.execute(_SOME, {"ids": some})
            for row in found.all():
                self._job(conn, scheduler, row, now)
                yield row

    def ours(self, engine: str | None) -> bool:
        """Whether it is the one on which the planners place."""
        return engine is None or not self.memory.own or engine == self.memory.own

    def _gone(self, scheduler: Scheduler, id_: str, now: float) -> None:
        self.rows.pop(id_, None)
        self._off.pop(id_, None)
        self.elsewhere.pop(id_, None)
        self.stranded.pop(id_, None)
        self.told.pop(id_, None)
        scheduler.withdraw(id_)
        scheduler.end(id_, now)

    def _job(self, conn: Connection, scheduler: Scheduler, row: Row[Any], now: float) -> None:
        if self.elsewhere or self.stranded:
            self.elsewhere.pop(row.id, None)
            self.stranded.pop(row.id, None)
        if row.phase in ACTIVE:
            self._active(conn, scheduler, row)
            return
        scheduler.end(row.id, now)
        known = self.rows.get(row.id)
        if row.phase != Phase.PENDING or row.held is not None or (row.next_at is not None and row.next_at > now):
            if known is not None:
                self._gone(scheduler, row.id, now)
            if row.phase == Phase.PENDING and row.held is None:
                heapq.heappush(self._later, (row.next_at, row.id))
            return
        if not self.ours(engine_of(self.setup, self.memory.spec(row), row.project)):
            self._gone(scheduler, row.id, now)
            self.elsewhere[row.id] = row
            return
        self.rows[row.id] = row
        off = self._keep_off(scheduler, row) if row.avoided or row.id in self._off else False
        if off or known is None or (known.generation, known.queued_at, known.attempt) != (
            row.generation, row.queued_at, row.attempt,
        ):  # fmt: skip
            self.told.pop(row.id, None)
            scheduler.submit(self.workload(row))

    def _keep_off(self, scheduler: Scheduler, row: Row[Any]) -> bool:
        """Which nodes it avoids now, as far as the others are enough for it; whether that is news."""
        known = avoided.load(row.avoided, self._now)
        before, off = self._off.pop(row.id, frozenset()), frozenset(one.node for one in known)
        if off:
            heapq.heappush(self._later, (min(one.until for one in known), row.id))
            work, fits = partial.smallest(self.workload(row)), scheduler.pool.could_place
            without = replace(work, exclude=work.exclude | off)
            if not fits(without, scheduler.pool.open):
                if fits(work, scheduler.pool.open):
                    self.unavoidable[row.id] = off
                off = frozenset()
            self._off[row.id] = off
        return before != off

    def _active(self, conn: Connection, scheduler: Scheduler, row: Row[Any]) -> None:
        self.rows.pop(row.id, None)
        self._off.pop(row.id, None)
        self.told.pop(row.id, None)
        if (row.array_count is not None and row.array_of is None) or not self.ours(row.engine):
            return
        if row.id in scheduler.held:
            if row.phase == Phase.STOPPING:
                restart.leaves(scheduler, row.id)
            return
        attempt = conn.execute(_ATTEMPT, {"job_id": row.id, "number": row.attempt}).first()
        if attempt is not None and attempt.ended_at is None:
            scheduler.withdraw(row.id)
            hold(scheduler, self.held(row, attempt))

    # -- rows in the planners' words

    def node(self, row: Row[Any]) -> NodeState:
        gpus = tuple(
            Gpu(gpu["id"], gpu["model"], tuple([one["profile"] for one in gpu.get("mig", ())]))
            for gpu in json.loads(row.gpus)
        )
        self.mig.pop(row.name, None)
        if any(gpu.mig for gpu in gpus):
            self.mig[row.name] = {
                f"{gpu['id']}:{n}": one for gpu in json.loads(row.gpus) for n, one in enumerate(gpu.get("mig", ()))
            }
        why = inventory.closed_because(row)
        labels = inventory.labels_of(row)
        return NodeState(
            row.name,
            row.cpus,
            int(row.memory),
            gpus,
            flavor_of(self.setup, gpus, labels),
            topology(labels),
            tuple(labels.items()),
            open=not why,
            why_closed=why,
        )

    def workload(self, row: Row[Any]) -> Workload:
        work = to_workload(self.setup, self.memory.spec(row), row.project, row.user, self.memory.speed)
        parts = self._parts.setdefault(work.parts, work.parts)  # the scheduler knows requests by identity
        if len(self._parts) > 4096:
            self._parts.clear()
        off = self._off.get(row.id, frozenset())
        return replace(
            work,
            id=row.id,
            name=row.name,
            queued_at=row.queued_at,
            parts=parts,
            priority=row.priority,
            exclude=work.exclude | off,
            lost=off and off.intersection(one.node for one in avoided.load(row.avoided, self._now) if one.lost),
            shrink_at=work.shrink_at + row.queued_at if row.attempt == 0 else 0.0,
            evictions=self.evictions.get(row.id, 0),
            seq=row.seq,
        )

    def held(self, row: Row[Any], attempt: Row[Any]) -> Held:
        work = self.workload(row)
        if row.avoided:
            off = avoided.load(row.avoided, self._now)
            lost = frozenset(one.node for one in off if one.lost)
            work = replace(work, exclude=work.exclude.union(one.node for one in off), lost=lost)
        ask = work.parts[0].ask
        shares = tuple(
            Share(group["node"], _asked(ask, group["gpus"]), tuple([pool_id(gpu) for gpu in group["gpus"]]))
            for group in json.loads(attempt.groups)
        )
        stop = attempt.stop_reason
        return Held(
            partial.of(work, len(shares)) if work.least else work,
            shares,
            attempt.admitted_at,
            leaving=stop is not None,
            idle_since=all_idle_since(attempt),
            counted=stop not in EVICTED,
        )

    def tag(self, job_id: str) -> str:
        """Which version of a job waits: what was promised to another is nothing."""
        row = self.rows.get(job_id)
        return f"{row.generation}.{row.attempt}" if row is not None else ""


def _asked(ask: Ask, gpus: Sequence[Mapping[str, Any]]) -> Ask:
    """What a group of an attempt was given, whatever the spec says by now."""
    milli, mig = (gpus[0].get("milli", 0), gpus[0].get("mig", "")) if gpus else (0, "")
    return replace(ask, gpus=0 if milli else len(gpus), gpu_milli=milli, mig=mig)


def pool_id(gpu: Mapping[str, Any]) -> str:
    """A device of a group by the name that the planners know it by: a MIG instance by its GPU and its place on it."""
    return f"{gpu['gpu']}:{gpu['instance']}" if gpu.get("mig") else str(gpu["id"])


def told_idle(stored: str | None) -> dict[tuple[str, str], float]:
    """GPUs (node, id) of an attempt's row that were called idle, and since when."""
    return {(node, gpu): since for node, gpu, since in json.loads(stored)} if stored else {}


def all_idle_since(attempt: Row[Any]) -> float | None:
    """Since when none of an attempt's GPUs has done anything: what its queue's patience is measured by."""
    idle = told_idle(attempt.gpu_idle)
    held = sum(len(group["gpus"]) for group in json.loads(attempt.groups)) if idle else 0
    return max(idle.values()) if idle and len(idle) == held else None


def hold(scheduler: Scheduler, held: Held) -> None:
    """It runs, whatever the books say: on a node that is no more, or that offers less than it did."""
    try:
        scheduler.begin(held)
    except (KeyError, ValueError):
        names = {share.node for share in held.shares}
        known = [node for node in scheduler.pool.states() if node.name in names]
        for name in names - {node.name for node in known}:
            scheduler.put_node(NodeState(name, open=False))
        for name in names:
            scheduler.drop_node(name)
        scheduler.begin(held)
        for node in known:
            scheduler.put_node(node)  # a node that is put books what is held on it unasked


def at_speed(setup: Setup, speed: float) -> Setup:
    """A simulated fleet's clock divides the time limits that jobs state; those that queues take are theirs too."""
    if speed == 1.0:
        return setup
    queues = {
        name: replace(queue, max_limit_s=None if queue.max_limit_s is None else queue.max_limit_s / speed)
        for name, queue in setup.queues.items()
    }
    return replace(setup, queues=queues)


def to_workload(setup: Setup, spec: JobSpec, project: str, user: str, speed: float = 1.0) -> Workload:
    """What a spec asks for, in the clock's seconds; the row's own figures are filled in by whoever has a row."""
    need = spec.resources
    ask = Ask(need.cpus, need.memory or 0, need.devices, need.milli, need.models, need.mig or "")
    place = spec.placement
    return Workload(
        id="",
        name="",
        queued_at=0.0,
        parts=(Part(spec.nodes, ask),),
        queue=queue_of(setup, spec, project),
        user=user,
        project=project,
        priority=spec.priority,
        limit_s=None if spec.time_limit is None else spec.time_limit / speed,
        flavors=spec.flavors,
        topology=Topology(place.level, place.required) if place is not None else None,
        exclude=frozenset(spec.exclude_nodes),
        grace_s=spec.grace_period / speed,
        least=spec.least if spec.least < spec.nodes else 0,
        most=spec.nodes,
        shrink_at=spec.shrink_after / speed,
        grow_after_s=spec.grow_after / speed,
        reservations=frozenset({spec.reservation} if spec.reservation else ()),
    )


def queue_of(setup: Setup, spec: JobSpec, project: str) -> str:
    """The queue that a spec names, or its project's."""
    return spec.queue or live.queue_of(setup, project)


def engine_of(setup: Setup, spec: JobSpec, project: str) -> str | None:
    """The engine that a spec names, or its queue; None: the server's own."""
    if spec.engine is not None:
        return spec.engine
    queue = setup.queues.get(queue_of(setup, spec, project))
    return queue.engine if queue is not None else None


def fresh(conn: Connection, now: float, memory: Memory) -> tuple[View, Scheduler]:
    """A view of its own for a reader, on the reader's snapshot."""
    view = View(memory)
    return view, view.build(conn, now)


def node_names(shares: Iterable[Share]) -> list[str]:
    return [share.node for share in shares]
