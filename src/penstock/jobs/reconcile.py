"""Jobs' part of the loop: scheduling cycles, telling the engine, taking in what it observes."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.engine import Connection, Row

from penstock.base.reasons import Reason
from penstock.engines.errors import Unreachable
from penstock.engines.several import Engines
from penstock.engines.spec import Engine, Launch, NodeOffer, Observation, Stage
from penstock.fleet import inventory
from penstock.jobs import admission, progression, queued, series, submit
from penstock.jobs.handover import AGAIN_S, Handover
from penstock.jobs.launch import Site, launch
from penstock.jobs.spec import JobSpec
from penstock.jobs.state import ACTIVE, FINAL, Phase
from penstock.jobs.tables import attempts, jobs
from penstock.jobs.view import Memory, View, queue_of
from penstock.reconcile.loop import Loop
from penstock.scheduling import live
from penstock.scheduling.made import AccountOptions, account_options
from penstock.store.events import EventRow
from penstock.store.store import Store, Tx

log = logging.getLogger("penstock.jobs")
ADOPT_AT_ONCE = 32
REPORTS_KEPT = 20  # over which the pace is taken
LOOK_AHEAD_S = 2.0  # between a job's arrival in line and its start estimate, at the most where that is quick
LOOK_AHEAD_SHARE = 0.02  # of the writer's time that estimates may take
STOP_AGAIN_S = 0.1  # while it is being handed over
HUNG_GRACE_S = 5.0  # at the most, of what hangs: who is stuck saves nothing any more
FOLD_S = 0.01  # a start is written this much later, so that a job that is over by then costs one write, not two
Fence = Callable[[Tx], int]  # raises when leadership is lost; answers the lease's epoch


@dataclass(slots=True)
class JobReconciler:
    """Wired in app.py. ``fence`` is asked inside every transaction, so that a server that lost its lease changes nothing."""

    store: Store
    engines: Engines
    loop: Loop
    fence: Fence
    jobs_dir: str
    site: Site
    progress: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # the last report, by job id
    on_progress: Callable[[str], None] = lambda _job_id: None
    on_start: Callable[[], None] = lambda: None  # rooms above begin their own part of the loop
    _reports: dict[str, deque[Mapping[str, Any]]] = field(default_factory=dict)
    _lines: dict[str, object] = field(default_factory=dict)  # what an engine said last of a job in its line
    _seen: dict[str, list[Observation]] = field(default_factory=dict)  # not yet taken in, by job id
    _folds: dict[str, asyncio.TimerHandle] = field(default_factory=dict)
    _memory: Memory = field(default_factory=Memory)
    _view: View = field(init=False)
    _look_ahead_s: float = LOOK_AHEAD_S
    _stop_listening: Callable[[], None] | None = None
    _running: dict[str, Engine] = field(default_factory=dict)  # engines that were started
    _offers: dict[str, Sequence[NodeOffer]] = field(default_factory=dict)  # as they were taken over last, by engine
    _clashes: dict[str, list[str]] = field(default_factory=dict)  # nodes left out, by engine, as was told last
    _handover: Handover = field(init=False)
    speed: float = 1.0  # of the own engine's time

    def __post_init__(self) -> None:
        self._memory.speed, self._memory.own = self.speed, self.engines.own.name
        self._memory.progress = self.progress
        self._handover = Handover(self.engines, self.observed, self.store.clock)
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
            "engine": self.take_over,
            "handover": self._handover.run,
        }
        self.loop.reopen()
        self._offers.clear()
        self.engines.on_change = lambda name: self.loop.enqueue("engine", name)
        self._stop_listening = self.store.listen(self._heard)
        await self.take_over(self.engines.own.name)
        for name in {*self.engines.names, *self._running} - {self.engines.own.name}:
            self.loop.enqueue("engine", name)  # beside it: a site may take its time
        for job_id in await self.store.read(_held_back):
            self.loop.enqueue("job", job_id)
        wait = await self.store.read(_first_back_off)
        if wait is not None:
            self.loop.enqueue("schedule", "all", max(wait - self.store.clock(), 0.01))
        self.loop.enqueue("schedule", "all")
        self.on_start()

    async def pause(self) -> None:
        """Decide nothing more, until ``start``; what runs goes on, and what is observed meanwhile is found again then."""
        if self._stop_listening is not None:
            self._stop_listening()
            self._stop_listening = None
        await self.loop.close()
        self._view.forget()
        self._seen.clear()
        self._lines.clear()
        self._handover.forget()

    async def close(self) -> None:
        await self.pause()
        while self._running:
            await self._running.popitem()[1].close()

    async def take_over(self, name: object) -> None:
        """An engine is there: start it, register its nodes, find what runs on it. Or it went: nothing is left of it here."""
        engine, known = self.engines.find(str(name)), self._running.get(str(name))
        if known is not None and known is not engine:
            del self._running[str(name)]
            await known.close()
        if engine is not None and str(name) not in self._running:
            await engine.start(self.observed)
            self._running[engine.name] = engine
        if engine is None:
            self._offers.clear()  # any other's next look takes the nodes of this one away
        self._offers.pop(str(name), None)
        await self.sync_nodes()
        if engine is None:
            await self._end_of(str(name))
        else:
            await self._adopt_all(engine)
        self._view.engines_changed = True
        self.loop.enqueue("schedule", "all")

    async def _end_of(self, name: str) -> None:
        """The engine was removed: how its attempts end cannot be known any more."""
        now = self.store.clock()
        for _, attempt in await self.store.read(lambda conn: _active(conn, name)):
            self.observed(_orphaned(attempt, now))

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
        if self._said_before(job_id, seen):
            return
        before = self._seen.get(job_id)
        if before is None:
            self._seen[job_id] = [seen]
        elif (both := folded(before[-1], seen)) is not None:
            before[-1] = both
        else:
            before.append(seen)
        fold = self._folds.pop(job_id, None)
        if fold is not None:
            fold.cancel()
        if seen.stage is Stage.RUNNING:
            self._folds[job_id] = asyncio.get_running_loop().call_later(FOLD_S, self._unfold, job_id)
        else:
            self.loop.enqueue("job", job_id)

    def _said_before(self, job_id: str, seen: Observation) -> bool:
        """Of one that waits in its engine's line, the same as the last time: most of what engines say."""
        if seen.stage is not Stage.QUEUED:
            self._lines.pop(job_id, None)
            return False
        estimate = None if seen.start_estimate is None else round(seen.start_estimate / queued.ESTIMATE_MOVED_S)
        said = (seen.attempt_id, seen.reason, seen.message, seen.help, seen.engine_job, seen.unknown_since, estimate)
        if self._lines.get(job_id) == said and job_id not in self._seen:
            return True
        self._lines[job_id] = said
        return False

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
                if event.data.get("held") == "dependency" or event.data.get("withdrawn"):
                    self.loop.enqueue("job", event.subject_id)
            elif event.kind == "Job" and event.reason in _WAKE:
                self.loop.enqueue("job", event.subject_id)
            elif event.kind == "Node":
                self.loop.enqueue("schedule", "all")
                if event.reason == Reason.Drained:
                    self.loop.enqueue("node", event.name)

    async def schedule(self, _key: object) -> None:
        """One cycle; then tell the engine of what was admitted, and have evicted attempts told to stop."""
        setting = admission.Setting(self.jobs_dir, self.engines.own.name, 0, self._memory, self.engines)
        done = await self._cycle(setting)
        for job_id in done.evicted:
            self.loop.enqueue("job", job_id)
        if done.again_at < math.inf:
            self.loop.enqueue("schedule", "all", max(done.again_at - self.store.clock(), 0.01))
        self.loop.enqueue("outlook", "all", self._look_ahead_s)
        accounts = await self.store.read(account_options) if done.handed_over else {}
        for job, attempt, queue in done.handed_over:
            self._hand_over(job, attempt, queue, accounts)
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

    def _hand_over(self, job: Row[Any], attempt: Mapping[str, Any], queue: str, accounts: AccountOptions) -> None:
        account = accounts.get((attempt["engine"], queue), {})
        told = self._told(job, attempt, queue, account)
        self._handover.put(attempt["engine"], told)
        self.loop.enqueue("handover", attempt["engine"])

    def _told(
        self, job: Row[Any], attempt: Mapping[str, Any], queue: str = "", account: Mapping[str, str] | None = None
    ) -> Launch:
        row = job._mapping  # noqa: SLF001 - SQLAlchemy's public name for it
        return launch(row, attempt, self._memory.spec(job), self.site, queue, account or {})

    async def _submit(self, job: Row[Any], attempt: Mapping[str, Any]) -> None:
        told = self._told(job, attempt)
        try:
            await self.engines.own.submit(told)
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
        if key in self._seen and self._seen[key][-1].reason == Reason.NodeLost:
            await self.sync_nodes()  # first the node is closed, so that nothing is placed there again
        seen = self._seen.pop(key, [])
        try:
            effects, stop = await self.store.write(lambda tx: self._apply(tx, key, seen))
        except BaseException:
            if seen:
                self._seen[key] = seen + self._seen.get(key, [])
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
        return await self._stop(*stop) if stop is not None else None

    def _apply(
        self, tx: Tx, job_id: str, seen: Sequence[Observation]
    ) -> tuple[progression.Effects, tuple[Row[Any], float] | None]:
        self.fence(tx)
        row = submit.by_id(tx.conn, job_id)
        effects = progression.Effects()
        if row is None:
            return effects, None
        if seen:
            for one in seen[:-1]:
                progression.observe(tx, row, one)
                row = submit.by_id(tx.conn, job_id) or row
            last = replace(seen[-1], progress=self.progress[job_id]) if job_id in self.progress else seen[-1]
            effects = progression.observe(tx, row, last)
            if effects.ended:
                return effects, None
            row = submit.by_id(tx.conn, row.id) or row  # what was seen may have asked it to end
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

    def _stop_order(self, tx: Tx, row: Row[Any]) -> tuple[Row[Any], float] | None:
        """The attempt that somebody asked to end, and its grace; telling its engine twice does no harm."""
        if row.phase != Phase.STOPPING:
            return None
        attempt = progression.current_attempt(tx.conn, row)
        if attempt is None or attempt.stop_reason is None or attempt.ended_at is not None:
            return None
        grace_s = JobSpec.model_validate_json(row.spec).grace_period
        return attempt, min(grace_s, HUNG_GRACE_S) if attempt.stop_reason == Reason.Hung else grace_s

    async def _stop(self, attempt: Row[Any], grace_s: float) -> float | None:
        """Tell the attempt's engine; in how many seconds to try again."""
        engine, id_ = self.engines.find(attempt.engine), _id(attempt)
        if engine is None:
            self.observed(_orphaned(attempt, self.store.clock()))
            return None
        if engine.schedules_itself and not self._handover.take_back(engine.name, id_):
            return STOP_AGAIN_S
        known = attempt.engine_job is not None or attempt.started_at is not None or not engine.schedules_itself
        try:
            seen = None if known else await engine.adopt(id_, attempt.run_dir)
            await engine.stop(id_, attempt.run_dir, reason=attempt.stop_reason, grace_s=grace_s)
        except Unreachable as error:
            log.info("%s cannot be stopped yet: %s", id_, error)
            return AGAIN_S
        if seen is not None and seen.stage is Stage.ABSENT:
            self.observed(_vanished(seen, attempt, self.store.clock()))
        return None

    async def drain_node(self, name: object) -> None:
        told = await self.store.write(lambda tx: (self.fence(tx) and progression.drain(tx, str(name))) or [])
        for job_id in told:
            self.loop.enqueue("job", job_id)

    async def sync_nodes(self) -> None:
        """Make the fleet's table agree with what the engines offer now."""
        for engine in [*self._running.values()]:
            offers = engine.nodes()
            before = self._offers.get(engine.name)
            if offers == before or (not offers and engine.unknown_since is not None):
                continue  # of a site that has not answered yet nothing is known
            if await self.store.write(partial(self._sync, engine=engine.name, offers=offers)):
                self.loop.enqueue("schedule", "all")
            self._offers[engine.name] = offers

    def _sync(self, tx: Tx, engine: str, offers: Sequence[NodeOffer]) -> list[str]:
        self.fence(tx)
        changed = inventory.sync(tx, engine, offers, self.engines.names)
        clashes = inventory.clashes(tx.conn, engine, offers) if len(self.engines.names) > 1 else []
        if clashes and clashes != self._clashes.get(engine):
            log.warning("%s", "; ".join(clashes))
            inventory.tell_of_clashes(tx, engine, clashes)
        self._clashes[engine] = clashes
        return changed

    async def end_orphans(self) -> list[str]:
        """After a restore: end what runs and no row knows of as active. Returns the attempts' ids."""
        known = {_id(attempt) for _, attempt in await self.store.read(_active)}
        ended = []
        for run_dir in await asyncio.to_thread(_run_dirs, self.jobs_dir):
            number, _, name = run_dir.name.partition(".")
            attempt_id, engine = f"{run_dir.parent.name}.{number}", self.engines.find(name)
            if attempt_id in known or engine is None:
                continue
            try:
                seen = await engine.adopt(attempt_id, str(run_dir))
                if seen.stage in (Stage.QUEUED, Stage.STARTING, Stage.RUNNING):
                    await engine.stop(attempt_id, str(run_dir), reason=Reason.Cancelled, grace_s=5.0)
                    ended.append(attempt_id)
            except Unreachable as error:
                log.warning("whether %s runs on %s cannot be known: %s", attempt_id, engine.name, error)
        return ended

    async def _adopt_all(self, engine: Engine) -> None:
        """After its start: ask an engine what became of every attempt that the rows call active, and go on from there."""
        rows = await self.store.read(lambda conn: _active(conn, engine.name))
        setup, accounts = await self.store.read(lambda conn: (live.current(conn), account_options(conn)))
        gate = asyncio.Semaphore(ADOPT_AT_ONCE)

        async def one(job: Row[Any], attempt: Row[Any]) -> None:
            async with gate:
                try:
                    seen = await engine.adopt(_id(attempt), attempt.run_dir)
                except Unreachable as error:
                    self.observed(_unknown(attempt, engine, error, self.store.clock()))
                    raise
                if seen.stage is Stage.ABSENT and attempt.started_at is None and attempt.stop_reason is None:
                    if engine.schedules_itself:
                        queue = queue_of(setup, self._memory.spec(job), job.project)
                        self._hand_over(job, attempt._asdict(), queue, accounts)
                    else:
                        await self._submit(job, attempt._asdict())
                elif seen.stage is Stage.ABSENT and attempt.started_at is None:
                    # Told to the engine too: it leaves a record, so that a late start finds the attempt over.
                    await engine.stop(seen.attempt_id, attempt.run_dir, reason=attempt.stop_reason, grace_s=0)
                    self.observed(_vanished(seen, attempt, self.store.clock()))
                elif seen.stage is Stage.ABSENT:
                    self.observed(_vanished(seen, attempt, self.store.clock()))
                else:
                    self.observed(seen)

        await asyncio.gather(*(one(job, attempt) for job, attempt in rows))


def _run_dirs(jobs_dir: str) -> list[Path]:
    """``<job id>/3`` of the server's own engine, ``<job id>/3.c1`` of engine c1."""
    found = (run for job in Path(jobs_dir).iterdir() if job.is_dir() for run in job.iterdir())
    return [run for run in found if run.name.partition(".")[0].isdigit()]


def _id(attempt: Row[Any]) -> str:
    return f"{attempt.job_id}.{attempt.number}"


def folded(before: Observation, seen: Observation) -> Observation | None:
    """Two observations of an attempt as one; None where each is a step of its own: it ran, and waits in a line again."""
    if before.attempt_id != seen.attempt_id:
        return seen
    ran = before.started_at is not None or before.ended_at is not None
    if before.stage is not seen.stage and Stage.QUEUED in (before.stage, seen.stage) and ran:
        return None
    if before.started_at is not None and (seen.started_at or 0) > before.started_at + progression.REQUEUED_S:
        return None
    return replace(
        seen,
        happened=before.happened + seen.happened,
        failures=before.failures + seen.failures,
        started_at=seen.started_at if seen.started_at is not None else before.started_at,
        ended_at=seen.ended_at if seen.ended_at is not None else before.ended_at,
        groups=seen.groups or before.groups,
        gpu_model=seen.gpu_model or before.gpu_model,
        engine_job=seen.engine_job or before.engine_job,
    )


def _unknown(attempt: Row[Any], engine: Engine, error: Unreachable, now: float) -> Observation:
    """Its engine does not answer: it is as it was last seen."""
    stage = Stage.QUEUED if attempt.started_at is None else Stage.RUNNING
    since = engine.unknown_since if engine.unknown_since is not None else now
    return Observation(_id(attempt), stage, now, message=str(error), unknown_since=since)


def _orphaned(attempt: Row[Any], now: float) -> Observation:
    """Its engine was removed."""
    words = f"engine {attempt.engine} was removed, so how it ended cannot be known"
    return Observation(_id(attempt), Stage.LOST, now, ended_at=now, reason=Reason.SupervisorLost, message=words)


def _vanished(seen: Observation, attempt: Row[Any], now: float) -> Observation:
    """An attempt of which nothing is left: stopped before it began, or its folder is gone. It is not run a second time."""
    if attempt.started_at is None:
        message = "stopped before it began"
        return replace(seen, stage=Stage.EXITED, ended_at=now, reason=attempt.stop_reason, message=message)
    message = "its run folder is gone, so how it ended cannot be known"
    return replace(seen, stage=Stage.LOST, ended_at=now, reason=Reason.SupervisorLost, message=message)


_WAKE = frozenset({Reason.CancelRequested, Reason.Cancelled})


def _active(conn: Connection, engine: str | None = None) -> list[tuple[Row[Any], Row[Any]]]:
    """Jobs with their attempts that run, or wait in an engine's line; ``engine``: of that one alone."""
    query = select(attempts).where(attempts.c.phase.in_([Phase.PENDING.value, *(p.value for p in ACTIVE)]))
    found = conn.execute(query if engine is None else query.where(attempts.c.engine == engine)).all()
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
