"""``penstock apply``: YAML documents -> what would be, or was, done with each; all of them or none."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.engine import Connection, Row

from penstock.base.errors import InvalidInput, NotFound, Problem
from penstock.base.reasons import Reason
from penstock.base.resource import Actor
from penstock.base.routes import Call, Endpoint
from penstock.jobs import admission, submit, view
from penstock.jobs.room import Beside, Room, homeless
from penstock.jobs.spec import JobDocument, JobSpec
from penstock.jobs.state import FINAL
from penstock.jobs.yaml import MAX_BYTES, parse
from penstock.scheduling import live, never
from penstock.store.store import Tx
from penstock.tenancy.plan import decide

DEFAULT_PROJECT = "default"
NEW = "new"  # the id, in a forecast, of what is not there yet
RUNS_AGAIN = "it had ended: with another spec it runs again, and its earlier attempts stay readable"


class ApplyQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")
    dry_run: bool = False
    project: str = Field(default=DEFAULT_PROJECT, max_length=100)


def endpoints(room: Room) -> list[Endpoint]:
    async def apply(call: Call) -> dict[str, Any]:
        query: ApplyQuery = call.query
        text = await _text(call)
        mine, foreign = parse(text, {kind: one.model for kind, one in room.beside.items()})
        documents = _in_order([_placed(d, query.project) for d in mine])
        snapshots = _snapshots(call.headers.get("snapshots"))
        documents = [_with_snapshot(d, snapshots) for d in documents]
        _allowed(call.actor, documents)
        others = _by_room(room, call.actor, [_placed(d, query.project) for d in foreign], snapshots)
        for one, its in others:
            await one.look(call.actor, its)

        def foresee(conn: Connection) -> list[dict[str, Any]]:
            items = _foresee(room, conn, call.actor, documents)
            return [*items, *(item for one, its in others for item in one.foresee(conn, call.actor, its))]

        def carry_out(tx: Tx) -> list[dict[str, Any]]:
            items = _carry_out(room, tx, call.actor, documents)
            return [*items, *(item for one, its in others for item in one.carry_out(tx, call.actor, its))]

        items = await (room.store.read(foresee) if query.dry_run else room.store.write(carry_out))
        return {"dry_run": query.dry_run, "items": items}

    return [
        Endpoint(
            "POST",
            "/api/v1/apply",
            "jobs.apply",
            apply,
            "Create or change the jobs and services of a YAML text",
            query=ApplyQuery,
            takes_bytes=True,
            max_body=4 * MAX_BYTES,
        )
    ]


def _placed(document: Any, project: str) -> Any:
    return document if document.project else document.model_copy(update={"project": project})


def _by_room(
    room: Room, actor: Actor, documents: list[Any], snapshots: dict[str, str]
) -> list[tuple[Beside, list[Any]]]:
    """Documents of other rooms' kinds, each with its room. Raises NotFound for a project that is not the actor's."""
    found = []
    for kind, one in room.beside.items():
        its = [document for document in documents if document.kind == kind]
        if its:
            one.allowed(actor, its)
            found.append((one, one.with_carried(its, snapshots)))
    return found


async def _text(call: Call) -> str:
    chunks = [chunk async for chunk in call.raw] if call.raw is not None else []
    try:
        return b"".join(chunks).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput("this is not text in UTF-8", details=[Problem("", f"byte {error.start} is not")]) from error


def _snapshots(header: str | None) -> dict[str, str]:
    if not header:
        return {}
    try:
        found = json.loads(header)
        return {str(k): str(v) for k, v in found.items()}
    except (ValueError, AttributeError):
        raise InvalidInput('the Snapshots header must be JSON: {"<workdir>": "<sha256>"}') from None


def _with_snapshot(document: JobDocument, snapshots: dict[str, str]) -> JobDocument:
    """``""`` in the header says that the work folder is empty: then there is none to carry."""
    found = snapshots.get(document.spec.workdir or "")
    if found is None or document.spec.snapshot is not None:
        return document
    carried = {"snapshot": found} if found else {"workdir": None}
    spec = JobSpec.model_validate(document.spec.model_dump(exclude_defaults=True) | carried)
    return document.model_copy(update={"spec": spec})


def _in_order(documents: list[JobDocument]) -> list[JobDocument]:
    """Those that others of the same text depend on come first. Raises InvalidInput for a circle."""
    names = {(d.project, d.name): d for d in documents}
    ordered: list[JobDocument] = []
    state: dict[tuple[str | None, str], int] = {}

    def visit(document: JobDocument, trail: tuple[str, ...]) -> None:
        key = (document.project, document.name)
        if state.get(key) == 2:
            return
        if state.get(key) == 1:
            circle = " -> ".join([*trail, document.name])
            raise InvalidInput("jobs depend on each other in a circle", details=[Problem("spec.depends_on", circle)])
        state[key] = 1
        for need in document.spec.depends_on:
            other = names.get((document.project, need.job))
            if other is not None:
                visit(other, (*trail, document.name))
        state[key] = 2
        ordered.append(document)

    for document in documents:
        visit(document, ())
    return ordered


def _allowed(actor: Actor, documents: list[JobDocument]) -> None:
    for document in documents:
        if not decide(actor, "jobs.create", document.project):
            raise NotFound(f"there is no project {document.project!r} in which you may submit jobs")


def _carry_out(room: Room, tx: Tx, actor: Actor, documents: list[JobDocument]) -> list[dict[str, Any]]:
    problems = [p for d in documents for p in _problems(room, tx.conn, actor, d, documents)]
    problems += [p for d in documents for p in homeless(d.spec, f"{d.name}: spec")]
    if problems:
        raise InvalidInput("nothing was applied", details=problems)
    items = []
    for document in documents:
        project = document.project or DEFAULT_PROJECT
        row = _existing(tx.conn, project, document.name)
        if row is None:
            new = submit.NewJob(project, document.name, actor.user, document.spec, room.runs_as(actor), document.labels)
            submit.create(tx, new)
            action, changed = "create", []
        else:
            changed = submit.changes(JobSpec.model_validate_json(row.spec), document.spec)
            action = submit.replace(tx, row, document.spec, actor=actor.user)
        after = submit.find(tx.conn, project, document.name)
        lines = [RUNS_AGAIN] if row is not None and changed and row.phase in FINAL else []
        items.append(_item(document, action, changed, lines, room.to_json(tx.conn, after)))
    return items


def _foresee(room: Room, conn: Connection, actor: Actor, documents: list[JobDocument]) -> list[dict[str, Any]]:
    """What would happen now: nothing is written, and the very planner that admits says where each would run."""
    problems = [p for d in documents for p in _problems(room, conn, actor, d, documents)]
    if problems:
        raise InvalidInput("nothing would be applied", details=problems)
    items = []
    for document in documents:
        project = document.project or DEFAULT_PROJECT
        row = _existing(conn, project, document.name)
        changed: list[str] = []
        action = "create"
        if row is not None:
            changed = submit.changes(JobSpec.model_validate_json(row.spec), document.spec)
            action = "update" if changed else "unchanged"
            refused = submit.refusal(row, changed) if changed else None
            if refused is not None:
                items.append(_item(document, "conflict", changed, [refused], None))
                continue
        lines = _forecast(room, conn, document) if action != "unchanged" else []
        if row is not None and changed and row.phase in FINAL:
            lines.insert(0, RUNS_AGAIN)
        items.append(_item(document, action, changed, lines, None))
    return items


def _forecast(room: Room, conn: Connection, document: JobDocument) -> list[str]:
    spec, now = document.spec, room.store.clock()
    tasks = f" ({spec.array.count} tasks)" if spec.array else ""
    head = (
        f"run {' '.join(spec.command)[:120]}{tasks} with {spec.effective_launcher()}, {spec.nodes} x {spec.procs} ranks"
    )
    if spec.depends_on:
        return [head, "wait for " + ", ".join(d.job for d in spec.depends_on)]
    name = view.engine_of(live.current(conn), spec, document.project or DEFAULT_PROJECT)
    if room.engines.find(name) is not room.engines.own:
        return [head, f"hand over to engine {name}, which says when and where"]
    seen, scheduler = view.fresh(conn, now, room.memory)
    ask = view.to_workload(seen.setup, spec, document.project or DEFAULT_PROJECT, "", room.memory.speed)
    last = max((row.seq for row in seen.rows.values()), default=0) + 1
    scheduler.submit(replace(ask, id=NEW, name=document.name, queued_at=now, seq=last))
    decision = scheduler.plan(now)
    mine = next((a for a in decision.admit if a.id == NEW), None)
    notes = [f"note: {one}" for one in never.unknown(scheduler.pool, ask)]
    if mine is not None:
        return [head, f"admit at once {admission.where(mine)}", *notes]
    wait = scheduler.why(NEW, now)
    never_here = wait.reason is Reason.Unschedulable and not scheduler.pool.could_place(ask)
    return [
        head,
        f"{wait.reason}: {'could not start on the fleet as it is: ' if never_here else ''}{wait.message}",
        *notes,
        *(f"evict {_named(seen, e.id)}: {e.message}" for e in decision.evict),
    ]


def _named(seen: view.View, job_id: str) -> str:
    holding = seen.scheduler.held.get(job_id) if seen.scheduler is not None else None
    return holding.held.workload.name if holding is not None else job_id


def _existing(conn: Connection, project: str, name: str) -> Any | None:
    try:
        return submit.find(conn, project, name)
    except NotFound:
        return None


def _problems(
    room: Room, conn: Connection, actor: Actor, document: JobDocument, together: list[JobDocument]
) -> list[Problem]:
    project = document.project or DEFAULT_PROJECT
    found = room.check(conn, actor, project, document.spec, f"{document.name}: spec")
    beside = {d.name for d in together if (d.project or DEFAULT_PROJECT) == project}
    for index, need in enumerate(document.spec.depends_on):
        if need.job not in beside and _existing(conn, project, need.job) is None:
            found.append(
                Problem(
                    f"{document.name}: spec.depends_on[{index}].job", f"there is no job {need.job!r} in {project!r}"
                )
            )
    row = _existing(conn, project, document.name)
    refused = room.refuses(conn, project) if row is None or _again(row, document) else None
    return [*found, Problem(f"{document.name}: project", refused)] if refused is not None else found


def _again(row: Row[Any], document: JobDocument) -> bool:
    """Whether a finished job would run once more."""
    return row.phase in FINAL and bool(submit.changes(JobSpec.model_validate_json(row.spec), document.spec))


def _item(
    document: JobDocument, action: str, changed: list[str], lines: list[str], resource: dict[str, Any] | None
) -> dict[str, Any]:
    return {
        "kind": "Job",
        "project": document.project,
        "name": document.name,
        "action": action,
        "changes": changed,
        "workdir": document.spec.workdir if document.spec.snapshot is None else None,
        "plan": lines,
        "resource": resource,
    }
