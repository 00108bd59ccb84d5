"""Rows -> the JSON that docs/internals.md shows; nothing here changes anything."""

from __future__ import annotations

import heapq
import itertools
import json
from collections.abc import Collection, Mapping
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, NamedTuple

from sqlalchemy import JSON, Column, ColumnElement, Select, and_, cast, func, or_, select, type_coerce
from sqlalchemy.engine import Connection, Row

from penstock.base.errors import InvalidInput, Problem
from penstock.base.quantities import format_duration, format_memory, format_time
from penstock.base.reasons import Reason
from penstock.base.resource import Condition
from penstock.fleet import inventory
from penstock.jobs import avoided, progression, view
from penstock.jobs.spec import JobSpec
from penstock.jobs.state import ACTIVE, FINAL, Phase
from penstock.jobs.tables import attempts, dependencies, jobs
from penstock.scheduling import devices, live
from penstock.scheduling.cycle import Scheduler
from penstock.scheduling.explain import IN_LINE
from penstock.scheduling.pool import Pool
from penstock.scheduling.state import NodeState, Wait
from penstock.store import events

NODES_SHOWN = 5  # as evidence
_TOLD = 40  # findings of an attempt that are looked through, the newest
AnyRow = Row[Any] | SimpleNamespace  # a job's row, read or just written
_GROUPS = {"active": [*ACTIVE, Phase.PENDING], "finished": list(FINAL)}


class Place(NamedTuple):
    """Jobs of one queue; those whose newest attempt is on an engine that is not the server's own. None: of any. ``replicas``:
    finished ones too that a service made.
    """

    queue: str | None = None
    engine: str | None = None
    replicas: bool = True


ANY_PLACE = Place()
SERVICE = "penstock.serving/service"  # label of a job that is a service's replica


def listing(
    conn: Connection,
    *,
    projects: Collection[str] | None,
    phases: Collection[str] = (),
    text: str | None = None,
    place: Place = ANY_PLACE,
    limit: int = 100,
    before: int | None = None,
) -> list[Row[Any]]:
    """Newest first; ``projects`` None means all; ``before`` is the last seq of the page before."""
    query = _filtered(select(jobs), projects, text).order_by(jobs.c.seq.desc()).limit(limit)
    if place.queue is not None:
        query = query.where(_of_queue(conn, place.queue))
    if place.engine is not None:
        query = query.where(jobs.c.engine == place.engine)
    if not place.replicas:
        query = query.where(
            or_(jobs.c.phase.not_in(sorted(FINAL)), _json(conn, jobs.c.labels)[SERVICE].as_string().is_(None))
        )
    if before is not None:
        query = query.where(jobs.c.seq < before)
    wanted = _phases(phases)
    if not wanted:
        return list(conn.execute(query))
    # A phase at a time, each from its index in order: all of them at once would be sorted, with thousands that have ended.
    found = [row for phase in wanted for row in conn.execute(query.where(jobs.c.phase == phase))]
    return sorted(found, key=lambda row: row.seq, reverse=True)[:limit]


def _phases(names: Collection[str]) -> list[str]:
    """What the filter's words stand for. Raises InvalidInput."""
    wanted = dict.fromkeys(p for name in names for p in _GROUPS.get(name, [name]))
    unknown = [p for p in wanted if p not in list(Phase)]
    if unknown:
        known = ", ".join([*Phase, *_GROUPS])
        raise InvalidInput("unknown phase", details=[Problem("phase", f"{unknown[0]!r} is none of {known}")])
    return list(wanted)


def _filtered(query: Select[Any], projects: Collection[str] | None, text: str | None) -> Select[Any]:
    if projects is not None:
        query = query.where(jobs.c.project.in_(sorted(projects)))
    engine, colon, named = (text or "").partition(":")
    if colon and named:
        return query.where(jobs.c.engine == engine, jobs.c.engine_job == named)  # c1:1234, as that engine calls it
    if text:
        like = "%" + text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        query = query.where(or_(jobs.c.name.like(like, escape="\\"), jobs.c.user.like(like, escape="\\")))
    return query


def named_queue(conn: Connection) -> ColumnElement[str]:
    """The queue that a job's spec names, if any."""
    named: ColumnElement[str] = _json(conn, jobs.c.spec)["queue"].as_string()
    return named


def _json(conn: Connection, column: Column[Any]) -> ColumnElement[Any]:
    """SQLite's JSON is text; PostgreSQL wants to be told that text is JSON."""
    return type_coerce(column, JSON) if conn.dialect.name == "sqlite" else cast(column, JSON)


def _of_queue(conn: Connection, queue: str) -> ColumnElement[bool]:
    """Those whose spec names it, and of those that name none the ones whose project's jobs go there now."""
    named = named_queue(conn)
    setup = live.current(conn)
    owners = {project: each.name for each in setup.queues.values() for project in each.projects}
    here: ColumnElement[bool] = jobs.c.project.in_([project for project, name in owners.items() if name == queue])
    if queue == "default":
        here = or_(here, jobs.c.project.not_in(sorted(owners)))
    return or_(named == queue, and_(named.is_(None), here))


def counts(
    conn: Connection, projects: Collection[str] | None, text: str | None = None, queue: str | None = None
) -> dict[str, int]:
    """How many jobs of each phase."""
    query = _filtered(select(jobs.c.phase, func.count()), projects, text).group_by(jobs.c.phase)
    if queue is not None:
        query = query.where(_of_queue(conn, queue))
    return {phase: int(count) for phase, count in conn.execute(query)}


def active_by_engine(conn: Connection) -> dict[str, int]:
    """How many attempts each engine has that have not ended."""
    query = select(attempts.c.engine, func.count()).where(attempts.c.ended_at.is_(None)).group_by(attempts.c.engine)
    return {engine: int(count) for engine, count in conn.execute(query)}


def project_names(conn: Connection) -> list[str]:
    """Every project that has, or had, a job."""
    return list(conn.execute(select(jobs.c.project).distinct().order_by(jobs.c.project)).scalars())


def usage(conn: Connection) -> dict[str, dict[str, Any]]:
    """By node: what is allocated and to which jobs."""
    query = (
        select(attempts.c.groups, jobs.c.project, jobs.c.name, jobs.c.engine)
        .select_from(attempts.join(jobs, jobs.c.id == attempts.c.job_id))
        .where(attempts.c.phase.in_([p.value for p in ACTIVE]))
        .order_by(jobs.c.seq)
    )
    found: dict[str, dict[str, Any]] = {}
    rows = conn.execute(query).all()
    owners = inventory.owners(conn) if any(row.engine is not None for row in rows) else {}
    for row in rows:
        for group in json.loads(row.groups):
            if row.engine is not None and owners.get(group["node"], row.engine) != row.engine:
                continue  # another engine's node of the same name
            node = found.setdefault(group["node"], {"cpus": 0.0, "memory": 0, "gpus": [], "gpu_parts": 0.0, "jobs": []})
            node["cpus"] = round(node["cpus"] + group["cpus"], 6)
            node["memory"] += group["memory"] or 0
            for gpu in group["gpus"]:
                id_ = gpu.get("gpu", gpu["id"])
                node["gpus"] += [id_] if id_ not in node["gpus"] else []
                node["gpu_parts"] = round(
                    node["gpu_parts"] + devices.part(gpu["model"], gpu.get("milli", 0), gpu.get("mig", "")), 6
                )
            node["jobs"].append({"project": row.project, "name": row.name})
    return found


class InPlay(NamedTuple):
    """What only the attempt that still runs knows of a job: its restarts in place, and which of its GPUs do nothing."""

    restarts: int = 0
    groups: str = "[]"
    gpu_idle: str | None = None

    def idle(self, now: float) -> tuple[str, float] | None:
        """In words, and since when; None where no GPU of it was called idle."""
        told = view.told_idle(self.gpu_idle)
        if not told:
            return None
        held = sum(len(group["gpus"]) for group in json.loads(self.groups))
        since = min(told.values())
        return f"{gpu_words(len(told), held)} done nothing for {format_duration(now - since)}", since


def gpu_words(idle: int, held: int, verb: str = "") -> str:
    """As in: 3 of its 4 GPUs have, its GPU has."""
    verb = verb or ("has" if idle == 1 else "have")
    if idle == held:
        return f"its GPU {verb}" if held == 1 else f"all its {held} GPUs {verb}"
    return f"{idle} of its {held} GPUs {verb}"


def in_play(conn: Connection, rows: Collection[AnyRow]) -> dict[str, InPlay]:
    """By job id, of attempts that still run, where there is anything to say."""
    ids = [row.id for row in rows if row.phase in ACTIVE or row.held == "engine"]
    if not ids:
        return {}
    columns = (attempts.c.job_id, attempts.c.restarts, attempts.c.groups, attempts.c.gpu_idle)
    query = select(*columns).where(
        attempts.c.job_id.in_(ids),
        attempts.c.ended_at.is_(None),
        (attempts.c.restarts > 0) | attempts.c.gpu_idle.is_not(None),
    )
    return {row.job_id: InPlay(row.restarts, row.groups, row.gpu_idle) for row in conn.execute(query)}


def job(
    row: AnyRow, progress: Mapping[str, Any] | None = None, playing: InPlay | None = None, now: float = 0.0
) -> dict[str, Any]:
    """A Job as JSON; ``progress`` is the last report while it runs."""
    shown = progress if progress is not None else json.loads(row.progress) if row.progress else None
    body: dict[str, Any] = {
        "kind": "Job",
        "project": row.project,
        "name": row.name,
        "id": row.id,
        "generation": row.generation,
        "user": row.user,
        "created_at": format_time(row.created_at),
        "labels": json.loads(row.labels),
        "spec": spec(row),
        "status": {
            "phase": row.phase,
            "reason": row.reason,
            "message": row.message,
            "observed_generation": row.observed_generation,
            "conditions": [c.to_dict() for c in (*conditions(row), *_idleness(playing, now))],
            "attempt": row.attempt,
            "restarts": row.restarts + (playing.restarts if playing is not None else 0),
            "nodes": json.loads(row.nodes),
            "queued_at": format_time(row.queued_at),
            "started_at": format_time(row.started_at),
            "finished_at": format_time(row.finished_at),
            "exit_code": row.exit_code,
            "signal": row.signal,
            "progress": shown,
        },
    }
    kept_off = avoided.load(row.avoided, now)
    if kept_off:
        body["status"]["avoids"] = [
            {"node": one.node, "why": one.why, "since": format_time(one.at), "until": format_time(one.until)}
            for one in kept_off
        ]
    if row.engine is not None:
        body["status"] |= {
            "engine": row.engine,
            "engine_job": row.engine_job,
            "start_estimate": format_time(row.start_estimate),
        }
    if row.array_of is not None:
        body["array_of"] = row.array_of
        body["array_index"] = row.array_index
    return body


def spec(row: AnyRow) -> dict[str, Any]:
    """The spec with its defaults filled in. Shared between answers: not to be changed."""
    return _spec(row.spec)


@lru_cache(maxsize=2048)
def _spec(text: str) -> dict[str, Any]:
    """By the stored text, since many jobs of a sweep or a benchmark have the same."""
    model = JobSpec.model_validate_json(text)
    body = model.model_dump(mode="json", exclude_none=True)
    body["launcher"] = model.effective_launcher()
    return body


def conditions(row: AnyRow) -> list[Condition]:
    """Admitted, Running, Finished: derived from the row, so that they cannot disagree with it."""
    phase, since = row.phase, row.phase_at
    admitted = row.held != "engine" and (phase in ACTIVE or (phase in FINAL and row.attempt > 0))
    if row.engine is not None and phase in FINAL:
        admitted = row.started_at is not None
    ended = phase in FINAL
    at_admission = since if phase == Phase.STARTING else (row.started_at or since)
    return [
        Condition("Admitted", _truth(admitted), Reason.Admitted if admitted else row.reason, row.message, at_admission),
        Condition("Running", _truth(phase in (Phase.RUNNING, Phase.STOPPING)), row.reason, row.message, since),
        Condition("Finished", _truth(ended), row.reason, row.message, row.finished_at if ended else row.created_at),
    ]


def _idleness(playing: InPlay | None, now: float) -> list[Condition]:
    """There only while GPUs that it holds do nothing."""
    found = playing.idle(now) if playing is not None else None
    return [Condition("GpuIdle", "True", Reason.GpuIdle, *found)] if found is not None else []


def _truth(value: bool) -> str:
    return "True" if value else "False"


def array_counts(conn: Connection, row: AnyRow) -> dict[str, int] | None:
    """Tasks of an array by phase; None for what is no array."""
    if row.array_count is None or row.array_of is not None:
        return None
    query = select(jobs.c.phase, func.count()).where(jobs.c.array_of == row.id).group_by(jobs.c.phase)
    found: dict[str, int] = {phase: count for phase, count in conn.execute(query)}  # noqa: C416 - rows, not pairs
    return {
        "total": row.array_count,
        "succeeded": found.get(Phase.SUCCEEDED, 0),
        "failed": found.get(Phase.FAILED, 0),
        "cancelled": found.get(Phase.CANCELLED, 0),
        "running": sum(found.get(p, 0) for p in ACTIVE),
        "pending": found.get(Phase.PENDING, 0),
    }


def attempt_rows(conn: Connection, job_id: str) -> list[Row[Any]]:
    return list(conn.execute(select(attempts).where(attempts.c.job_id == job_id).order_by(attempts.c.number)))


def attempt(row: Row[Any]) -> dict[str, Any]:
    return {
        "number": row.number,
        "generation": row.generation,
        "phase": row.phase,
        "reason": row.reason,
        "message": row.message,
        "engine": row.engine,
        "engine_job": row.engine_job,
        "queued": row.run_dir.endswith(f".{row.engine}"),  # it stood in the engine's own line
        "nodes": [group["node"] for group in json.loads(row.groups)],
        "groups": json.loads(row.groups),
        "submitted_at": format_time(row.admitted_at),
        "started_at": format_time(row.started_at),
        "ended_at": format_time(row.ended_at),
        "exit_code": row.exit_code,
        "signal": row.signal,
        "restarts": row.restarts,
        "ranks": json.loads(row.ranks),
    }


def why(conn: Connection, row: Row[Any], now: float, memory: view.Memory) -> dict[str, Any]:
    """Why a job is where it is: for a waiting one from a fresh look at the fleet and the line before it."""
    evidence: list[str] = []
    helps: list[str] = []
    reason, message = row.reason, row.message
    if row.phase == Phase.PENDING and row.held is None:
        wait, evidence = _why_waiting(conn, row, now, memory)
        reason, message, helps = wait.reason, wait.message, list(wait.helps)
    elif row.held == "engine":
        evidence, helps = _why_queued(conn, row, now)
    elif row.phase == Phase.PENDING and row.held == "slot":
        evidence, helps = _why_slot(conn, row), ["a task of the array to end, or a larger max_parallel"]
    elif row.phase == Phase.PENDING and row.held == "dependency":
        evidence, helps = _why_dependency(conn, row)
    elif row.array_count is not None and row.array_of is None:
        evidence, helps = _why_array(conn, row)
    elif row.phase in ACTIVE:
        evidence, helps = _why_running(conn, row, now, memory)
    elif row.phase in FINAL:
        evidence = [_ending(a) for a in attempt_rows(conn, row.id)]
        helps = _after_failure(row)
    if row.phase not in FINAL:
        evidence += [one.words() for one in avoided.load(row.avoided, now)]
    return {
        "project": row.project,
        "name": row.name,
        "phase": row.phase,
        "reason": reason,
        "message": message,
        "evidence": evidence,
        "helps": helps,
    }


def _why_running(conn: Connection, row: Row[Any], now: float, memory: view.Memory) -> tuple[list[str], list[str]]:
    """What was found of it and has not ended; GPUs that it holds and leaves idle, and what its queue makes of that."""
    slow = _slow(conn, row)
    diagnose = [f"`penstock diagnose {row.name}` looks for the cause"] if slow else []
    playing = in_play(conn, [row]).get(row.id)
    found = playing.idle(now) if playing is not None else None
    if found is None:
        return slow, diagnose
    setup = live.current(conn)
    queue = setup.queues.get(view.queue_of(setup, memory.spec(row), row.project))
    helps = [f"look whether it hangs (`penstock logs {row.name}`); end it, or ask for fewer GPUs"]
    if queue is not None and queue.reclaim_after_s is not None:
        patience = format_duration(queue.reclaim_after_s)
        helps.append(f"queue {queue.name} lets others have them once all have been idle for {patience}")
    return [*slow, found[0]], [*diagnose, *helps]


def _slow(conn: Connection, row: Row[Any]) -> list[str]:
    """That its steps have become longer, that a rank holds the others up: what was told, and has not ended."""
    ends = {Reason.SlowdownEnded: Reason.SlowedDown, Reason.StragglingEnded: Reason.Straggling}
    told = events.page(
        conn, kind="Job", subject_id=row.id, reason=[*ends, *ends.values()], limit=_TOLD, newest_first=True
    )
    stands: dict[tuple[str, Any], str] = {}
    for event in reversed(told):
        if event.data.get("attempt") == row.attempt:
            key = (ends.get(Reason(event.reason), Reason(event.reason)), event.data.get("rank"))
            stands.pop(key, None)
            if event.reason not in ends:
                stands[key] = event.message
    return list(stands.values())


def _why_queued(conn: Connection, row: Row[Any], now: float) -> tuple[list[str], list[str]]:
    """In whose line it is, by which name, since when; what that engine says would help."""
    attempt = progression.current_attempt(conn, row)
    if attempt is None:
        return [], []
    waited = format_duration(max(0.0, round(now - attempt.admitted_at)))
    engine = f"engine {row.engine}, which schedules itself,"
    evidence = [
        f"{engine} has had it in its line as {row.engine_job} for {waited}"
        if row.engine_job
        else f"{engine} was to have it {waited} ago, and has not said yet that it does"
    ]
    if row.start_estimate is not None:
        evidence.append(f"{row.engine} expects to start it about {format_time(row.start_estimate)}")
    if attempt.restarts:
        evidence.append(f"it ran before, and was taken back into the line: restart {row.restarts + attempt.restarts}")
    if row.reason == Reason.EngineUnreachable and attempt.message:
        evidence.append(f"when last heard of: {attempt.reason}: {attempt.message}")
    return evidence, [attempt.help] if attempt.help else []


def _why_slot(conn: Connection, row: Row[Any]) -> list[str]:
    """How many of its array run, and how many may."""
    parent = conn.execute(select(jobs).where(jobs.c.id == row.array_of)).first()
    counts = array_counts(conn, parent) if parent is not None else None
    if parent is None or counts is None:
        return []
    array = JobSpec.model_validate_json(parent.spec).array
    most = (array.max_parallel if array else None) or parent.array_count
    ready = counts["running"]
    return [f"{ready} of at the most {most} tasks of {parent.name} run; {counts['pending']} of {counts['total']} wait"]


def _why_dependency(conn: Connection, row: Row[Any]) -> tuple[list[str], list[str]]:
    """The jobs that it waits for, and how each is."""
    query = (
        select(dependencies.c.on_name, dependencies.c.condition, jobs.c.phase, jobs.c.message)
        .select_from(dependencies.outerjoin(jobs, jobs.c.id == dependencies.c.on_job_id))
        .where(dependencies.c.job_id == row.id)
        .order_by(dependencies.c.on_name)
    )
    rows = conn.execute(query).all()
    evidence = [
        f"{one.on_name} is {one.phase or 'deleted'}, must be {one.condition}"
        + (f": {one.message}" if one.message else "")
        for one in rows[:20]
        if one.phase != one.condition
    ]
    names = [one.on_name for one in rows if one.phase not in (None, *FINAL)]
    return evidence, [f"`penstock why {names[0]}` says how far the first of them is"] if names else []


def _why_array(conn: Connection, row: Row[Any]) -> tuple[list[str], list[str]]:
    """The tasks that did not end well, and where to read on."""
    query = select(jobs).where(jobs.c.array_of == row.id, jobs.c.phase.in_([Phase.FAILED, Phase.CANCELLED]))
    bad = conn.execute(query.order_by(jobs.c.array_index).limit(20)).all()
    evidence = [f"{task.name}: {task.reason}" + (f": {task.message}" if task.message else "") for task in bad]
    return evidence, [f"`penstock why {bad[0].name}`, `penstock logs {bad[0].name}`"] if bad else []


def _why_waiting(conn: Connection, row: Row[Any], now: float, memory: view.Memory) -> tuple[Wait, list[str]]:
    seen, scheduler = view.fresh(conn, now, memory)
    if row.id in seen.elsewhere:
        name = view.engine_of(seen.setup, memory.spec(row), row.project)
        words = row.message if row.reason == Reason.Unschedulable else f"about to be handed over to engine {name}"
        return Wait(row.id, row.reason, words), []
    if row.next_at is not None and row.next_at > now:
        wait = Wait(row.id, Reason.BackingOff, f"{row.message}; {row.next_at - now:.0f} s to go")
        return wait, _freest(scheduler)
    scheduler.plan(now)
    lines = _freest(scheduler)
    if row.id in scheduler.held:
        return Wait(row.id, Reason.WaitingBehind, IN_LINE), lines
    ahead = sum(1 for _ in itertools.takewhile(lambda entry: entry.w.id != row.id, scheduler.lines.in_order()))
    own = scheduler.why(row.id, now)
    if own.start_estimate is not None:
        told = format_time(own.start_estimate)
        firm = scheduler.promise(row.id) is not None
        lines.insert(0, f"it is promised a start at {told} at the latest" if firm else f"it may start about {told}")
    if own.reason is Reason.Unschedulable or not ahead:
        return own, lines
    behind = f"{ahead} job{'s are' if ahead != 1 else ' is'} before it in line"
    if own.message != IN_LINE:
        behind += (
            f"; by itself it {own.message}" if own.message.startswith(("needs ", "waits ")) else f"; {own.message}"
        )
    return Wait(row.id, Reason.WaitingBehind, behind, own.helps), [f"{ahead} ahead in line", *lines]


def _freest(scheduler: Scheduler) -> list[str]:
    """The nodes with most room, those that take work before those that do not, and how many more there are."""
    pool = scheduler.pool

    def room(node: NodeState) -> tuple[object, ...]:
        i = pool.index(node.name)
        return not node.open, -pool.free_bits[i].bit_count(), -pool.free_cpus[i], -pool.free_memory[i], i

    shown = [_free(pool, node) for node in heapq.nsmallest(NODES_SHOWN, pool.states(), key=room)]
    more = pool.fleet.bit_count() - len(shown)
    return [*shown, f"and {more} more node{'s' if more != 1 else ''}"] if more else shown


def _free(pool: Pool, node: NodeState) -> str:
    i, gpus = pool.index(node.name), len(node.gpus)
    return (
        f"node {node.name}: {max(pool.free_cpus[i], 0):g} of {node.cpus:g} CPU{'s' if node.cpus != 1 else ''}, "
        f"{format_memory(max(pool.free_memory[i], 0))} of {format_memory(node.memory)} memory, "
        f"{pool.free_bits[i].bit_count()} of {gpus} GPU{'s' if gpus != 1 else ''} free"
        + (f", {node.why_closed}" if node.why_closed else "")
    )


def _ending(row: Row[Any]) -> str:
    ended = format_time(row.ended_at) or "not yet"
    return f"attempt {row.number}: {row.reason} at {ended}" + (f": {row.message}" if row.message else "")


def _after_failure(row: Row[Any]) -> list[str]:
    log = f"`penstock logs {row.name}`"
    return {
        Reason.OutOfMemory: [f"a larger --memory, or a smaller batch; {log} shows how far it came"],
        Reason.TimeLimit: ["a longer --time-limit, or checkpoints and --max-restarts"],
        Reason.Failed: [f"{log} shows what it printed last"],
        Reason.CrashLoop: [f"mend the script ({log} shows all of it), then apply it again"],
        Reason.CommandNotFound: ["name the program by its path, or the --venv that holds it"],
        Reason.NotExecutable: ["`chmod +x` it, or name its interpreter (`-- python train.py`)"],
    }.get(row.reason, [])


def find_attempt(conn: Connection, row: Row[Any], number: int | None) -> Row[Any] | None:
    """The numbered attempt, or the newest; None before the first."""
    if number is None:
        return progression.current_attempt(conn, row)
    found = conn.execute(select(attempts).where(attempts.c.job_id == row.id, attempts.c.number == number)).first()
    if found is None:
        raise InvalidInput(
            f"job {row.name!r} has no attempt {number}",
            details=[Problem("attempt", f"there are {row.attempt}: 1 to {row.attempt}" if row.attempt else "none yet")],
        )
    return found
