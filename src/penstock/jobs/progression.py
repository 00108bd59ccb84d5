"""An observation of an attempt becomes rows and events: starts, restarts in place, ends, and what follows an end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import bindparam, func, select
from sqlalchemy.engine import Connection, Row

from penstock.base.reasons import Reason
from penstock.engines.spec import Observation, Stage
from penstock.jobs import faults, queued, submit
from penstock.jobs.crashes import BadNode, Loop
from penstock.jobs.plan import AfterEnd, Ended, after_end, made_progress
from penstock.jobs.spec import JobSpec
from penstock.jobs.state import ACTIVE, FINAL, NEVER_BEGAN, Phase, end_phase
from penstock.jobs.tables import attempts, dependencies, jobs
from penstock.store.store import Tx

REQUEUED_S = 1.0  # a start this much later than the one that is known is another one
_FOLLOWERS = select(dependencies.c.job_id).where(dependencies.c.on_job_id == bindparam("on"))
_SET = attempts.update().where(attempts.c.job_id == bindparam("b_job"), attempts.c.number == bindparam("b_number"))
_ATTEMPT = select(attempts).where(attempts.c.job_id == bindparam("job_id"), attempts.c.number == bindparam("number"))


@dataclass(slots=True)
class Effects:
    """What the caller does after the commit."""

    look_at: list[str] = field(default_factory=list)  # jobs to reconcile: dependents, parents
    freed: bool = False  # capacity came back: run a scheduling cycle
    again_in_s: float | None = None  # run a scheduling cycle then (back-off)
    ended: bool = False


def current_attempt(conn: Connection, row: Row[Any]) -> Row[Any] | None:
    return conn.execute(_ATTEMPT, {"job_id": row.id, "number": row.attempt}).first()


def observe(tx: Tx, row: Row[Any], seen: Observation) -> Effects:
    """Apply what an engine saw of the job's attempt. Idempotent: an attempt that has ended is left as it is."""
    effects = Effects()
    number = int(seen.attempt_id.rpartition(".")[2])
    attempt = tx.conn.execute(_ATTEMPT, {"job_id": row.id, "number": number}).first()
    if attempt is None or attempt.ended_at is not None or seen.stage in (Stage.ABSENT, Stage.STARTING):
        return effects
    over = seen.stage in (Stage.EXITED, Stage.LOST)
    if row.engine is not None and not over:
        if seen.unknown_since is not None:
            queued.unknown(tx, row, seen, seen.unknown_since)
            if seen.stage is Stage.QUEUED or attempt.phase != Phase.PENDING:
                return effects
        elif seen.stage is Stage.QUEUED and attempt.phase == Phase.PENDING:
            queued.waits(tx, row, attempt, seen)
            return effects
        elif seen.stage is Stage.RUNNING and row.reason == Reason.EngineUnreachable and attempt.started_at is not None:
            queued.reached(tx, row, attempt)
    if row.engine is not None:
        row, attempt = _elsewhere(tx, row, attempt, seen, effects)
        if seen.stage is Stage.QUEUED:
            return effects
    values: dict[str, Any] = {}
    if attempt.started_at is None and seen.started_at is not None and seen.reason not in NEVER_BEGAN:
        values = _started(tx, row, attempt, seen, over=over)
    for happened in seen.happened:
        _note(tx, row, attempt, happened)
    if values and row.array_of is not None:
        effects.look_at.append(row.array_of)
    if over:
        _ended(tx, row, attempt, seen, effects, values)
        return effects
    if seen.restarts > attempt.restarts:
        _update(tx, attempt, restarts=seen.restarts)
    if seen.failures:
        _failed_in_place(tx, row, attempt, seen)
    return effects


def _failed_in_place(tx: Tx, row: Row[Any], attempt: Row[Any], seen: Observation) -> None:
    """The launcher has started the ranks again; where that mends nothing the attempt is ended."""
    found = faults.take_in(tx, row, attempt, seen, ended_at=None)
    if found is None:
        return
    now = submit.by_id(tx.conn, row.id) or row
    if isinstance(found, Loop):
        evict(tx, now, Reason.CrashLoop, found.message)
    elif faults.avoid(tx, now, found.node, found.why) and faults.others_enough(tx, now, attempt.engine):
        evict(
            tx, submit.by_id(tx.conn, row.id) or now, Reason.NodeAvoided, f"node {found.node} is avoided: {found.why}"
        )


def _elsewhere(
    tx: Tx, row: Row[Any], attempt: Row[Any], seen: Observation, effects: Effects
) -> tuple[Row[Any], Row[Any]]:
    """What an engine that schedules itself did with an attempt: took it back, which may have been missed, or placed it. The
    rows as they are then.
    """
    changed = False
    began = seen.started_at
    again = began is not None and attempt.started_at is not None and began > attempt.started_at + REQUEUED_S
    if attempt.started_at is not None and (seen.stage is Stage.QUEUED or again):
        ended_at = queued.left_at(attempt, seen) if again else seen.ended_at
        queued.taken_back(tx, row, attempt, seen, ended_at=ended_at)
        row, attempt = _read(tx, row, attempt)
        changed = True
    begins = seen.stage is not Stage.QUEUED and began is not None and seen.reason not in NEVER_BEGAN
    if begins and attempt.phase == Phase.PENDING:
        queued.placed(tx, row, attempt, seen)
        row, attempt = _read(tx, row, attempt)
        changed = True
    if changed and row.array_of is not None:
        effects.look_at.append(row.array_of)
    return row, attempt


def _read(tx: Tx, row: Row[Any], attempt: Row[Any]) -> tuple[Row[Any], Row[Any]]:
    found = tx.conn.execute(_ATTEMPT, {"job_id": row.id, "number": attempt.number}).first()
    return submit.by_id(tx.conn, row.id) or row, found or attempt


def _update(tx: Tx, attempt: Row[Any], **values: Any) -> None:
    tx.do(_SET, {"b_job": attempt.job_id, "b_number": attempt.number, **values})


def _note(tx: Tx, row: Row[Any], attempt: Row[Any], happened: Any) -> None:
    reason = Reason(happened["reason"])
    data = {k: v for k, v in happened.items() if k not in ("reason", "message")}
    tx.emit(
        submit.ref(row), reason, happened.get("message", ""), actor="engine", data=data | {"attempt": attempt.number}
    )


def _started(tx: Tx, row: Row[Any], attempt: Row[Any], seen: Observation, *, over: bool) -> dict[str, Any]:
    """The event, and the rows unless the attempt is ``over`` already: then the answer is what the end has to write."""
    at = max(seen.started_at or tx.now, attempt.admitted_at)
    stopping = row.phase == Phase.STOPPING
    if not over:
        _update(tx, attempt, started_at=at, phase=attempt.phase if stopping else Phase.RUNNING, reason=Reason.Started)
        if attempt.message:
            _update(tx, attempt, message="")  # why it waited
    nodes = json.loads(row.nodes)
    message = f"attempt {attempt.number} runs on {', '.join(nodes[:4])}" + (" ..." if len(nodes) > 4 else "")
    values: dict[str, Any] = {"observed_generation": attempt.generation}
    if row.started_at is None:
        values["started_at"] = at
    if stopping and not over:
        submit.update(tx, row.id, **values)
    elif not over:
        submit.move(tx, row, Phase.RUNNING, Reason.Started, message, **values)
    data = {"attempt": attempt.number, "started_at": at}
    tx.emit(submit.ref(row), Reason.Started, message, actor="engine", data=data)
    return values


def _ended(
    tx: Tx, row: Row[Any], attempt: Row[Any], seen: Observation, effects: Effects, values: dict[str, Any]
) -> None:
    spec = JobSpec.model_validate_json(row.spec)
    reason = seen.reason or Reason.SupervisorLost
    ended_at = max(min(seen.ended_at or tx.now, tx.now), attempt.started_at or attempt.admitted_at)
    restarts = max(seen.restarts, attempt.restarts)
    began = attempt.started_at if attempt.started_at is not None else seen.started_at
    calm = made_progress(_last_ran(seen, began, ended_at), began is not None)
    calm_at = row.restarts + restarts if calm else row.calm_at or 0
    message, loop = _whose_fault(tx, row, attempt, seen, ended_at)
    after = after_end(
        Ended(reason, message, row.restarts + restarts, spec.max_restarts, row.cancelled_by is not None, loop, calm_at)
    )
    if calm_at != (row.calm_at or 0):
        values["calm_at"] = calm_at
    _update(
        tx,
        attempt,
        phase=end_phase(reason),
        reason=reason,
        message=seen.message,
        started_at=began,
        ended_at=ended_at,
        exit_code=seen.exit_code,
        signal=seen.signal,
        restarts=restarts,
        ranks=json.dumps([asdict(rank) for rank in seen.ranks]),
    )
    tx.emit(
        submit.ref(row),
        Reason.AttemptEnded,
        f"attempt {attempt.number}: {seen.message or reason}",
        actor="engine",
        data={
            "job_id": row.id,
            "attempt": attempt.number,
            "user": row.user,
            "ended_at": ended_at,
            "reason": str(reason),
            "exit_code": seen.exit_code,
            "signal": seen.signal,
            "groups": json.loads(attempt.groups),
        },
    )
    _job_after(tx, row, seen, after, effects, values)
    effects.freed = True
    effects.ended = True


def _last_ran(seen: Observation, began: float | None, ended_at: float) -> float:
    """Since its ranks were last started."""
    last = seen.failures[-1] if seen.failures else None
    return last.ran_s if last is not None and last.restart == seen.restarts else ended_at - (began or ended_at)


def _whose_fault(tx: Tx, row: Row[Any], attempt: Row[Any], seen: Observation, ended_at: float) -> tuple[str, str]:
    """What is said of the end, and of a crash loop; a node at fault is avoided from here on."""
    found = faults.take_in(tx, row, attempt, seen, ended_at=ended_at)
    if seen.reason == Reason.CrashLoop:
        words = faults.loop_of(submit.by_id(tx.conn, row.id) or row)
        return words or seen.message, words
    if seen.reason == Reason.NodeLost:
        for node in faults.lost_nodes(tx, attempt, seen.message):
            faults.avoid(tx, row, node, f"it was lost under attempt {attempt.number}", lost=True)
    elif isinstance(found, BadNode):
        faults.avoid(tx, row, found.node, found.why)
    return seen.message, found.message if isinstance(found, Loop) else ""


def _job_after(
    tx: Tx, row: Row[Any], seen: Observation, after: AfterEnd, effects: Effects, values: dict[str, Any]
) -> None:
    values |= {
        "restarts": after.restarts,
        "exit_code": seen.exit_code,
        "signal": seen.signal,
        "progress": json.dumps(dict(seen.progress)) if seen.progress else row.progress,
    }
    if row.held == "engine":
        values["held"] = values["start_estimate"] = None
    if after.phase in FINAL:
        values["finished_at"] = tx.now
        effects.look_at += followers(tx, row)
    elif after.delay_s > 0:
        values["next_at"] = tx.now + after.delay_s
        effects.again_in_s = after.delay_s
    submit.move(tx, row, after.phase, after.reason, after.message, **values)
    tx.emit(
        submit.ref(row),
        Reason(after.reason),
        after.message,
        actor="system",
        data={"exit_code": seen.exit_code, "signal": seen.signal, "restarts": after.restarts},
    )


def followers(tx: Tx, row: Row[Any]) -> list[str]:
    """Jobs that a job's end concerns: those that depend on it, and its array."""
    found = list(tx.conn.execute(_FOLLOWERS, {"on": row.id}).scalars())
    return [*found, row.array_of] if row.array_of else found


def release(tx: Tx, row: Row[Any]) -> bool:
    """A job held for its dependencies: let it into the line, or end it when one of them cannot be met any more."""
    if row.phase != Phase.PENDING:
        return False
    needs = tx.conn.execute(
        select(dependencies.c.on_name, dependencies.c.condition, jobs.c.phase)
        .select_from(dependencies.outerjoin(jobs, jobs.c.id == dependencies.c.on_job_id))
        .where(dependencies.c.job_id == row.id)
    ).all()
    waits = [need.on_name for need in needs if need.phase is not None and need.phase not in FINAL]
    broken = [need for need in needs if not _kept(need)]
    if broken:
        message = f"{broken[0].on_name} ended as {broken[0].phase or 'Deleted'}, and this job needs it to succeed"
        _end_unstarted(tx, row, message)
        return True
    if waits:
        message = f"waits for {', '.join(waits[:3])}" + (f" and {len(waits) - 3} more" if len(waits) > 3 else "")
        submit.update(tx, row.id, reason=Reason.WaitingForDependency, message=message)
        return False
    _into_line(tx, row)
    return True


def _kept(need: Row[Any, Any, Any]) -> bool:
    """Whether a dependency is, or may still be, met. A deleted job has ended, and nobody knows how."""
    if need.phase in FINAL or need.phase is None:
        return bool(need.condition == "Finished" or need.phase == Phase.SUCCEEDED)
    return True


def _end_unstarted(tx: Tx, row: Row[Any], message: str) -> None:
    rows = [row, *tx.conn.execute(select(jobs).where(jobs.c.array_of == row.id)).all()]
    for each in rows:
        submit.move(tx, each, Phase.CANCELLED, Reason.DependencyFailed, message, finished_at=tx.now, held=None)
        tx.emit(submit.ref(each), Reason.DependencyFailed, message, actor="system")


def _into_line(tx: Tx, row: Row[Any]) -> None:
    if row.array_count is not None and row.array_of is None:
        parallel = JobSpec.model_validate_json(row.spec).array
        limit = (parallel.max_parallel if parallel else None) or row.array_count
        tasks = jobs.c.array_of == row.id
        tx.conn.execute(jobs.update().where(tasks, jobs.c.array_index < limit).values(held=None, queued_at=tx.now))
        tx.conn.execute(jobs.update().where(tasks, jobs.c.array_index >= limit).values(held="slot", queued_at=tx.now))
        submit.update(tx, row.id, held="array", queued_at=tx.now)
    else:
        submit.update(
            tx, row.id, held=None, queued_at=tx.now, reason=Reason.WaitingBehind, message="its dependencies are met"
        )


def gather(tx: Tx, parent: Row[Any]) -> Effects:
    """An array's parent after a task moved: its own phase, and free slots given to the tasks that wait for one."""
    effects = Effects()
    query = select(jobs.c.phase, func.count()).where(jobs.c.array_of == parent.id).group_by(jobs.c.phase)
    counts: dict[str, int] = {phase: count for phase, count in tx.conn.execute(query)}  # noqa: C416 - rows, not pairs
    if parent.cancelled_by is None:
        effects.freed = _fill_slots(tx, parent, sum(n for p, n in counts.items() if p not in FINAL))
    phase, reason, message = array_phase(counts)
    if parent.phase in FINAL:
        return effects
    if parent.phase == Phase.STOPPING and phase not in FINAL:
        phase = Phase.STOPPING  # cancelled, and its tasks still run their grace
    if phase != parent.phase:
        final: dict[str, Any] = {"finished_at": tx.now} if phase in FINAL else {}
        if phase is not Phase.PENDING and parent.started_at is None:
            final["started_at"] = tx.now
        submit.move(tx, parent, phase, reason, message, **final)
        tx.emit(submit.ref(parent), reason, message, actor="system")
        if phase in FINAL:
            effects.look_at += followers(tx, parent)
    elif message != parent.message:
        submit.update(tx, parent.id, message=message)
    return effects


def _fill_slots(tx: Tx, parent: Row[Any], unfinished: int) -> bool:
    """Let as many tasks that wait for a slot into the line as there are slots; whether there were any."""
    waiting = list(
        tx.conn.execute(
            select(jobs.c.id).where(jobs.c.array_of == parent.id, jobs.c.held == "slot").order_by(jobs.c.array_index)
        ).scalars()
    )
    if not waiting:
        return False
    array = JobSpec.model_validate_json(parent.spec).array
    limit = (array.max_parallel if array else None) or parent.array_count
    free = waiting[: max(limit - (unfinished - len(waiting)), 0)]
    for job_id in free:
        submit.update(tx, job_id, held=None, reason=Reason.WaitingBehind, message="in line")
    return bool(free)


def array_phase(count: Mapping[str, int]) -> tuple[Phase, Reason, str]:
    """The phase of an array from how many of its tasks are in each: it runs while any is left, then fails if any failed."""
    message = ", ".join(f"{count[p]} {p.lower()}" for p in Phase if count.get(p))
    if any(phase not in FINAL for phase in count):
        begun = any(phase in FINAL or phase in ACTIVE for phase in count)
        return (Phase.RUNNING, Reason.Started, message) if begun else (Phase.PENDING, Reason.WaitingBehind, message)
    if count.get(Phase.FAILED):
        return Phase.FAILED, Reason.Failed, message
    if count.get(Phase.CANCELLED):
        return Phase.CANCELLED, Reason.Cancelled, message
    return Phase.SUCCEEDED, Reason.Completed, message


def evict(tx: Tx, row: Row[Any], reason: str, message: str) -> bool:
    """Ask a job's attempt to end for another's sake, to start again elsewhere; whether it runs and was not asked before."""
    attempt = current_attempt(tx.conn, row)
    if row.phase not in ACTIVE or attempt is None or attempt.stop_reason is not None or attempt.ended_at is not None:
        return False
    _update(tx, attempt, stop_reason=reason)
    submit.move(tx, row, Phase.STOPPING, reason, message)
    tx.emit(submit.ref(row), Reason(reason), message, actor="system", data={"attempt": attempt.number})
    return True


def drain(tx: Tx, node: str) -> list[str]:
    """Ask the attempts on a node to end, to start again elsewhere. Returns the ids of their jobs."""
    told = []
    for attempt in tx.conn.execute(
        select(attempts).where(attempts.c.phase.in_(ACTIVE), attempts.c.stop_reason.is_(None))
    ).all():
        if all(group["node"] != node for group in json.loads(attempt.groups)):
            continue
        row = submit.by_id(tx.conn, attempt.job_id)
        if row is None or row.phase not in ACTIVE:
            continue
        _update(tx, attempt, stop_reason=Reason.NodeDrained)
        message = f"node {node} is being drained"
        submit.move(tx, row, Phase.STOPPING, Reason.NodeDrained, message)
        tx.emit(submit.ref(row), Reason.NodeDrained, message, actor="system", data={"attempt": attempt.number})
        told.append(row.id)
    return told
