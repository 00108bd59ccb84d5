"""Jobs made, changed, cancelled and deleted: each inside one transaction, each an event."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from sqlalchemy import bindparam, delete, func, select
from sqlalchemy.engine import Connection, Row

from penstock.base.errors import Conflict, InvalidInput, NotFound, Problem
from penstock.base.ids import new_id
from penstock.base.reasons import Reason
from penstock.base.resource import Ref
from penstock.jobs.spec import JobSpec
from penstock.jobs.state import ACTIVE, FINAL, Phase, may_follow
from penstock.jobs.tables import attempts, dependencies, jobs
from penstock.store.store import Tx

_BY_NAME = select(jobs).where(jobs.c.project == bindparam("project"), jobs.c.name == bindparam("name"))
_BY_ID = select(jobs).where(jobs.c.id == bindparam("id"))
# Statements are made once: building one costs more than running it. Which columns an update sets follows from its values.
_SET = jobs.update().where(jobs.c.id == bindparam("b_id"))
_INSERT = jobs.insert()
_OURS = frozenset(
    {"max_restarts", "crash_loop", "grace_period", "hang_limit", "on_hang", "on_straggler"}
)  # an engine was not told of them, or is when it is to stop
_MUTABLE = (
    "time_limit",
    "max_restarts",
    "crash_loop",
    "priority",
    "grace_period",
    "idle_timeout",
    "hang_limit",
    "on_hang",
    "on_straggler",
)


@dataclass(frozen=True, slots=True)
class NewJob:
    project: str
    name: str | None
    user: str
    spec: JobSpec
    unix_user: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


def ref(row: Row[Any]) -> Ref:
    return Ref("Job", row.name, row.project, row.id)


def find(conn: Connection, project: str, name: str) -> Row[Any]:
    """The job's row. Raises NotFound."""
    row = conn.execute(_BY_NAME, {"project": project, "name": name}).first()
    if row is None:
        raise NotFound(f"there is no job {name!r} in project {project!r}")
    return row


def by_id(conn: Connection, job_id: str) -> Row[Any] | None:
    return conn.execute(_BY_ID, {"id": job_id}).first()


def labelled(
    conn: Connection, project: str, labels: Mapping[str, str], until: float, since: float | None = None
) -> list[str]:
    """Ids of jobs whose labels begin with these, and that had begun by ``until`` and were not over at ``since``."""
    begins = json.dumps(dict(labels))[:-1]
    query = select(jobs.c.id).where(jobs.c.project == project, jobs.c.created_at <= until)
    query = query.where(jobs.c.labels.startswith(begins, autoescape=True))
    if since is not None:
        query = query.where(jobs.c.finished_at.is_(None) | (jobs.c.finished_at > since))
    return [row.id for row in conn.execute(query)]


def update(tx: Tx, job_id: str, **values: Any) -> None:
    tx.do(_SET, {"b_id": job_id, **values})


def move(tx: Tx, row: Row[Any], phase: Phase, reason: str, message: str, **values: Any) -> None:
    """Set a job's phase; its time is kept while the phase stays. Raises RuntimeError for a step that is not in the table."""
    if not may_follow(Phase(row.phase), phase):
        raise RuntimeError(f"job {row.id} cannot go from {row.phase} to {phase} ({reason})")
    if row.phase != phase:
        values["phase_at"] = tx.now
    update(tx, row.id, phase=phase, reason=reason, message=message, **values)


def create(tx: Tx, new: NewJob) -> SimpleNamespace:
    """Insert a job (and its array tasks). Returns what a read of its row would. Raises Conflict for a name that is taken,
    InvalidInput.
    """
    name = new.name or _free_name(tx, new)
    if new.name is not None and tx.conn.execute(_BY_NAME, {"project": new.project, "name": name}).first() is not None:
        raise Conflict(
            f"job {name!r} exists in project {new.project!r}",
            hint="Take another --name, `penstock delete` the finished one, or `penstock apply` a changed spec.",
        )
    needs = _dependencies(tx, new)
    job_id = new_id(tx.now, os.urandom(10))
    array = new.spec.array
    values = _values(tx, new, job_id, name)
    values["held"] = "array" if array else ("dependency" if needs else None)
    values["array_count"] = array.count if array else None
    tx.do(_INSERT, values)
    tx.emit(
        Ref("Job", name, new.project, job_id),
        Reason.Created,
        "submitted",
        actor=new.user,
        data={"generation": 1} | ({"held": values["held"]} if values["held"] else {}),
    )
    for on_id, on_name, condition in needs:
        tx.conn.execute(
            dependencies.insert().values(job_id=job_id, on_job_id=on_id, on_name=on_name, condition=condition)
        )
    if array:
        _create_tasks(tx, new, job_id, name, bool(needs))
    return SimpleNamespace(**values)


def _values(tx: Tx, new: NewJob, job_id: str, name: str) -> dict[str, Any]:
    return {
        "id": job_id,
        "project": new.project,
        "name": name,
        "user": new.user,
        "unix_user": new.unix_user,
        "generation": 1,
        "observed_generation": 0,
        "spec": new.spec.model_dump_json(exclude_defaults=True),
        "labels": json.dumps(dict(new.labels)),
        "phase": Phase.PENDING,
        "reason": Reason.WaitingBehind,
        "message": "in line",
        "held": None,
        "priority": new.spec.priority,
        "created_at": tx.now,
        "queued_at": tx.now,
        "next_at": None,
        "started_at": None,
        "finished_at": None,
        "phase_at": tx.now,
        "attempt": 0,
        "restarts": 0,
        "exit_code": None,
        "signal": None,
        "nodes": "[]",
        "progress": None,
        "array_of": None,
        "array_index": None,
        "array_count": None,
        "cancelled_by": None,
        "engine": None,
        "engine_job": None,
        "start_estimate": None,
        "failures": None,
        "avoided": None,
        "calm_at": None,
    }


def _create_tasks(tx: Tx, new: NewJob, parent_id: str, name: str, depends: bool) -> None:
    array = new.spec.array
    if array is None:
        return
    taken = _taken_task_names(tx, new.project, name, array.count)
    if taken:
        raise Conflict(f"the array's task {taken!r} would take the name of a job that exists")
    open_tasks = array.max_parallel or array.count
    rows = []
    for index in range(array.count):
        task = f"{name}-{index}"
        values = _values(tx, new, new_id(tx.now, os.urandom(10)), task)
        held = "dependency" if depends else None if index < open_tasks else "slot"
        values |= {"held": held, "array_of": parent_id, "array_index": index, "array_count": array.count}
        if held == "slot":
            values |= {"reason": Reason.WaitingForArraySlot, "message": f"at the most {open_tasks} tasks at a time"}
        rows.append(values)
    tx.conn.execute(_INSERT, rows)
    for values in rows:
        task_ref = Ref("Job", values["name"], new.project, values["id"])
        tx.emit(task_ref, Reason.Created, f"task {values['array_index']} of {name}", actor=new.user)


def _taken_task_names(tx: Tx, project: str, name: str, count: int) -> str | None:
    rows = tx.conn.execute(
        select(jobs.c.name).where(jobs.c.project == project, jobs.c.name.like(f"{name}-%"))
    ).scalars()
    tasks = {f"{name}-{index}" for index in range(count)}
    return next((row for row in rows if row in tasks), None)


def _free_name(tx: Tx, new: NewJob) -> str:
    first = next(
        (w for w in new.spec.command if w.endswith(".py")), new.spec.command[0] if new.spec.command else "shell"
    )
    stem = first.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    stem = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:40] or "job"
    return f"{stem}-{new_id(tx.now, os.urandom(10))[-6:].lower()}"


def _dependencies(tx: Tx, new: NewJob) -> list[tuple[str, str, str]]:
    found: list[tuple[str, str, str]] = []
    problems: list[Problem] = []
    for index, need in enumerate(new.spec.depends_on):
        row = tx.conn.execute(_BY_NAME, {"project": new.project, "name": need.job}).first()
        if row is None:
            problems.append(
                Problem(f"spec.depends_on[{index}].job", f"there is no job {need.job!r} in project {new.project!r}")
            )
        elif all(row.id != other[0] for other in found):
            found.append((row.id, need.job, need.condition))
    if problems:
        raise InvalidInput("the job depends on what does not exist", details=problems)
    return found


def changes(old: JobSpec, new: JobSpec) -> list[str]:
    """Names of the top-level fields that differ."""
    return [name for name in JobSpec.model_fields if getattr(old, name) != getattr(new, name)]


def refusal(row: Row[Any], differ: list[str]) -> str | None:
    """Why a job cannot take these changes; None where it can."""
    if row.array_of is not None or row.array_count is not None:
        return f"{row.name!r} is an array or its task: delete it or take another name to change it"
    fixed = [name for name in differ if name not in _MUTABLE]
    begun = row.attempt - (1 if row.held == "engine" else 0)  # what an engine has in its line did not
    if row.phase in FINAL or not fixed or (row.phase == Phase.PENDING and begun == 0):
        return None
    return f"job {row.name!r} is {row.phase}: {', '.join(fixed)} cannot change under it"


def replace(tx: Tx, row: Row[Any], spec: JobSpec, *, actor: str, generation: int | None = None) -> str:
    """Give a job another spec: "unchanged", "update" (a finished job runs anew; a live one takes what may change).

    Raises Conflict when ``generation`` is not the present one, or when a live job would have to be another.
    """
    if generation is not None and generation != row.generation:
        raise Conflict(f"job {row.name!r} is at generation {row.generation}, not {generation}")
    old = JobSpec.model_validate_json(row.spec)
    differ = changes(old, spec)
    if not differ:
        return "unchanged"
    refused = refusal(row, differ)
    if refused is not None:
        raise Conflict(refused, hint="Cancel it first, or take another name.")
    values: dict[str, Any] = {
        "spec": spec.model_dump_json(exclude_defaults=True),
        "generation": row.generation + 1,
        "priority": spec.priority,
    }
    data = {"generation": row.generation + 1, "changed": differ}
    if row.phase == Phase.PENDING and row.held == "engine" and not _OURS.issuperset(differ):
        _withdraw(tx, row, Reason.Updated, "its specification was changed: it is handed over anew", **values)
        data["withdrawn"] = True
    elif row.phase not in FINAL:
        update(tx, row.id, **values)
    else:
        values |= {"held": None, "next_at": None, "restarts": 0, "exit_code": None, "signal": None, "progress": None}
        values |= {"failures": None, "avoided": None, "calm_at": None}
        values |= {"cancelled_by": None, "finished_at": None, "started_at": None, "queued_at": tx.now}
        values |= {"engine": None, "engine_job": None} if row.engine is not None else {}
        move(tx, row, Phase.PENDING, Reason.WaitingBehind, "in line", **values)
    tx.emit(
        ref(row),
        Reason.Updated,
        f"generation {row.generation + 1}: {', '.join(differ)}",
        actor=actor,
        data=data,
    )
    return "update"


def cancel(tx: Tx, row: Row[Any], *, actor: str, why: str = "") -> list[str]:
    """Ask a job to end. Returns the ids of jobs whose engine must be told. Finished ones are left as they are."""
    if row.phase in FINAL or row.cancelled_by is not None:
        return []
    told: list[str] = []
    held = row.phase in ACTIVE or row.held == "engine"
    if row.array_count is not None and row.array_of is None:
        for task in tx.conn.execute(select(jobs).where(jobs.c.array_of == row.id)).all():
            held = held or task.held == "engine"
            told += cancel(tx, task, actor=actor, why=why or f"{row.name} was cancelled")
        told.append(row.id)
    message = f"cancelled by {actor}" + (f": {why}" if why else "")
    if held:
        _withdraw(tx, row, Reason.Cancelled, message, cancelled_by=actor)
        tx.emit(ref(row), Reason.CancelRequested, message, actor=actor)
        return [*told, row.id]
    move(tx, row, Phase.CANCELLED, Reason.Cancelled, message, cancelled_by=actor, finished_at=tx.now, held=None)
    tx.emit(ref(row), Reason.Cancelled, message, actor=actor)
    return [*told, row.id]


def _withdraw(tx: Tx, row: Row[Any], reason: Reason, message: str, **values: Any) -> None:
    """Its engine is to let go of the attempt that it runs, or has in its line."""
    said = Reason.CancelRequested if reason is Reason.Cancelled else reason
    move(tx, row, Phase.STOPPING, said, message, **values)
    tx.conn.execute(
        attempts.update()
        .where(attempts.c.job_id == row.id, attempts.c.number == row.attempt)
        .values(stop_reason=reason)
    )


def remove(tx: Tx, row: Row[Any], *, actor: str) -> list[str]:
    """Forget a finished job (its events stay). Returns the ids whose folders may go. Raises Conflict."""
    if row.phase not in FINAL:
        raise Conflict(f"job {row.name!r} is {row.phase}", hint="Cancel it first: `penstock cancel " + row.name + "`.")
    ids = [row.id]
    ids += list(tx.conn.execute(select(jobs.c.id).where(jobs.c.array_of == row.id)).scalars())
    waiting = tx.conn.execute(
        select(func.count())
        .select_from(dependencies.join(jobs, jobs.c.id == dependencies.c.job_id))
        .where(dependencies.c.on_job_id.in_(ids), jobs.c.phase.not_in(FINAL))
    ).scalar_one()
    if waiting:
        raise Conflict(f"{waiting} unfinished jobs depend on {row.name!r}")
    for table, column in ((attempts, attempts.c.job_id), (dependencies, dependencies.c.job_id), (jobs, jobs.c.id)):
        tx.conn.execute(delete(table).where(column.in_(ids)))
    tx.emit(ref(row), Reason.Deleted, "deleted", actor=actor)
    return ids
