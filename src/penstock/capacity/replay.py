"""Replay of a trace through the scheduler that also schedules live: an event heap, and no clock.

At one instant: first what ends, then what arrives, then one scheduling cycle.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush

from penstock.capacity.accounts import Accounts
from penstock.capacity.series import Series
from penstock.scheduling.cycle import Scheduler
from penstock.scheduling.spec import Queue, Setup
from penstock.scheduling.state import Admit, Ask, Gpu, NodeState, Part, Workload

PATIENCE_S = 366 * 86400.0
MOST_RESTARTS = 1000  # after so many failures a job is taken to be too long for such a fleet
LOOKS = 64  # ahead, before they become half as frequent
_END, _REPAIR, _FAIL, _WAKE = range(4)  # order at one instant
Part_ = tuple[Part, ...]


@dataclass(slots=True)  # not frozen: that would cost a tenth of a replay
class TraceJob:
    """One row of a trace, never changed. Times in seconds; ``line`` is where it stands in its file."""

    id: str
    submit: float
    duration: float
    gpus: float  # below 1: a share of one
    queue: str = "default"
    user: str = ""
    limit: float | None = None  # None: its true duration
    priority: int = 0
    nodes: int | None = None  # None: as few as hold its GPUs
    cpus: float = 0.0  # in all
    memory: int = 0
    gpu_milli: int = 0
    started: float | None = None  # in reality, where the trace knows
    line: int = 0
    models: tuple[str, ...] = ()  # GPU models that it may have
    ongoing: bool = False  # it still ran when the trace was written
    partition: str = ""  # Slurm's, and its QOS
    qos: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """A node is away from ``at`` until ``until`` (seconds after the first submission)."""

    node: int
    at: float
    until: float


@dataclass(frozen=True, slots=True)
class Cluster:
    """Nodes of one kind, in racks and blocks where ``rack`` (nodes in one) says so."""

    nodes: int
    gpus: int
    cpus: float = 0.0
    memory: int = 0
    model: str = ""
    flavor: str = "default"
    rack: int = 0
    block: int = 0  # racks in a block

    def states(self) -> list[NodeState]:
        gpus = tuple(Gpu(str(n), self.model) for n in range(self.gpus))
        return [
            NodeState(f"node-{n}", self.cpus, self.memory, gpus, self.flavor, self._path(n)) for n in range(self.nodes)
        ]

    def _path(self, n: int) -> tuple[str, ...]:
        if not self.rack:
            return ()
        rack = n // self.rack
        return (f"block-{rack // self.block}", f"rack-{rack}") if self.block else (f"rack-{rack}",)


@dataclass(slots=True)
class Outcome:
    """What became of one job."""

    job: TraceJob
    start: float = math.nan  # of its last attempt
    end: float = math.nan
    waited: float = 0.0  # all its time in line, also after evictions and failures
    evictions: int = 0
    failures: int = 0
    lost_s: float = 0.0  # run time that had to be done again
    promised: float | None = None  # the start that it was first told
    queued_at: float = 0.0  # when it was first submitted, on the replay's clock


@dataclass(slots=True)
class Result:
    outcomes: list[Outcome] = field(default_factory=list)  # empty where a sink took them
    events: int = 0
    ended: int = 0
    makespan: float = 0.0  # the last end, from the first submission
    unplaced: list[Outcome] = field(default_factory=list)  # could never start, or never end
    gpu_seconds: float = 0.0  # used, evicted and lost work included
    capacity_gpu_seconds: float = 0.0  # from the first submission to the last end
    aborted: bool = False


@dataclass(slots=True)
class _Run:
    """An attempt under way."""

    outcome: Outcome
    started: float
    left: float  # seconds of work at its start
    version: int  # of the attempt


class Replay:
    """One run over jobs in the order of their submission, which may be a stream: only those not ended are kept.

    ``sink`` is given each job as it ends; without one they are collected in the result. ``samples``: keep series of
    about so many points. ``failures`` are in the order of time, and need not end.
    """

    def __init__(
        self,
        jobs: Iterable[TraceJob],
        cluster: Cluster,
        setup: Setup,
        *,
        failures: Iterable[Failure] = (),
        checkpoint_s: float | None = None,
        samples: int = 0,
        sink: Callable[[Outcome], None] | None = None,
    ) -> None:
        self.jobs = jobs
        self.cluster = cluster
        self.nodes = cluster.states()
        self._queues = dict(setup.queues)
        self._own_queues = setup.policy.order in {"fairshare", "multifactor"} or set(setup.queues) != {"default"}
        self.scheduler = Scheduler(replace(setup, queues=self._queues))
        for node in self.nodes:
            self.scheduler.put_node(node)
        self.checkpoint_s = checkpoint_s
        self.result = Result()
        self.accounts = Accounts(setup)
        self.series = Series(samples, self.accounts) if samples else None
        self._sink = sink or self.result.outcomes.append
        self._parts: dict[tuple[object, ...], Part_] = {}
        self._runs: dict[str, _Run] = {}
        self._waiting: dict[str, tuple[Outcome, float, float]] = {}  # id -> outcome, work left, in line since
        self._heap: list[tuple[float, int, int, str]] = []
        self._down: dict[int, float] = {}
        self._failures = iter(failures)
        self.foretell = False  # tell starts where nothing is promised too, so that their error is measured
        self._lines_seen = self._next_look = self._looks = 0
        self._last = 0.0  # when a job last got in line, started or ended
        self._foresee()

    def run(
        self, *, progress: Callable[[int], None] | None = None, stop: Callable[[float], bool] | None = None
    ) -> Result:
        """Until the last job has ended. ``stop(now)`` is asked now and then, and true ends a hopeless run early."""
        gc.freeze()  # a trace that is held in memory stays: collections that walk it would take a tenth of the time
        try:
            return self._run(progress, stop)
        finally:
            gc.unfreeze()

    def _run(self, progress: Callable[[int], None] | None, stop: Callable[[float], bool] | None) -> Result:
        heap, scheduler, result, series = self._heap, self.scheduler, self.result, self.series
        stream = iter(self.jobs)
        job = next(stream, None)
        origin = arrival = job.submit if job is not None else math.inf
        arrival -= origin if job is not None else 0.0
        events, said = 0, 0
        while job is not None or self._runs or self._waiting:
            now = heap[0][0] if heap else math.inf
            wake = scheduler.wake_at()
            now = min(now, arrival, wake)
            if now == math.inf or (job is None and not self._runs and not self._hope(now)):
                break  # what is left can never start
            if series is not None and series.next_at <= now:
                series.roll(now)
            while heap and heap[0][0] <= now:
                _, kind, number, what = heappop(heap)
                self._happened(kind, number, what, now)
                events += 1
            while arrival <= now and job is not None:
                self._arrive(job, now)
                events += 1
                job = next(stream, None)
                arrival = job.submit - origin if job is not None else math.inf
            self._cycle(now)
            if events - said >= 2048:
                said = events
                if progress is not None:
                    progress(result.ended)
                if stop is not None and stop(now):
                    result.aborted = True
                    break
        result.events = events
        result.unplaced += [outcome for outcome, _, _ in self._waiting.values()]
        result.capacity_gpu_seconds = sum(len(node.gpus) for node in self.nodes) * result.makespan
        self.accounts.close(result.makespan)
        if series is not None:
            series.finish(result.makespan)
        return result

    def _foresee(self) -> None:
        """The next failure."""
        failure = next(self._failures, None)
        if failure is not None:
            heappush(self._heap, (failure.at, _FAIL, failure.node, repr(failure.until)))

    def _hope(self, now: float) -> bool:
        """Nothing runs or arrives: only a node that comes back, or a due cycle, can still change anything. That a fleet
        whose nodes come and go will one day be whole is not waited for longer than a year.
        """
        if now > self._last + PATIENCE_S:
            return False
        soon = bool(self._heap) and self._heap[0][0] <= now and self._heap[0][1] != _FAIL
        return bool(self._down) or soon or self.scheduler.wake_at() <= now

    def _cycle(self, now: float) -> None:
        decision = self.scheduler.plan(now)
        evicted = [evict.id for evict in decision.evict] if decision.evict else ()
        late = [id_ for id_ in evicted if id_ not in self._runs]  # admitted in this same cycle
        for id_ in evicted:
            if id_ in self._runs:
                self._interrupt(id_, now, evicted=True)  # traces know no grace: it is gone, and in line again
        for admit in decision.admit:
            self._start(admit, now)
        for id_ in late:
            self._interrupt(id_, now, evicted=True)
        for promise in decision.promises:
            waiting = self._waiting.get(promise.id)
            if waiting is not None and waiting[0].promised is None:
                waiting[0].promised = promise.start
        if self.foretell and self._waiting:
            self._look_ahead(now)

    def _look_ahead(self, now: float) -> None:
        """Tell those in line who were told nothing when they may start: after fewer and fewer cycles, since a look ahead
        costs more than a cycle.
        """
        self._lines_seen += 1
        if self._lines_seen < self._next_look:
            return
        self._next_look = self._lines_seen + (1 << self._looks // LOOKS)
        self._looks += 1
        for id_, told in self.scheduler.start_estimates(now).items():
            waiting = self._waiting.get(id_)
            if waiting is not None and waiting[0].promised is None:
                waiting[0].promised = told.start

    def _arrive(self, job: TraceJob, now: float) -> None:
        if job.id in self._waiting or job.id in self._runs:  # ids of different instants may be alike
            job = replace(job, id=f"{job.id}~{job.line}")
        self._queue(Outcome(job, queued_at=now), max(job.duration, 1.0), now)

    def _queue(self, outcome: Outcome, left: float, now: float) -> None:
        job = outcome.job
        parts = self._parts_of(job)
        queue = "default"
        if self._own_queues:
            queue = job.queue
            if queue not in self._queues:
                self._queues[queue] = Queue(queue)
        limit = left if job.limit is None else max(job.limit, 1.0)
        self._waiting[job.id] = (outcome, left, now)
        self._last = now
        self.accounts.wait(job.queue)
        self.scheduler.submit(
            Workload(
                job.id, job.id, now, parts, queue, job.user, "", job.priority, limit, left,
                evictions=outcome.evictions, seq=job.line,
            )
        )  # fmt: skip

    def _parts_of(self, job: TraceJob) -> Part_:
        """Memoised, since most jobs of a trace look alike."""
        key = (job.gpus, job.nodes, job.cpus, job.memory, job.gpu_milli, job.models)
        found = self._parts.get(key)
        if found is None:
            found = self._parts[key] = parts_of(job, self.cluster)
        return found

    def _start(self, admit: Admit, now: float) -> None:
        outcome, left, since = self._waiting.pop(admit.id)
        job = outcome.job
        lasts = left if job.limit is None else min(left, max(job.limit, 1.0))
        outcome.start = now
        outcome.waited += now - since
        version = outcome.evictions + outcome.failures
        self._last = now
        self._runs[admit.id] = _Run(outcome, now, left, version)
        heappush(self._heap, (now + lasts, _END, version, admit.id))
        self.accounts.start(job.queue, job.gpus, now)

    def _happened(self, kind: int, number: int, what: str, now: float) -> None:
        if kind == _END:
            self._ended(what, number, now)
        elif kind == _FAIL:
            self._fail(number, float(what), now)
            self._foresee()
        elif kind == _REPAIR and self._down.get(number, math.inf) <= now:
            del self._down[number]
            self.scheduler.put_node(self.nodes[number])

    def _ended(self, id_: str, version: int, now: float) -> None:
        run = self._runs.get(id_)
        if run is None or run.version != version:
            return  # evicted or lost before
        del self._runs[id_]
        self.scheduler.end(id_, now)
        outcome, result = run.outcome, self.result
        outcome.end = result.makespan = self._last = now
        result.ended += 1
        result.gpu_seconds += (now - run.started) * outcome.job.gpus
        self.accounts.change(outcome.job.queue, -outcome.job.gpus, now)
        self._sink(outcome)
        if self.series is not None:
            self.series.add(outcome.job.queue, outcome.queued_at, outcome.waited)

    def _interrupt(self, id_: str, now: float, *, evicted: bool) -> None:
        """It starts again from its last checkpoint, or from scratch where it makes none."""
        run = self._runs.pop(id_)
        outcome, ran = run.outcome, now - run.started
        kept = math.floor(ran / self.checkpoint_s) * self.checkpoint_s if self.checkpoint_s else 0.0
        outcome.lost_s += ran - kept
        outcome.evictions += evicted
        outcome.failures += not evicted
        self.result.gpu_seconds += ran * outcome.job.gpus
        self.scheduler.end(id_, now)
        self.accounts.change(outcome.job.queue, -outcome.job.gpus, now)
        heappush(self._heap, (now, _WAKE, 0, ""))  # a cycle at this very instant
        if outcome.failures < MOST_RESTARTS:
            self._queue(outcome, max(run.left - kept, 1.0), now)
        else:
            self.result.unplaced.append(outcome)

    def _fail(self, number: int, until: float, now: float) -> None:
        """A node is lost: whatever has a group on it is lost whole, and waits again."""
        if number >= len(self.nodes):
            return
        name = self.nodes[number].name
        self._down[number] = max(until, self._down.get(number, 0.0))
        heappush(self._heap, (self._down[number], _REPAIR, number, ""))
        hit = [id_ for id_, h in self.scheduler.held.items() if any(share.node == name for share in h.held.shares)]
        self.scheduler.drop_node(name)
        for id_ in hit:
            if id_ in self._runs:
                self._interrupt(id_, now, evicted=False)

    def still_waiting(self, now: float) -> Iterator[float]:
        """How long those in line have waited by now: they will wait at least as long."""
        return (outcome.waited + now - since for outcome, _, since in self._waiting.values())


def parts_of(job: TraceJob, cluster: Cluster) -> Part_:
    """Whole nodes and one for the remainder. Cores, memory and models count where the nodes were given any."""
    per_node = cluster.gpus
    cpus, memory = (job.cpus if cluster.cpus else 0.0), (job.memory if cluster.memory else 0)
    models = job.models if cluster.model else ()
    gpus = math.ceil(job.gpus)
    if job.gpu_milli and job.gpus <= 1:
        return (Part(1, Ask(cpus, memory, 0, job.gpu_milli, models)),)
    if job.nodes and job.nodes > 1 and -(-gpus // job.nodes) <= per_node:
        each, extra = divmod(gpus, job.nodes)
        ask = Ask(cpus / job.nodes, memory // job.nodes, each, 0, models)
        parts = (Part(extra, replace(ask, gpus=each + 1)), Part(job.nodes - extra, ask))
        return tuple(part for part in parts if part.count)
    whole, rest = divmod(gpus, per_node) if per_node and gpus > per_node else (0, gpus)
    count = whole + (1 if rest or not whole else 0)
    ask = Ask(cpus / count, memory // count, per_node, 0, models)
    found = [Part(whole, ask)] if whole else []
    if rest or not whole:
        found.append(Part(1, replace(ask, gpus=rest)))
    return tuple(found)
