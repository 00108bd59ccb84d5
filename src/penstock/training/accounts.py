"""Rows, events and run folders -> accounts: of one job now, of a fleet over a period, and kept when an attempt ends.

Whatever is asked, the work is bounded: an attempt that has ended is read once, and its few numbers kept; one that runs is
read again only after a while, and of very many some are left for the next time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sqlalchemy.engine import Connection, Row

from penstock.base.errors import PenstockError
from penstock.base.quantities import format_time, parse_time
from penstock.base.reasons import Reason
from penstock.engines.several import Engines
from penstock.jobs import history as jobs_history
from penstock.jobs import queries, submit
from penstock.jobs.state import FINAL
from penstock.store import events
from penstock.store.store import Store
from penstock.training import history, kept, saves
from penstock.training import sketch as sketches
from penstock.training.goodput import Account, Life, Lives, Part, account
from penstock.training.kept import Summary
from penstock.training.losses import Facts, facts
from penstock.training.sketch import Sketch

log = logging.getLogger(__name__)
ATTEMPTS_READ = 50  # run folders of one job that are read at once: the newest
FRESH_S = 2.0  # how old what is shown of an attempt that runs may be; of one that is long to read, longer
FLEET_READ_S = 2.0  # what one look at the fleet may spend on reading
FLEET_ATTEMPTS = 20_000
FLEET_READ_AGAIN_S = 900.0  # of a job that runs; in between its last report carries it on
_CACHED = 2000
_SKETCHED = 10_000
_TURN_S = 0.02
_EVENTS = 1000  # of each reason, the newest
_TOLD = (Reason.AttemptStarted, Reason.Requeued, Reason.RankExited, Reason.RankRestarted, Reason.RankHung)


@dataclass(frozen=True, slots=True)
class Reading:
    """What an attempt's reports came to."""

    lives: tuple[Life, ...]
    told: Sequence[Mapping[str, Any]]
    taken: float | None = None  # when, of one that runs


@dataclass(frozen=True, slots=True)
class Known:
    """A job as it is accounted for."""

    job: Row[Any]
    attempts: Sequence[Mapping[str, Any]]
    readings: Mapping[int, Reading]
    account: Account
    facts: Facts
    until: float

    @property
    def running(self) -> int | None:
        last = self.attempts[-1] if self.attempts else None
        return last["number"] if last is not None and last["ended_at"] is None else None

    @property
    def told(self) -> list[Mapping[str, Any]]:
        return [word for number in sorted(self.readings) for word in self.readings[number].told]


@dataclass(frozen=True, slots=True)
class _Cached:
    at: float
    cost: float
    reading: Reading


class Accounts:
    """``reporting``: the last report of jobs that report just now, the reconciler's own."""

    def __init__(self, store: Store, engines: Engines, reporting: Mapping[str, Mapping[str, Any]]) -> None:
        self._store = store
        self._engines = engines
        self._reporting = reporting
        self._cache: OrderedDict[tuple[str, int], _Cached] = OrderedDict()
        self._gate = asyncio.Semaphore(2)
        self._sketches: OrderedDict[str, tuple[float, Sketch]] = OrderedDict()  # when it was read; newest used last
        self._unread: dict[str, None] = {}  # jobs that the background has still to read
        self._reader: asyncio.Task[None] | None = None

    async def job(self, row: Row[Any], fresh_s: float = FRESH_S) -> Known:
        """Of a job as it stands now. What cannot be read (its engine does not answer) counts as not reported."""
        found = await self._store.read(lambda conn: _rows(conn, row))
        readings: dict[int, Reading] = {}
        for n, attempt in enumerate(found.attempts):
            known = found.summaries.get(attempt["number"])
            if known is not None:
                lives = tuple(map(history.from_json, known.lives))
                readings[attempt["number"]] = Reading(lives, known.told)
            elif n >= len(found.attempts) - ATTEMPTS_READ:
                readings[attempt["number"]] = await self._reading(row.id, attempt, found.events, fresh_s)
            else:
                readings[attempt["number"]] = Reading(history.lives(attempt, found.events, ()), ())
        return _known(row, found, readings, self._store.clock())

    async def _reading(
        self, job_id: str, attempt: Mapping[str, Any], happened: Sequence[Mapping[str, Any]], fresh_s: float
    ) -> Reading:
        key, now = (job_id, attempt["number"]), time.monotonic()
        cached = self._cache.get(key)
        if cached is not None and now - cached.at < max(fresh_s, 20 * cached.cost) and attempt["ended_at"] is None:
            return cached.reading
        async with self._gate:
            taken = self._store.clock()
            points = await self._points(attempt)
            reading = await asyncio.to_thread(_read, attempt, happened, points)
            reading = replace(reading, taken=taken if attempt["ended_at"] is None else None)
        self._cache[key] = _Cached(time.monotonic(), time.monotonic() - now, reading)
        while len(self._cache) > _CACHED:
            self._cache.popitem(last=False)
        return reading

    async def _points(self, attempt: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        engine = self._engines.find(attempt["engine"])
        if engine is None:
            return ()
        try:
            return await engine.logs(attempt["run_dir"]).progress()
        except (PenstockError, OSError) as error:
            log.info("what %s.%s reported cannot be read: %s", attempt["job_id"], attempt["number"], error)
            return ()

    async def _job(self, job_id: str) -> Row[Any] | None:
        return await self._store.read(lambda conn: submit.by_id(conn, job_id))

    # -- kept

    async def keep(self, ended: Collection[tuple[str, int]]) -> int:
        """Write the summaries of attempts that have ended, of jobs that ever reported a step; how many jobs that were."""
        ids = {job_id for job_id, _ in ended}
        wanted = await self._store.read(lambda conn: jobs_history.reported(conn, ids))
        for job_id in wanted:
            row = await self._job(job_id)
            if row is not None:
                known = await self.job(row)
                if made := _summaries(known):
                    await self._store.write(partial(kept.write, summaries=made))
                for number in known.readings:
                    if number != known.running:
                        self._cache.pop((job_id, number), None)
        return len(wanted)

    # -- the fleet

    async def fleet(self, since: float, until: float, projects: Collection[str] | None) -> dict[str, Any]:
        """Device-hours by part over a period. What cannot be read within the time that one look may take is counted as left."""
        found = await self._store.read_long(lambda conn: jobs_history.ran(conn, since, projects, FLEET_ATTEMPTS))
        summaries = await self._store.read_long(lambda conn: kept.since(conn, since, projects, FLEET_ATTEMPTS))
        have = {(one.job_id, one.attempt): one for one in summaries}
        missing = [(r.job_id, r.number) for r in found if r.reports and r.ended_at is not None]
        missing = [key for key in missing if key not in have][:50]
        if missing and await self.keep(missing):  # they ended while no server was there
            summaries = await self._store.read_long(lambda conn: kept.since(conn, since, projects, FLEET_ATTEMPTS))
        sums, window = _Sums(), (history.ms(since), history.ms(until))
        cut = {one.job_id for one in summaries if one.began_at < since or one.ended_at > until}
        numbers = {r.job_id: r.number for r in found if r.ended_at is None and self._reports(r)}
        live = await self._live(numbers | dict.fromkeys(cut - numbers.keys()), window, sums)
        for one in summaries:
            if one.measured and one.job_id not in live and one.job_id not in cut:
                sums.add((one.project, one.job), one.device, one.weight, {Part(k): v for k, v in one.parts.items()})
        measured = {one.job_id for one in summaries if one.measured} | {i for i, known in live.items() if known}
        _add_unmeasured(sums, [r for r in found if r.job_id not in measured], (since, until), self._store.clock())
        return sums.to_json() | {"since": format_time(since), "until": format_time(until)}

    def _reports(self, row: Row[Any]) -> bool:
        return bool(row.reports) or row.job_id in self._reporting

    async def _live(self, wanted: Mapping[str, int | None], window: tuple[int, int], sums: _Sums) -> dict[str, bool]:
        """Add up jobs by the attempt of theirs that runs; whether each is measured. What was read once is carried on from its
        last report; of the others as many are read as there is time for, and the rest afterwards, for the next look.
        """
        found: dict[str, bool] = {}
        began, slept = time.monotonic(), time.monotonic()
        for job_id, number in wanted.items():
            if time.monotonic() - slept > _TURN_S:  # others have their turn
                await asyncio.sleep(0)
                slept = time.monotonic()
            sketch = self._sketch(job_id, number)
            parts = None if sketch is None else self._parts(job_id, sketch, window)
            if parts is None and time.monotonic() - began <= FLEET_READ_S:
                sketch = await self._read_anew(job_id)
                parts = None if sketch is None else self._parts(job_id, sketch, window)
            if sketch is None or parts is None:
                self._unread[job_id] = None
                sums.left_out += 1
                continue
            found[job_id] = sketch.measured
            for attempt, each in parts.items() if sketch.measured else ():
                device, weight = sketch.held[attempt]
                sums.add((sketch.project, sketch.name), device, weight, each)
        if self._unread and (self._reader is None or self._reader.done()):
            self._reader = asyncio.ensure_future(self._read_on())
        return found

    def _parts(self, job_id: str, sketch: Sketch, window: tuple[int, int]) -> dict[int, dict[Part, int]] | None:
        said = self._reporting.get(job_id) or {}
        newest = None
        if isinstance(said.get("step"), int) and said.get("at") is not None:
            newest = (said["step"], history.ms(parse_time(said["at"])))
        return sketches.parts(sketch, window, newest, history.ms(self._store.clock()))

    def _sketch(self, job_id: str, number: int | None) -> Sketch | None:
        """What is known of a job, if it is of the attempt that runs now; what is old is read again, later."""
        read_at, sketch = self._sketches.get(job_id, (0.0, None))
        if sketch is None or sketch.number != number:
            return None
        self._sketches.move_to_end(job_id)
        if number is not None and time.monotonic() - read_at > FLEET_READ_AGAIN_S:
            self._unread[job_id] = None
        return sketch

    async def _read_anew(self, job_id: str) -> Sketch | None:
        self._unread.pop(job_id, None)
        row = await self._job(job_id)
        if row is None:
            return None
        sketch = _sketched(await self.job(row))
        self._sketches[job_id] = (time.monotonic(), sketch)
        self._sketches.move_to_end(job_id)
        while len(self._sketches) > _SKETCHED:
            self._sketches.popitem(last=False)
        return sketch

    async def _read_on(self) -> None:
        """Read what a look has left, half of the time."""
        while self._unread:
            began = time.monotonic()
            try:
                await self._read_anew(next(iter(self._unread)))
            except PenstockError as error:
                log.info("a job's reports are not read yet: %s", error)
                return
            await asyncio.sleep(time.monotonic() - began)

    def forget(self, job_id: str) -> None:
        """Something happened to it that its last report does not tell."""
        self._sketches.pop(job_id, None)

    async def close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class _Rows:
    attempts: Sequence[Mapping[str, Any]]
    events: Sequence[Mapping[str, Any]]
    summaries: Mapping[int, Summary]


def _rows(conn: Connection, row: Row[Any]) -> _Rows:
    rows = queries.attempt_rows(conn, row.id)
    attempts = [each._asdict() | {"queued": each.run_dir.endswith(f".{each.engine}")} for each in rows]
    told = []
    restarted = any(each.restarts or each.run_dir.endswith(f".{each.engine}") for each in rows)
    for reason in _TOLD if restarted else (Reason.RankHung,):
        told += events.page(
            conn, project=row.project, name=row.name, subject_id=row.id, reason=reason, newest_first=True, limit=_EVENTS
        )
    happened = [{"at": e.at, "reason": str(e.reason), "data": e.data or {}} for e in sorted(told, key=lambda e: e.seq)]
    return _Rows(attempts, happened, kept.of_job(conn, row.id))


def _read(
    attempt: Mapping[str, Any], happened: Sequence[Mapping[str, Any]], points: Sequence[Mapping[str, Any]]
) -> Reading:
    return Reading(history.lives(attempt, happened, points), saves.told(points, attempt["number"]))


def _known(row: Row[Any], found: _Rows, readings: Mapping[int, Reading], now: float) -> Known:
    over = row.phase in FINAL
    taken = [each.taken for each in readings.values() if each.taken is not None]  # what came after was not looked at
    until = row.finished_at if over and row.finished_at is not None else max([row.created_at, *(taken or [now])])
    lives = tuple(life for number in sorted(readings) for life in readings[number].lives)
    made = account(Lives(history.ms(row.created_at), history.ms(until), over, lives))
    return Known(row, found.attempts, readings, made, facts(lives, history.ms(until)), until)


def _summaries(known: Known) -> list[Summary]:
    """Of its attempts that have ended: what the newest was does change what the ones before it have lost."""
    made = []
    for attempt in known.attempts:
        number = attempt["number"]
        if attempt["ended_at"] is None:
            continue
        gpus, cpus = jobs_history.held(attempt["groups"])
        reading = known.readings[number]
        made.append(
            Summary(
                known.job.id,
                number,
                known.job.project,
                known.job.name,
                known.job.user,
                attempt["admitted_at"],
                attempt["ended_at"],
                gpus,
                cpus,
                {part.value: length for part, length in known.account.parts(number).items() if length},
                known.account.measured,
                [history.to_json(life) for life in reading.lives],
                list(reading.told),
            )
        )
    return made


class _Sums:
    """Device-milliseconds by project, device and part, and by job."""

    def __init__(self) -> None:
        self.by: dict[tuple[str, str], dict[Part, float]] = {}
        self.jobs: dict[tuple[str, str, str], dict[Part, float]] = {}
        self.unmeasured: dict[str, float] = {"gpu": 0.0, "cpu": 0.0}
        self.unmeasured_attempts = 0
        self.left_out = 0

    def add(self, job: tuple[str, str], device: str, weight: float, parts: Mapping[Part, int]) -> None:
        for into in (self.by.setdefault((job[0], device), {}), self.jobs.setdefault((*job, device), {})):
            for part, length in parts.items():
                into[part] = into.get(part, 0.0) + length * weight

    def to_json(self) -> dict[str, Any]:
        totals: dict[str, dict[Part, float]] = {}
        for (_, device), parts in self.by.items():
            into = totals.setdefault(device, {})
            for part, length in parts.items():
                into[part] = into.get(part, 0.0) + length
        items = [{"project": project, **_hours(device, parts)} for (project, device), parts in sorted(self.by.items())]
        jobs = [{"project": p, "name": n, **_hours(device, parts)} for (p, n, device), parts in self.jobs.items()]
        jobs.sort(key=lambda job: -job["lost_hours"])
        return {
            "totals": [_hours(device, parts) for device, parts in sorted(totals.items(), reverse=True)],
            "items": items,
            "jobs": jobs[:50],
            "measured_jobs": len(self.jobs),
            "unmeasured": {"attempts": self.unmeasured_attempts}
            | {f"{device}_hours": round(hours, 6) for device, hours in self.unmeasured.items()},
            "left_out": self.left_out,
        }


def _hours(device: str, parts: Mapping[Part, float]) -> dict[str, Any]:
    """Waiting is told, and is no part of the hours: while it waits a job holds nothing."""
    hours = {part: length / 3_600_000 for part, length in parts.items() if length}
    held = sum(length for part, length in hours.items() if part is not Part.WAITING)
    steps = hours.get(Part.STEPS, 0.0)
    return {
        "device": device,
        "hours": round(held, 6),
        "goodput": steps / held if held else None,
        "lost_hours": round(held - steps, 6),
        "parts": {part.value: round(length, 6) for part, length in hours.items()},
    }


def _sketched(known: Known) -> Sketch:
    held = {attempt["number"]: _device(*jobs_history.held(attempt["groups"])) for attempt in known.attempts}
    number = known.running
    lives = [life for n in sorted(known.readings) for life in known.readings[n].lives]
    whose = (known.job.project, known.job.name)
    return sketches.sketched(whose, number, held, known.account, lives)


def _device(gpus: float, cpus: float) -> tuple[str, float]:
    return ("gpu", gpus) if gpus else ("cpu", cpus)


def _add_unmeasured(sums: _Sums, rows: Sequence[Row[Any]], period: tuple[float, float], now: float) -> None:
    for row in rows:
        end = min(row.ended_at if row.ended_at is not None else now, period[1])
        gpus, cpus = jobs_history.held(row.groups)
        sums.unmeasured["gpu" if gpus else "cpu"] += (
            max(0.0, end - max(row.started_at, period[0])) / 3600 * (gpus or cpus)
        )
        sums.unmeasured_attempts += 1
