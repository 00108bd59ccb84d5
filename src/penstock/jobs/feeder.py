"""Keeps a simulated fleet at work: submits made-up jobs of several people and projects, by the road that a user's take."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from sqlalchemy import select
from sqlalchemy.engine import Connection

from penstock.base.errors import PenstockError
from penstock.base.ids import new_id
from penstock.base.resource import Actor
from penstock.engines.simulated.shape import Fleet
from penstock.jobs import submit, synthetic
from penstock.jobs.room import Room
from penstock.jobs.spec import JobSpec
from penstock.jobs.state import FINAL
from penstock.jobs.tables import jobs
from penstock.scheduling import live
from penstock.store.events import EventRow
from penstock.store.store import Tx
from penstock.tenancy import accounts
from penstock.tenancy.state import User

log = logging.getLogger("penstock.feeder")
TICK_S = 1.0
AT_ONCE = 40  # jobs submitted in one write
KEPT = 2000  # finished jobs; older ones are deleted, as a person would do
SWEEP_TICKS = 60
LABELS = {"made-up": "yes"}
_MINE = jobs.c.labels == json.dumps(LABELS)
_FINAL = [phase.value for phase in FINAL]


@dataclass(slots=True)
class Feeder:
    """``leading``: whether this server decides. ``run`` goes on until it is cancelled."""

    room: Room
    fleet: Fleet
    load: float
    jobs_dir: str
    leading: Callable[[], bool]
    rng: Random
    began: float = 0.0
    _asked: dict[str, int] = field(default_factory=dict)  # GPUs of each of its jobs that has not ended
    _stirred: set[str] = field(default_factory=set)  # of them those that something happened to

    @property
    def units(self) -> int:
        """GPUs of the fleet that jobs can have whole; of one without any, its CPUs."""
        whole = self.fleet.nodes - self.fleet.cut_nodes
        return whole * self.fleet.gpus if self.fleet.gpus else self.fleet.nodes * 16

    async def run(self) -> None:
        store = self.room.store
        self.began = store.clock()
        stop = store.listen(self._heard)
        try:
            await store.write(self._settle)
            self._asked = await store.read(_unfinished)
            self._stirred = set(self._asked)
            fresh = not self._asked
            ticks = 0
            while True:
                if self.leading():
                    fresh = await self._tick(fresh=fresh)
                    if ticks % SWEEP_TICKS == 0:
                        await self._sweep()
                ticks += 1
                await asyncio.sleep(TICK_S)
        finally:
            stop()

    def _heard(self, events: list[EventRow]) -> None:
        self._stirred.update(event.subject_id for event in events if event.subject_id in self._asked)

    async def _tick(self, *, fresh: bool) -> bool:
        """Forget what has ended, submit what is missing; whether the fleet is still being filled for the first time."""
        store = self.room.store
        stirred, self._stirred = self._stirred, set()
        for id_ in await store.read(lambda conn: _ended(conn, sorted(stirred))):
            self._asked.pop(id_, None)
        missing = synthetic.wanted(self.load, self.units, store.clock(), self.began, self.fleet.speed)
        missing -= sum(self._asked.values())
        made: list[synthetic.Made] = []
        while missing > 0 and len(made) < AT_ONCE:
            made.append(synthetic.make(self.fleet.nodes - self.fleet.cut_nodes, self.fleet.gpus, self.rng, begun=fresh))
            missing -= made[-1].gpus
        if made:
            try:
                self._asked |= await store.write(lambda tx: self._submit(tx, made))
            except PenstockError as error:
                log.warning("a made-up job was refused: %s", error)
        return fresh and missing > 0

    def _submit(self, tx: Tx, made: list[synthetic.Made]) -> dict[str, int]:
        found = {}
        for one in made:
            name = f"{one.stem}-{new_id(tx.now, os.urandom(10))[-5:].lower()}"
            new = submit.NewJob(one.project, name, one.user, JobSpec.model_validate(one.spec), None, LABELS)
            actor = Actor(one.user, "", {one.project: "member"})
            found[str(self.room.create(tx, actor, new).id)] = one.gpus
        return found

    async def _sweep(self) -> None:
        def work(tx: Tx) -> list[str]:
            old = select(jobs).where(_MINE, jobs.c.array_of.is_(None), jobs.c.phase.in_(_FINAL))
            ids: list[str] = []
            for row in tx.conn.execute(old.order_by(jobs.c.seq.desc()).offset(KEPT).limit(200)).all():
                ids += submit.remove(tx, row, actor=row.user)
            return ids

        for id_ in await self.room.store.write(work):
            shutil.rmtree(os.path.join(self.jobs_dir, id_), ignore_errors=True)

    def _settle(self, tx: Tx) -> None:
        """People, projects and queues, where they are not there yet; whoever changed them since keeps what he made."""
        for project, (people, _) in synthetic.TEAMS.items():
            if not accounts.project_exists(tx.conn, project):
                accounts.add_project(tx, "system", project)
            for person in people:
                if accounts.actor_of(tx.conn, person) is None:
                    accounts.add_user(tx, "system", User(person, "", tx.now))
                    accounts.set_member(tx, "system", project, person, "member")
        if live.newest(tx.conn) is None:
            resource = "gpus" if self.fleet.gpus else "cpus"
            live.replace(tx, synthetic.queue_file(self.units, resource), actor="system")


def _unfinished(conn: Connection) -> dict[str, int]:
    """Made-up jobs of an earlier server, and what they ask for."""
    found: dict[str, int] = {}
    rows: Any = conn.execute(select(jobs).where(_MINE, jobs.c.array_of.is_(None), jobs.c.phase.not_in(_FINAL)))
    for row in rows:
        spec = JobSpec.model_validate_json(row.spec)
        gpus = spec.resources.gpus or (1 if spec.resources.milli else 8)
        found[row.id] = gpus * spec.nodes * ((spec.array and spec.array.max_parallel) or 1)
    return found


def _ended(conn: Connection, ids: list[str]) -> list[str]:
    """Of these, those that have ended, or are no more."""
    alive: set[str] = set()
    for start in range(0, len(ids), 500):
        some = select(jobs.c.id).where(jobs.c.id.in_(ids[start : start + 500]), jobs.c.phase.not_in(_FINAL))
        alive.update(conn.execute(some).scalars())
    return [id_ for id_ in ids if id_ not in alive]
