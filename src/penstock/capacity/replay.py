"""Replay of a trace through the scheduler that also schedules live: an event heap, and no clock.

At one instant: first what ends, then what arrives, then one scheduling cycle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush

from penstock.scheduling.cycle import Scheduler
from penstock.scheduling.spec import Setup
from penstock.scheduling.state import Admit, Ask, Evict, Gpu, NodeState, Part, Workload

_END, _REPAIR, _FAIL, _ARRIVE, _WAKE = range(5)  # order at one instant


@dataclass(frozen=True, slots=True)
class TraceJob:
    """One row of a trace. Times in seconds; ``line`` is where it stands in its file."""

    id: str
    submit: float
    duration: float
    gpus: int
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


@dataclass(slots=True)
class Result:
    outcomes: list[Outcome]
    events: int = 0
    gpu_seconds: float = 0.0  # used, evicted and lost work included
    capacity_gpu_seconds: float = 0.0  # from the first submission to the last end
    aborted: bool = False
    timeline: list[tuple[float, dict[str, int], dict[str, int]]] = field(
        default_factory=list
    )  # at, GPUs by queue, waiting


@dataclass(slots=True)
class _Run:
    """An attempt under way."""

    outcome: Outcome
    started: float
    left: float  # seconds of work at its start
    queued_at: float
    version: int = 0


def parts_of(job: TraceJob, gpus_per_node: int, known: dict[tuple[object, ...], tuple[Part, ...]]) -> tuple[Part, ...]:
    """Whole nodes and one for the remainder; memoised, since most jobs of a trace look alike."""
    key = (job.gpus, job.nodes, job.cpus, job.memory, job.gpu_milli)
    found = known.get(key)
    if found is None:
        found = known[key] = _parts(job, gpus_per_node)
    return found


def _parts(job: TraceJob, per_node: int) -> tuple[Part, ...]:
    if job.gpu_milli and job.gpus <= 1:
        return (Part(1, Ask(job.cpus, job.memory, 0, job.gpu_milli)),)
    if job.nodes and job.nodes > 1:
        each, extra = divmod(job.gpus, job.nodes)
        share = Ask(job.cpus / job.nodes, job.memory // job.nodes, each)
        return (Part(job.nodes, share if not extra else replace(share, gpus=each + 1)),)
    whole, rest = divmod(job.gpus, per_node) if per_node and job.gpus > per_node else (0, job.gpus)
    count = whole + (1 if rest or not whole else 0)
    cpus, memory = job.cpus / count, job.memory // count
    parts = [Part(whole, Ask(cpus, memory, per_node))] if whole else []
    if rest or not whole:
        parts.append(Part(1, Ask(cpus, memory, rest)))
    return tuple(parts)


class Replay:
    """One run. ``stop_early`` is asked now and then with the waits so far and may end a hopeless run."""

    def __init__(
        self,
        jobs: Sequence[TraceJob],
        nodes: Sequence[NodeState],
        setup: Setup,
        *,
        failures: Iterable[Failure] = (),
        checkpoint_s: float | None = None,
        samples: int = 0,
    ) -> None:
        self.jobs = jobs
        self.nodes = list(nodes)
        self.scheduler = Scheduler(setup)
        for node in self.nodes:
            self.scheduler.put_node(node)
        self.checkpoint_s = checkpoint_s
        self.result = Result([])
        self._origin = jobs[0].submit if jobs else 0.0
        self._gpus_per_node = max((len(node.gpus) for node in self.nodes), default=0)
        self._parts: dict[tuple[object, ...], tuple[Part, ...]] = {}
        self._runs: dict[str, _Run] = {}
        self._left: dict[str, float] = {}
        self._outcomes: dict[str, Outcome] = {}
        self._heap: list[tuple[float, int, int, str]] = []
        self._down: dict[int, float] = {}
        self._sample_every = 0.0
        self._samples = samples
        for failure in failures:
            self._heap.append((failure.at, _FAIL, failure.node, repr(failure.until)))
        heapify(self._heap)

    def run(
        self, *, progress: Callable[[int], None] | None = None, stop: Callable[[float, int], bool] | None = None
    ) -> Result:
        """Until the last job has ended. ``stop(now, ended)`` true ends it early."""
        jobs, origin, heap, scheduler = self.jobs, self._origin, self._heap, self.scheduler
        count, at, now, events, ended = len(jobs), 0, 0.0, 0, 0
        while at < count or self._runs or len(scheduler.lines) or scheduler.awaiting:
            arrival = jobs[at].submit - origin if at < count else math.inf
            first = heap[0][0] if heap else math.inf
            wake = scheduler.wake_at()
            now = min(arrival, first, wake)
            if now == math.inf:
                break  # what is left can never start
            while heap and heap[0][0] <= now:
                _, kind, number, what = heappop(heap)
                ended += self._happened(kind, number, what, now)
                events += 1
            while at < count and jobs[at].submit - origin <= now:
                self._arrive(jobs[at], now)
                at += 1
                events += 1
            decision = scheduler.plan(now)
            if decision.admit or decision.evict:
                for evict in decision.evict:
                    self._evict(evict, now)
                for admit in decision.admit:
                    self._start(admit, now)
            for promise in decision.promises:
                outcome = self._outcomes[promise.id]
                if outcome.promised is None:
                    outcome.promised = promise.start
            if self._samples:
                self._sample(now)
            if progress is not None and events & 4095 == 0:
                progress(ended)
            if stop is not None and events & 255 == 0 and stop(now, ended):
                self.result.aborted = True
                break
        self.result.events = events
        self.result.outcomes = list(self._outcomes.values())
        last = max((one.end for one in self.result.outcomes if one.end == one.end), default=0.0)
        gpus = sum(len(node.gpus) for node in self.nodes)
        self.result.capacity_gpu_seconds = gpus * last
        return self.result

    def _arrive(self, job: TraceJob, now: float) -> None:
        self._outcomes[job.id] = Outcome(job)
        self._left[job.id] = max(job.duration, 1.0)
        self._queue(job, now)

    def _queue(self, job: TraceJob, now: float, evictions: int = 0) -> None:
        left = self._left[job.id]
        limit = left if job.limit is None else job.limit
        self.scheduler.submit(
            Workload(
                job.id,
                job.id,
                now,
                parts_of(job, self._gpus_per_node, self._parts),
                job.queue,
                job.user,
                "",
                job.priority,
                limit,
                left,
                evictions=evictions,
                seq=job.line,
            )
        )

    def _start(self, admit: Admit, now: float) -> None:
        outcome = self._outcomes[admit.id]
        workload = self.scheduler.held[admit.id].held.workload
        left = self._left[admit.id]
        limit = outcome.job.limit
        lasts = left if limit is None else min(left, max(limit, 1.0))
        outcome.start = now
        outcome.waited += now - workload.queued_at
        self._runs[admit.id] = _Run(outcome, now, left, workload.queued_at, outcome.evictions + outcome.failures)
        heappush(self._heap, (now + lasts, _END, outcome.evictions + outcome.failures, admit.id))

    def _happened(self, kind: int, number: int, what: str, now: float) -> int:
        if kind == _END:
            return self._ended(what, number, now)
        if kind == _FAIL:
            self._fail(number, float(what), now)
        elif kind == _REPAIR:
            if self._down.get(number) == now:
                del self._down[number]
                self.scheduler.put_node(self.nodes[number])
        return 0

    def _ended(self, id_: str, version: int, now: float) -> int:
        run = self._runs.get(id_)
        if run is None or run.version != version:
            return 0  # evicted or lost before
        del self._runs[id_]
        self.scheduler.end(id_, now)
        run.outcome.end = now
        self.result.gpu_seconds += (now - run.started) * run.outcome.job.gpus
        del self._left[id_]
        return 1

    def _evict(self, evict: Evict, now: float) -> None:
        """Traces know no grace: it is gone at once, and stands in line again."""
        self._interrupt(evict.id, now, evicted=True)

    def _interrupt(self, id_: str, now: float, *, evicted: bool) -> None:
        run = self._runs.pop(id_)
        outcome, ran = run.outcome, now - run.started
        kept = math.floor(ran / self.checkpoint_s) * self.checkpoint_s if self.checkpoint_s else 0.0
        self._left[id_] = max(run.left - kept, 1.0)
        outcome.lost_s += ran - kept
        outcome.evictions += evicted
        outcome.failures += not evicted
        self.result.gpu_seconds += ran * outcome.job.gpus
        self.scheduler.end(id_, now)
        self._queue(outcome.job, now, outcome.evictions)
        heappush(self._heap, (now, _WAKE, 0, ""))

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

    def _sample(self, now: float) -> None:
        """Utilisation and waiting by queue, at instants spaced so that about ``samples`` are kept."""
        timeline = self.result.timeline
        if timeline and now < timeline[-1][0] + self._sample_every:
            return
        if not timeline:
            span = self.jobs[-1].submit - self._origin
            self._sample_every = span / self._samples
        used: dict[str, int] = {}
        for run in self._runs.values():
            used[run.outcome.job.queue] = used.get(run.outcome.job.queue, 0) + run.outcome.job.gpus
        waiting: dict[str, int] = {}
        for line in self.scheduler.lines.lines.values():
            waiting[line.queue] = waiting.get(line.queue, 0) + len(line.entries)
        timeline.append((now, used, waiting))
