"""Jobs' part of the loop: scheduling cycles, telling the engine, taking in what it observes."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.engine import Connection, Row

from penstock.base.reasons import Reason
from penstock.engines.spec import Engine, NodeOffer, Observation, Stage
from penstock.fleet import inventory
from penstock.jobs import admission, progression, series, submit
from penstock.jobs.launch import Site, launch
from penstock.jobs.spec import JobSpec
from penstock.jobs.state import ACTIVE, FINAL, Phase
from penstock.jobs.tables import attempts, jobs
from penstock.jobs.view import Memory, View
from penstock.reconcile.loop import Loop
from penstock.store.events import EventRow
from penstock.store.store import Store, Tx

log = logging.getLogger("penstock.jobs")
ADOPT_AT_ONCE = 32
REPORTS_KEPT = 20  # over which the pace is taken
LOOK_AHEAD_S = 2.0  # between a job's arrival in line and its start estimate, at the most where that is quick
LOOK_AHEAD_SHARE = 0.02  # of the writer's time that estimates may take
FOLD_S = 0.01  # a start is written this much later, so that a job that is over by then costs one write, not two
Fence = Callable[[Tx], int]  # raises when leadership is lost; answers the lease's epoch


@dataclass(slots=True)
class JobReconciler:
    """Wired in app.py. ``fence`` is asked inside every transaction, so that a server that lost its lease changes nothing."""

    store: Store
    engine: Engine
    loop: Loop
    fence: Fence
    jobs_dir: str
    site: Site
    progress: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # the last report, by job id
    on_progress: Callable[[str], None] = lambda _job_id: None
    _reports: dict[str, deque[Mapping[str, Any]]] = field(default_factory=dict)
    _seen: dict[str, Observation] = field(default_factory=dict)  # not yet taken in, by job id
    _folds: dict[str, asyncio.TimerHandle] = field(default_factory=dict)
    _memory: Memory = field(default_factory=Memory)
    _view: View = field(init=False)
    _look_ahead_s: float = LOOK_AHEAD_S
    _stop_listening: Callable[[], None] | None = None
    _engine_runs: bool = False
    _offers: Sequence[NodeOffer] = ()  # as they were taken over last
    speed: float = 1.0  # of the engine's time

    def __post_init__(self) -> None:
        self._memory.speed = self.speed
        self._view = View(self._memory)
        self.store.project(lambda _tx, event: self._view.mark(event))

    async def start(self) -> None:
        """Take over: register nodes, find what runs, then begin to decide. After a pause: again."""
        self.loop.reconcilers |= {
            "job": self.reconcile,
            "schedule": self.schedule,
            "node": self.drain_node,
            "offers": lambda _key: self.sync_nodes(),
            "outlook": self.look_ahead,
        }
        self.loop.reopen()
        self._offers = ()
        self._stop_listening = self.store.listen(self._heard)
        if not self._engine_runs:
            await self.engine.start(self.observed)
            self._engine_runs = True
        await self.sync_nodes()
        await self._adopt_all()
        for job_id in await self.store.read(_held_back):
            self.loop.enqueue("job", job_id)
        wait = await self.store.read(_first_back_off)
        if wait is not None:
            self.loop.enqueue("schedule", "all", max(wait - self.store.clock(), 0.01))
        self.loop.enqueue("schedule", "all")

    async def pause(self) -> None:
        """Decide nothing more, until ``start``; what runs goes on, and what is observed meanwhile is found again then."""
        if self._stop_listening is not None:
            self._stop_listening()
            self._stop_listening = None
        await self.loop.close()
        self._view.forget()
        self._seen.clear()

    async def close(self) -> None:
        await self.pause()
        if self._engine_runs:
            await self.engine.close()

    def observed(self, seen: Observation) -> None:
        """The engine's sink: keeps the newest, folds the happenings of those not yet taken in."""
        job_id = seen.attempt_id.rpartition(".")[0]
        if seen.progress is not None:
            self._reported(job_id, seen.progress)
            if (
                seen.stage is Stage.RUNNING
                and not seen.happened
                and job_id not in self._seen
                and seen.started_at is None
            ):
                return
        before = self._seen.get(job_id)
        if before is not None and before.attempt_id == seen.attempt_id:
            seen = replace(
                seen,
                happened=before.happened + seen.happened,
                started_at=seen.started_at if seen.started_at is not None else before.started_at,
            )
        self._seen[job_id] = seen
        fold = self._folds.pop(job_id, None)
        if fold is not None:
            fold.cancel()
        if seen.stage is Stage.RUNNING:
            self._folds[job_id] = asyncio.get_running_loop().call_later(FOLD_S, self._unfold, job_id)
        else:
            self.loop.enqueue("job", job_id)

    def _reported(self, job_id: str, point: Mapping[str, Any]) -> None:
        """Keep the newest report, with the pace of the last few of the same rank."""
        last = self._reports.setdefault(job_id, deque(maxlen=REPORTS_KEPT))
        if last and last[-1].get("rank") != point.get("rank"):
            last.clear()
        last.append(point)
        self.progress[job_id] = series.latest(point) | series.pace(last)
        self.on_progress(job_id)

    def _unfold(self, job_id: str) -> None:
        self._folds.pop(job_id, None)
        self.loop.enqueue("job", job_id)

    def _heard(self, events: list[EventRow]) -> None:
        for event in events:
            if not self.store.is_sqlite:
                self._view.mark(event)  # another server's; SQLite has one writer, whose events were marked as it wrote
            if event.kind in ("Queues", "Reservation"):
                self.loop.enqueue("schedule", "all")
            if event.kind == "Job" and event.reason in (Reason.Created, Reason.Updated):
                self.loop.enqueue("schedule", "all")
                if event.data.get("held") == "dependency":
                    self.loop.enqueue("job", event.subject_id)
            elif event.kind == "Job" and event.reason in _WAKE:
                self.loop.enqueue("job", event.subject_id)
            elif event.kind == "Node":
                self.loop.enqueue("schedule", "all")
                if event.reason == Reason.Drained:
                    self.loop.enqueue("node", event.name)

    async def schedule(self, _key: object) -> None:
        """One cycle; then tell the engine of what was admitted, and have evicted attempts told to stop."""
        setting = admission.Setting(self.jobs_dir, self.engine.name, 0, self._memory)
        done = await self._cycle(setting)
        for job_id in done.evicted:
            self.loop.enqueue("job", job_id)
        if done.again_at < math.inf:
            self.loop.enqueue("schedule", "all", max(done.again_at - self.store.clock(), 0.01))
        self.loop.enqueue("outlook", "all", self._look_ahead_s)
        await asyncio.gather(*(self._submit(job, attempt) for job, attempt in done.admitted))

    async def look_ahead(self, _key: object) -> None:
        """Tell who waits when it may start; seldom where that takes long."""

        def look(tx: Tx) -> float:
            self.fence(tx)
            began = time.perf_counter()
            admission.tell_outlooks(tx, self._view)
            return time.perf_counter() - began

        try:
            took = await self.store.write(look)
        except BaseException:
            self._view.forget()
            raise
        self._look_ahead_s = max(LOOK_AHEAD_S, took / LOOK_AHEAD_SHARE)

    async def _cycle(self, setting: admission.Setting) -> admission.Done:
        """What could not be written was not decided: then the view is made anew from the rows."""
        for last in (False, True):
            try:
                return await self.store.write(
                    lambda tx: admission.cycle(tx, self._view, replace(setting, epoch=self.fence(tx)))
                )
            except BaseException as error:
                self._view.forget()
                if last or not isinstance(error, admission.Stale):
                    raise
        raise AssertionError("unreachable")

    async def _submit(self, job: Row[Any], attempt: Mapping[str, Any]) -> None:
        spec = self._memory.spec(job)
        told = launch(job._mapping, attempt, spec, self.site)  # noqa: SLF001 - SQLAlchemy's public name for it
        try:
            await self.engine.submit(told)
        except Exception as error:  # whatever an engine's fault: the attempt ends with a reason, the cycle goes on
            log.exception("cannot submit %s", told.attempt_id)
            now = self.store.clock()
            self.observed(
                Observation(
                    told.attempt_id, Stage.EXITED, now, ended_at=now, reason=Reason.LaunchFailed, message=str(error)
                )
            )

    async def reconcile(self, job_id: object) -> float | None:
        """Take in what was seen of a job; see to its dependencies, its array and its end."""
        key = str(job_id)
        if key in self._seen and self._seen[key].reason == Reason.NodeLost:
            await self.sync_nodes()  # first the node is closed, so that nothing is placed there again
        seen = self._seen.pop(key, None)
        try:
            effects, stop = await self.store.write(lambda tx: self._apply(tx, key, seen))
        except BaseException:
            if seen is not None and key not in self._seen:
                self._seen[key] = seen
            raise
        for other in effects.look_at:
            self.loop.enqueue("job", other)
        if effects.freed:
            self.loop.enqueue("schedule", "all")
        if effects.again_in_s is not None:
            self.loop.enqueue("schedule", "all", effects.again_in_s)
        if effects.ended:
            self.progress.pop(key, None)
            self._reports.pop(key, None)
        if stop is not None:
            attempt_id, run_dir, reason, grace_s = stop
            await self.engine.stop(attempt_id, run_dir, reason=reason, grace_s=grace_s)
        return None

    def _apply(
        self, tx: Tx, job_id: str, seen: Observation | None
    ) -> tuple[progression.Effects, tuple[str, str, str, float] | None]:
        self.fence(tx)
        row = submit.by_id(tx.conn, job_id)
        effects = progression.Effects()
        if row is None:
            return effects, None
        if seen is not None:
            if job_id in self.progress:
                seen = replace(seen, progress=self.progress[job_id])
            effects = progression.observe(tx, row, seen)
            if effects.ended:
                return effects, None
        elif row.held == "dependency" and row.array_of is None:
            effects.freed = progression.release(tx, row)
            if effects.freed:
                effects.look_at = progression.followers(tx, row)
        elif row.array_count is not None and row.array_of is None:
            effects = progression.gather(tx, row)
        elif row.phase in FINAL:
            effects.look_at = progression.followers(tx, row)
            effects.freed = True
        if effects.freed:
            self._view.touch(row.id, array=row.array_count is not None and row.array_of is None)
        return effects, self._stop_order(tx, row)

    def _stop_order(self, tx: Tx, row: Row[Any]) -> tuple[str, str, str, float] | None:
        """What to tell the engine when somebody asked the job's attempt to end; telling it twice does no harm."""
        if row.phase != Phase.STOPPING:
            return None
        attempt = progression.current_attempt(tx.conn, row)
        if attempt is None or attempt.stop_reason is None or attempt.ended_at is not None:
            return None
        grace = JobSpec.model_validate_json(row.spec).grace_period
        return f"{row.id}.{attempt.number}", attempt.run_dir, attempt.stop_reason, grace

    async def drain_node(self, name: object) -> None:
        told = await self.store.write(lambda tx: (self.fence(tx) and progression.drain(tx, str(name))) or [])
        for job_id in told:
            self.loop.enqueue("job", job_id)

    async def sync_nodes(self) -> None:
        """Make the fleet's table agree with what the engine offers now."""
        offers = self.engine.nodes()
        if offers == self._offers:
            return
        changed = await self.store.write(lambda tx: (self.fence(tx), inventory.sync(tx, self.engine.name, offers))[1])
        self._offers = offers
        if changed:
            self.loop.enqueue("schedule", "all")

    async def end_orphans(self) -> list[str]:
        """After a restore: end what runs and no row knows of as active. Returns the attempts' ids."""
        known = {f"{job.id}.{attempt.number}" for job, attempt in await self.store.read(_active)}
        ended = []
        for run_dir in await asyncio.to_thread(_run_dirs, self.jobs_dir):
            attempt_id = f"{run_dir.parent.name}.{run_dir.name}"
            if attempt_id in known:
                continue
            seen = await self.engine.adopt(attempt_id, str(run_dir))
            if seen.stage in (Stage.STARTING, Stage.RUNNING):
                await self.engine.stop(attempt_id, str(run_dir), reason=Reason.Cancelled, grace_s=5.0)
                ended.append(attempt_id)
        return ended

    async def _adopt_all(self) -> None:
        """After a start: ask the engine what became of every attempt that the rows call active, and go on from there."""
        rows = await self.store.read(_active)
        gate = asyncio.Semaphore(ADOPT_AT_ONCE)

        async def one(job: Row[Any], attempt: Row[Any]) -> None:
            async with gate:
                seen = await self.engine.adopt(f"{job.id}.{attempt.number}", attempt.run_dir)
                if seen.stage is Stage.ABSENT and attempt.started_at is None and attempt.stop_reason is None:
                    await self._submit(job, attempt._asdict())
                elif seen.stage is Stage.ABSENT and attempt.started_at is None:
                    # Told to the engine too: it leaves a record, so that a late start finds the attempt over.
                    await self.engine.stop(seen.attempt_id, attempt.run_dir, reason=attempt.stop_reason, grace_s=0)
                    self.observed(_vanished(seen, attempt, self.store.clock()))
                elif seen.stage is Stage.ABSENT:
                    self.observed(_vanished(seen, attempt, self.store.clock()))
                else:
                    self.observed(seen)

        await asyncio.gather(*(one(job, attempt) for job, attempt in rows))


def _run_dirs(jobs_dir: str) -> list[Path]:
    return [run for job in Path(jobs_dir).iterdir() if job.is_dir() for run in job.iterdir() if run.name.isdigit()]


def _vanished(seen: Observation, attempt: Row[Any], now: float) -> Observation:
    """An attempt of which nothing is left: stopped before it began, or its folder is gone. It is not run a second time."""
    if attempt.started_at is None:
        message = "stopped before it began"
        return replace(seen, stage=Stage.EXITED, ended_at=now, reason=attempt.stop_reason, message=message)
    message = "its run folder is gone, so how it ended cannot be known"
    return replace(seen, stage=Stage.LOST, ended_at=now, reason=Reason.SupervisorLost, message=message)


_WAKE = frozenset({Reason.CancelRequested, Reason.Cancelled})


def _active(conn: Connection) -> list[tuple[Row[Any], Row[Any]]]:
    found = conn.execute(select(attempts).where(attempts.c.phase.in_([p.value for p in ACTIVE]))).all()
    pairs = [(submit.by_id(conn, attempt.job_id), attempt) for attempt in found]
    return [(job, attempt) for job, attempt in pairs if job is not None]


def _held_back(conn: Connection) -> list[str]:
    """Jobs whose wait may have ended while nobody looked: dependencies, arrays, stops."""
    return list(
        conn.execute(
            select(jobs.c.id).where(
                jobs.c.phase.not_in([p.value for p in FINAL]),
                (jobs.c.held.in_(["dependency", "array"])) | (jobs.c.phase == Phase.STOPPING),
            )
        ).scalars()
    )


def _first_back_off(conn: Connection) -> float | None:
    return conn.execute(select(func.min(jobs.c.next_at)).where(jobs.c.phase == Phase.PENDING)).scalar()
