"""GPUs that jobs hold and that do nothing: samples come in, what follows is written to the attempt and told.

Tracks are kept in memory, of the GPUs that running attempts hold and no others: a restart begins the count anew. What was
already told is in the attempt's row, and holds until a sample says otherwise, or none comes for ``Rule.gap_s``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.engine import Connection

from penstock.base.errors import EngineFailure, Unavailable
from penstock.base.quantities import format_duration
from penstock.base.reasons import Reason
from penstock.base.routes import Call, Endpoint
from penstock.engines.several import Engines
from penstock.engines.spec import Engine, GpuSample
from penstock.jobs import submit
from penstock.jobs.queries import gpu_words
from penstock.jobs.state import ACTIVE
from penstock.jobs.tables import attempts, jobs
from penstock.jobs.view import Memory, queue_of, told_idle
from penstock.scheduling import live
from penstock.scheduling.devices import part
from penstock.store.store import Store, Tx
from penstock.telemetry.state import Key, Track, advance, idle_gpus
from penstock.tenancy.plan import decide

log = logging.getLogger("penstock.gpus")
STALE_S = 15.0
_COLUMNS: tuple[Any, ...] = (
    attempts.c.job_id, attempts.c.number, attempts.c.groups, attempts.c.gpu_idle, attempts.c.admitted_at,
    attempts.c.started_at, jobs.c.project, jobs.c.name, jobs.c.user, jobs.c.spec, jobs.c.generation, jobs.c.id,
)  # fmt: skip
_RUNS = attempts.c.phase.in_([phase.value for phase in ACTIVE]) & attempts.c.groups.like('%"gpus": [{%')
_HOLDING = select(*_COLUMNS).join(jobs, jobs.c.id == attempts.c.job_id).where(_RUNS)
_SET = attempts.update()


@dataclass(frozen=True, slots=True)
class Holder:
    """A running attempt, the models of the GPUs that it holds, and which of them were called idle."""

    job_id: str
    attempt: int
    project: str
    name: str
    user: str
    queue: str
    patience_s: float | None  # its queue's
    since: float
    gpus: Mapping[Key, tuple[str, float]]  # its model, and how much of it
    told: Mapping[Key, float]


@dataclass(slots=True)
class GpuWatch:
    """Wired in app.py; one at a time looks: the server that leads. ``after_s``: when idleness is told of."""

    store: Store
    engines: Engines
    fence: Callable[[Tx], int]
    after_s: float
    wake: Callable[[], None]  # a scheduling cycle is due
    tracks: dict[Key, Track] = field(default_factory=dict)
    holders: Sequence[Holder] = ()
    _projects: Mapping[Key, set[str]] = field(default_factory=dict)  # whose jobs hold a GPU: several share one
    _memory: Memory = field(default_factory=Memory)
    _read_at: float = float("-inf")

    async def look(self) -> None:
        """Take the engines' samples, and tell what changed."""
        samples = [sample for engine in self.engines for sample in await _samples(engine)]
        await self._refresh()
        self._take(samples)
        now = self.store.clock()
        changed = [(one, idle) for one in self.holders if (idle := self._idle(one, now)) != dict(one.told)]
        if changed:
            await self.store.write(lambda tx: self._tell_all(tx, changed))
            self.wake()
            await self._refresh()

    async def offer(self, samples: Sequence[GpuSample], may: Callable[[str], bool]) -> int:
        """Take samples from outside, of GPUs that jobs of projects hold in which the sender ``may``; how many were."""
        if self.store.clock() - self._read_at > STALE_S:
            await self._refresh()
        known = [each for each in samples if any(map(may, self._projects.get((each.node, each.gpu), ())))]
        self._take(known)
        return len(known)

    async def _refresh(self) -> None:
        holders = await self.store.read_long(self._holders)
        now = self._read_at = self.store.clock()
        projects: dict[Key, set[str]] = {}
        for one in holders:
            for gpu in one.gpus:
                projects.setdefault(gpu, set()).add(one.project)
            for gpu, since in one.told.items():
                self.tracks.setdefault(gpu, Track(now, since))  # told before this server was: until it is heard of
        for gpu in self.tracks.keys() - projects.keys():
            del self.tracks[gpu]
        self.holders, self._projects = holders, projects

    def _holders(self, conn: Connection) -> list[Holder]:
        setup = live.current(conn)
        found = []
        for row in conn.execute(_HOLDING).all():
            queue = queue_of(setup, self._memory.spec(row), row.project)
            known = setup.queues.get(queue)
            gpus = {
                (group["node"], gpu["id"]): (str(gpu.get("model") or "unknown"), _part(gpu))
                for group in json.loads(row.groups)
                for gpu in group["gpus"]
            }
            one = Holder(
                row.job_id,
                row.number,
                row.project,
                row.name,
                row.user,
                queue,
                known.reclaim_after_s if known is not None else None,
                row.admitted_at if row.started_at is None else row.started_at,
                gpus,
                told_idle(row.gpu_idle),
            )
            found.append(one)
        return found

    def _take(self, samples: Iterable[GpuSample]) -> None:
        now = self.store.clock()
        for each in samples:
            key = (each.node, each.gpu)
            if key in self._projects:
                self.tracks[key] = advance(self.tracks.get(key), min(each.at, now), each.utilization)

    def _idle(self, one: Holder, now: float) -> dict[Key, float]:
        after = self.after_s if one.patience_s is None else min(self.after_s, one.patience_s)
        return idle_gpus(one.gpus, self.tracks, one.told, held_since=one.since, after_s=after, now=now)

    def _tell_all(self, tx: Tx, changed: Iterable[tuple[Holder, dict[Key, float]]]) -> None:
        self.fence(tx)
        for one, idle in changed:
            self._tell(tx, one, idle)

    def _tell(self, tx: Tx, one: Holder, idle: Mapping[Key, float]) -> None:
        """Write and say what began and what ended; nothing of an attempt that is over by now."""
        mine = (attempts.c.job_id == one.job_id) & (attempts.c.number == one.attempt) & attempts.c.ended_at.is_(None)
        stored = json.dumps([[*gpu, since] for gpu, since in idle.items()]) if idle else None
        if tx.conn.execute(_SET.where(mine).values(gpu_idle=stored)).rowcount == 0:
            return
        row = submit.by_id(tx.conn, one.job_id)
        if row is None:
            return
        ended = {gpu: self._heard(gpu, tx.now) for gpu in one.told.keys() - idle.keys()}
        began = {gpu: idle[gpu] for gpu in idle.keys() - one.told.keys()}
        for reason, gpus in ((Reason.GpuIdleEnded, ended), (Reason.GpuIdle, began)):
            if gpus:
                said = _words(reason, one, gpus, tx.now)
                tx.emit(submit.ref(row), reason, said, actor="system", data=_data(one, gpus))

    def _heard(self, gpu: Key, now: float) -> float:
        """When a GPU's idleness ended: with the sample that said so, or the last before it fell silent."""
        track = self.tracks.get(gpu)
        return now if track is None else track.last_at


async def _samples(engine: Engine) -> Sequence[GpuSample]:
    """None of an engine that does not answer: the others' count all the same."""
    try:
        return await engine.gpu_samples()
    except EngineFailure as error:
        log.warning("engine %s tells of no GPUs: %s", engine.name, error)
        return ()


def _words(reason: Reason, one: Holder, gpus: Mapping[Key, float], now: float) -> str:
    if reason is Reason.GpuIdle:
        return f"{gpu_words(len(gpus), len(one.gpus))} done nothing for {format_duration(now - min(gpus.values()))}"
    return f"{gpu_words(len(gpus), len(one.gpus), 'are' if len(gpus) != 1 else 'is')} no longer known to be idle"


def _part(gpu: Mapping[str, Any]) -> float:
    return part(str(gpu.get("model") or ""), gpu.get("milli") or 0, gpu.get("mig") or "")


def _data(one: Holder, gpus: Mapping[Key, float]) -> dict[str, Any]:
    return {
        "job_id": one.job_id,
        "attempt": one.attempt,
        "user": one.user,
        "queue": one.queue,
        "gpus": [
            {"node": node, "id": gpu, "model": one.gpus[node, gpu][0], "part": one.gpus[node, gpu][1], "at": at}
            for (node, gpu), at in sorted(gpus.items())
        ],
    }


# -- over HTTP


class OneSample(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    node: str = Field(max_length=253)
    gpu: str = Field(
        max_length=200, description="as `penstock get nodes -o json` has it: what CUDA_VISIBLE_DEVICES takes"
    )
    utilization: float = Field(ge=0, le=100, allow_inf_nan=False, description="percent")
    at: float | None = Field(default=None, ge=0, allow_inf_nan=False, description="epoch seconds; default: now")


class Samples(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    samples: list[OneSample] = Field(max_length=10_000)


class Taken(BaseModel):
    taken: int
    ignored: int  # of GPUs that no running job of the sender's projects holds


def endpoints(watch: GpuWatch, leading: Callable[[], bool]) -> Sequence[Endpoint]:
    async def take(call: Call) -> dict[str, int]:
        if not leading():
            raise Unavailable("this server does not lead", hint="Send samples to the server that does, or try again.")
        now, body = watch.store.clock(), call.body
        samples = [GpuSample(s.node, s.gpu, s.utilization, now if s.at is None else s.at) for s in body.samples]
        taken = await watch.offer(samples, lambda project: decide(call.actor, "gpu_samples.write", project))
        return {"taken": taken, "ignored": len(samples) - taken}

    return (
        Endpoint(
            "POST",
            "/api/v1/gpu-samples",
            "gpu_samples.write",
            take,
            "How busy GPUs are, from a job's own worker or an exporter",
            body=Samples,
            answer=Taken,
        ),
    )
