"""What the routes of this room work with, put together once in app.py."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Protocol

from pydantic import BaseModel
from sqlalchemy.engine import Connection, Row

from penstock.base.errors import InvalidInput, NotFound, Problem
from penstock.base.reasons import Reason
from penstock.base.resource import Actor
from penstock.engines.several import Engines
from penstock.jobs import queries, submit
from penstock.jobs.launch import needs
from penstock.jobs.spec import JobSpec
from penstock.jobs.view import Memory, engine_of, queue_of
from penstock.scheduling import live, windows
from penstock.scheduling.rights import may_use, too_urgent
from penstock.scheduling.spec import Setup, there_are
from penstock.store.events import EventRow
from penstock.store.store import Store, Tx

ENDED_KEPT = 10_000
Holds = Callable[[Connection, str, str], bool]
Refuses = Callable[[Connection, str], str | None]


class Beside(Protocol):
    """A kind of another room that stands in the same YAML as jobs."""

    def model(self) -> type[BaseModel]: ...
    def allowed(self, actor: Actor, documents: Sequence[Any]) -> None: ...  # raises NotFound
    def with_carried(self, documents: Sequence[Any], snapshots: Mapping[str, str]) -> list[Any]: ...
    async def look(self, actor: Actor, documents: Sequence[Any]) -> None: ...  # at what they name; raises InvalidInput
    def foresee(self, conn: Connection, actor: Actor, documents: Sequence[Any]) -> list[dict[str, Any]]: ...
    def carry_out(self, tx: Tx, actor: Actor, documents: Sequence[Any]) -> list[dict[str, Any]]: ...


def _never(_conn: Connection, _project: str) -> str | None:
    return None


@dataclass(slots=True)
class Room:
    """``holds(conn, user, sha256)`` says whether a user has uploaded a snapshot; ``unix_user`` is the fall-back for users
    that are mapped to none (None: jobs run as the server's own user).
    """

    store: Store
    engines: Engines
    progress: Mapping[str, Mapping[str, Any]]
    holds: Holds
    require_project: Callable[[Connection, str], None]
    unix_user: str | None = None
    as_root: bool = False
    refuses: Refuses = _never  # why a project may submit nothing more (its budget); None where it may
    memory: Memory = field(default_factory=Memory)
    beside: dict[str, Beside] = field(default_factory=dict)  # by kind
    changes: int = 0  # grows with every commit that was heard of
    ended_attempts: OrderedDict[tuple[str, int], None] = field(default_factory=OrderedDict)  # the last ENDED_KEPT
    _watchers: dict[str, set[asyncio.Event]] = field(default_factory=dict)

    def start(self) -> None:
        """Begin to wake watchers; call once the event loop runs."""
        self.store.listen(self._heard)

    def _heard(self, events: list[EventRow]) -> None:
        for event in events:
            if event.reason == Reason.AttemptEnded:
                self.ended_attempts[event.subject_id, int(event.data["attempt"])] = None
                if len(self.ended_attempts) > ENDED_KEPT:
                    self.ended_attempts.popitem(last=False)
            if self._watchers:
                self.wake(event.subject_id)
        self.changes += 1

    def wake(self, job_id: str) -> None:
        """A job's row or progress changed."""
        for event in self._watchers.get(job_id, ()):
            event.set()

    @asynccontextmanager
    async def watching(self, job_id: str) -> AsyncIterator[asyncio.Event]:
        """An asyncio.Event that is set at every change of the job."""
        event = asyncio.Event()
        self._watchers.setdefault(job_id, set()).add(event)
        try:
            yield event
        finally:
            self._watchers[job_id].discard(event)
            if not self._watchers[job_id]:
                del self._watchers[job_id]

    async def row(self, path: Mapping[str, str]) -> Row[Any]:
        return await self.store.read(lambda conn: submit.find(conn, path["project"], path["name"]))

    async def shown(self, project: str, name: str) -> dict[str, Any]:
        """The Job as JSON, with its array's counts and its last report."""
        return await self.store.read(lambda conn: self.to_json(conn, submit.find(conn, project, name)))

    def to_json(self, conn: Connection, row: Row[Any] | SimpleNamespace) -> dict[str, Any]:
        playing = queries.in_play(conn, [row]).get(row.id)
        body = queries.job(row, self.progress.get(row.id), playing, self.store.clock())
        counts = queries.array_counts(conn, row)
        if counts is not None:
            body["status"]["array"] = counts
        return body

    def runs_as(self, actor: Actor) -> str | None:
        """The Unix user of an actor's jobs; None when the server is not root and can be no one else."""
        return (actor.unix_user or self.unix_user) if self.as_root else None

    def check(self, conn: Connection, actor: Actor, project: str, spec: JobSpec, path: str = "spec") -> list[Problem]:
        """What only this server can say of a spec: the engine's refusals, a snapshot that is not the user's."""
        setup = live.current(conn)
        problems = self._engine_says(setup, spec, project, path)
        if spec.snapshot is not None and not self.holds(conn, actor.user, spec.snapshot):
            problems.append(Problem(f"{path}.snapshot", "no such snapshot was uploaded by you"))
        if spec.reservation is not None:
            refused = windows.refusal(conn, spec.reservation, project, actor.user, self.store.clock())
            if refused is not None:
                problems.append(Problem(f"{path}.reservation", refused))
        queue = queue_of(setup, spec, project)
        for refused_by in (may_use(setup, queue, project), too_urgent(setup, queue, spec.priority)):
            if refused_by is not None:
                problems.append(Problem(f"{path}.{refused_by.path}", refused_by.message))
        problems += undefined(setup, spec, path)
        if spec.workdir is not None and spec.snapshot is None and ".." in spec.workdir.split("/"):
            problems.append(Problem(f"{path}.workdir", "give a path without '..'"))
        try:
            self.require_project(conn, project)
        except NotFound as error:
            problems.append(Problem("project", error.message))
        return problems

    def _engine_says(self, setup: Setup, spec: JobSpec, project: str, path: str) -> list[Problem]:
        """What is wrong with a spec on the engine that it is for."""
        name = engine_of(setup, spec, project)
        engine = self.engines.find(name)
        if engine is None:
            words = f"there is no engine {name!r}{there_are(self.engines.names)}"
            if spec.engine is not None:
                return [Problem(f"{path}.engine", words)]
            return [Problem(f"{path}.queue", f"queue {queue_of(setup, spec, project)!r} is of another engine: {words}")]
        found = [Problem(f"{path}.{p.path}" if p.path else path, p.message) for p in engine.validate(needs(spec))]
        if engine is self.engines.own:
            if spec.engine_options:
                found.append(Problem(f"{path}.engine_options", f"the {engine.name} engine takes none"))
            return found
        words = f"is of what this server places itself, and {engine.name} places its jobs"
        asked = {
            "placement": spec.placement is not None and spec.placement.required,
            "flavors": bool(spec.flavors),
            "reservation": spec.reservation is not None,
        }
        return found + [Problem(f"{path}.{field}", words) for field, there in asked.items() if there]

    def create(self, tx: Tx, actor: Actor, new: submit.NewJob) -> SimpleNamespace:
        """Check and insert; the new row. Raises InvalidInput with all that is wrong, Conflict."""
        problems = self.check(tx.conn, actor, new.project, new.spec) + homeless(new.spec, "spec")
        refused = self.refuses(tx.conn, new.project)
        if refused is not None:
            problems.append(Problem("project", refused))
        if problems:
            raise InvalidInput("the job cannot run here", details=problems)
        return submit.create(tx, new)


def undefined(setup: Setup, spec: JobSpec, path: str) -> list[Problem]:
    """Flavors that the queue file does not have. What nodes may yet bring is no error: models, sizes, nodes' names."""
    flavors = {*setup.flavors, "default"}  # of which a node is that no flavor matches
    return [
        Problem(f"{path}.flavors[{n}]", f"there is no flavor {name!r}{there_are(flavors)}")
        for n, name in enumerate(spec.flavors)
        if name not in flavors
    ]


def homeless(spec: JobSpec, path: str) -> list[Problem]:
    """A relative work folder means something only to whoever sends it along."""
    if spec.workdir is None or spec.workdir.startswith("/") or spec.snapshot is not None:
        return []
    return [Problem(f"{path}.workdir", f"{spec.workdir!r} was not carried along: give an absolute path")]
