"""The room's routes: jobs made, read, changed, cancelled and explained. Streams are in streams.py, YAML in apply.py."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from penstock.base.errors import InvalidInput, Problem
from penstock.base.ids import check_name
from penstock.base.routes import Call, Endpoint
from penstock.jobs import apply, queries, series, streams, submit
from penstock.jobs.room import Room, homeless
from penstock.jobs.spec import JobSpec
from penstock.jobs.state import FINAL
from penstock.store import events, idempotency
from penstock.store.events import EventRow
from penstock.store.store import Tx
from penstock.tenancy.plan import visible

JOBS = "/api/v1/projects/{project}/jobs"
JOB = JOBS + "/{name}"
MAX_SPEC_BYTES = 4 << 20


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class CreateJob(_Model):
    name: str | None = Field(default=None, max_length=200)
    labels: dict[str, str] = Field(default_factory=dict, max_length=64)
    spec: JobSpec

    @field_validator("name")
    @classmethod
    def _name(cls, value: str | None) -> str | None:
        problem = check_name(value) if value is not None else None
        if problem is not None:
            raise ValueError(problem.message)
        return value


class ReplaceJob(_Model):
    spec: JobSpec
    generation: int | None = Field(default=None, ge=1)


class Why(_Model):
    reason: str = Field(default="", max_length=500)


class ListQuery(_Model):
    project: str | None = Field(default=None, max_length=100)
    phase: list[str] = Field(default_factory=list, max_length=16)
    q: str | None = Field(default=None, max_length=200)
    queue: str | None = Field(default=None, max_length=63)
    engine: str | None = Field(default=None, max_length=63)
    replicas: bool = True  # False: without the finished ones of services
    limit: int = Field(default=100, ge=1, le=500)
    cursor: int | None = Field(default=None, ge=0, lt=1 << 62)


class EventQuery(_Model):
    after: int | None = Field(default=None, ge=0, lt=1 << 62)
    limit: int = Field(default=100, ge=1, le=500)
    newest: bool = False


class SummaryQuery(_Model):
    project: str | None = Field(default=None, max_length=100)
    q: str | None = Field(default=None, max_length=200)
    queue: str | None = Field(default=None, max_length=63)


def endpoints(room: Room, jobs_dir: str) -> list[Endpoint]:
    """``jobs_dir`` holds the jobs' folders: a deleted job's goes with it."""
    routes = _Routes(room, jobs_dir)
    return [
        Endpoint(
            "POST",
            JOBS,
            "jobs.create",
            routes.create,
            "Submit a job",
            body=CreateJob,
            status=201,
            max_body=MAX_SPEC_BYTES,
        ),
        Endpoint("GET", "/api/v1/jobs", "jobs.read", routes.listing, "List jobs, newest first", query=ListQuery),
        Endpoint("GET", "/api/v1/jobs/summary", "jobs.read", routes.summary, "Count jobs by phase", query=SummaryQuery),
        Endpoint("GET", JOB, "jobs.read", routes.get, "Read a job"),
        Endpoint("PUT", JOB, "jobs.write", routes.replace, "Change a job", body=ReplaceJob, max_body=MAX_SPEC_BYTES),
        Endpoint("DELETE", JOB, "jobs.delete", routes.delete, "Delete a finished job", status=204),
        Endpoint("POST", JOB + "/cancel", "jobs.cancel", routes.cancel, "Cancel a job", body=Why),
        Endpoint("GET", JOB + "/attempts", "jobs.read", routes.attempts, "A job's attempts"),
        Endpoint("GET", JOB + "/events", "jobs.read", routes.events, "A job's events", query=EventQuery),
        Endpoint("GET", JOB + "/why", "jobs.read", routes.why, "Why a job is where it is"),
        Endpoint("GET", JOB + "/progress", "jobs.read", routes.progress, "What a job's ranks reported"),
        *streams.endpoints(room, JOB),
        *apply.endpoints(room),
    ]


class _Routes:
    def __init__(self, room: Room, jobs_dir: str) -> None:
        self.room = room
        self.jobs_dir = jobs_dir

    async def create(self, call: Call) -> dict[str, Any]:
        body: CreateJob = call.body
        actor, project = call.actor, call.path["project"]
        key = call.headers.get("idempotency-key")
        new = submit.NewJob(project, body.name, actor.user, body.spec, self.room.runs_as(actor), body.labels)

        def work(tx: Tx) -> dict[str, Any]:
            digest = ""
            if key is not None:
                digest = idempotency.digest(f"{project}\n{body.model_dump_json()}".encode())
                earlier = idempotency.recall(tx, key, actor.user, digest)
                if earlier is not None:
                    row = submit.by_id(tx.conn, earlier["id"])
                    return self.room.to_json(tx.conn, row) if row is not None else earlier
            made = self.room.create(tx, actor, new)
            if key is not None:
                idempotency.remember(tx, key, actor.user, digest, {"kind": "Job", "id": made.id, "name": made.name})
            return self.room.to_json(tx.conn, made)

        return await self.room.store.write(work)

    async def listing(self, call: Call) -> dict[str, Any]:
        query: ListQuery = call.query
        projects = visible(call.actor)
        if query.project is not None:
            projects = frozenset({query.project}) if projects is None else projects & {query.project}

        def work(conn: Any) -> dict[str, Any]:
            rows = queries.listing(
                conn,
                projects=projects,
                phases=query.phase,
                text=query.q,
                place=queries.Place(query.queue, query.engine, query.replicas),
                limit=query.limit + 1,
                before=query.cursor,
            )
            page = rows[: query.limit]
            playing, now = queries.in_play(conn, page), self.room.store.clock()
            items = [queries.job(row, self.room.progress.get(row.id), playing.get(row.id), now) for row in page]
            return {"items": items, "next_cursor": str(page[-1].seq) if len(rows) > query.limit else None}

        return await self.room.store.read(work)

    async def summary(self, call: Call) -> dict[str, Any]:
        query: SummaryQuery = call.query
        projects = visible(call.actor)
        wanted = projects
        if query.project is not None:
            wanted = frozenset({query.project}) if projects is None else projects & {query.project}

        def work(conn: Any) -> dict[str, Any]:
            known = queries.project_names(conn) if projects is None else sorted(projects)
            return {"phases": queries.counts(conn, wanted, query.q, query.queue), "projects": known}

        return await self.room.store.read(work)

    async def get(self, call: Call) -> dict[str, Any]:
        return await self.room.shown(call.path["project"], call.path["name"])

    async def replace(self, call: Call) -> dict[str, Any]:
        body: ReplaceJob = call.body
        actor, room = call.actor, self.room
        project, name = call.path["project"], call.path["name"]

        def work(tx: Tx) -> dict[str, Any]:
            row = submit.find(tx.conn, project, name)
            problems = room.check(tx.conn, actor, project, body.spec) + homeless(body.spec, "spec")
            refused = room.refuses(tx.conn, project) if row.phase in FINAL else None
            if refused is not None:
                problems.append(Problem("project", refused))
            if problems:
                raise InvalidInput("the job cannot run here", details=problems)
            submit.replace(tx, row, body.spec, actor=actor.user, generation=body.generation)
            return room.to_json(tx.conn, submit.find(tx.conn, project, name))

        return await room.store.write(work)

    async def delete(self, call: Call) -> None:
        project, name = call.path["project"], call.path["name"]

        def work(tx: Tx) -> list[str]:
            return submit.remove(tx, submit.find(tx.conn, project, name), actor=call.actor.user)

        for job_id in await self.room.store.write(work):
            with contextlib.suppress(OSError):
                shutil.rmtree(Path(self.jobs_dir) / job_id)

    async def cancel(self, call: Call) -> dict[str, Any]:
        project, name = call.path["project"], call.path["name"]

        def work(tx: Tx) -> dict[str, Any]:
            submit.cancel(tx, submit.find(tx.conn, project, name), actor=call.actor.user, why=call.body.reason)
            return self.room.to_json(tx.conn, submit.find(tx.conn, project, name))

        return await self.room.store.write(work)

    async def attempts(self, call: Call) -> dict[str, Any]:
        row = await self.room.row(call.path)
        rows = await self.room.store.read(lambda conn: queries.attempt_rows(conn, row.id))
        return {"items": [queries.attempt(r) for r in rows], "next_cursor": None}

    async def events(self, call: Call) -> dict[str, Any]:
        query: EventQuery = call.query
        row = await self.room.row(call.path)

        def work(conn: Any) -> list[EventRow]:
            return events.page(
                conn,
                after=query.after,
                limit=query.limit + 1,
                project=row.project,
                name=row.name,
                subject_id=row.id,
                newest_first=query.newest,
            )

        rows = await self.room.store.read(work)
        more = len(rows) > query.limit
        rows = rows[: query.limit]
        return {"items": [e.to_dict() for e in rows], "next_cursor": str(rows[-1].seq) if more else None}

    async def why(self, call: Call) -> dict[str, Any]:
        row = await self.room.row(call.path)
        now, memory = self.room.store.clock(), self.room.memory
        return await self.room.store.read(lambda conn: queries.why(conn, row, now, memory))

    async def progress(self, call: Call) -> dict[str, Any]:
        row = await self.room.row(call.path)
        rows = await self.room.store.read(lambda conn: queries.attempt_rows(conn, row.id))
        points = []
        for one in rows:
            engine = self.room.engines.find(one.engine)
            points += await engine.logs(one.run_dir).progress() if engine is not None else []
        return series.summarize(points)
