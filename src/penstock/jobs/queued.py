"""Attempts of engines that schedule themselves: they wait in the engine's line, are placed by it, and may be taken back into it.

Usage is recorded from the start that the engine tells, on the nodes that it chose; while it waits, nothing is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import bindparam
from sqlalchemy.engine import Row

from penstock.base.quantities import format_time
from penstock.base.reasons import Reason
from penstock.engines.spec import Observation, RankGroup
from penstock.fleet import inventory
from penstock.jobs import submit
from penstock.jobs.spec import JobSpec
from penstock.jobs.state import Phase
from penstock.jobs.tables import attempts
from penstock.jobs.view import queue_of
from penstock.scheduling import live
from penstock.store.store import Tx

ESTIMATE_MOVED_S = 60.0  # less is no news
_SET = attempts.update().where(attempts.c.job_id == bindparam("b_job"), attempts.c.number == bindparam("b_number"))


def waits(tx: Tx, row: Row[Any], attempt: Row[Any], seen: Observation) -> None:
    """It is in the engine's line: why, and when it may start. An event only where the reason is another than before."""
    reason = Reason(seen.reason or Reason.HandedOver)
    said = {"reason": reason, "message": seen.message, "help": seen.help or None}
    named = {"engine_job": seen.engine_job or attempt.engine_job}
    known = (attempt.reason, attempt.message, attempt.help, attempt.engine_job)
    if known != (said["reason"], said["message"], said["help"], named["engine_job"]):
        _update(tx, attempt, **said, **named)
    if row.phase == Phase.STOPPING:
        if row.engine_job != named["engine_job"]:
            submit.update(tx, row.id, **named)
        return
    told = (row.reason, row.message, row.engine_job)
    if told == (said["reason"], said["message"], named["engine_job"]) and not _moved(
        row.start_estimate, seen.start_estimate
    ):
        return
    submit.update(tx, row.id, reason=said["reason"], message=seen.message, start_estimate=seen.start_estimate, **named)
    if row.reason != reason:
        data = {"attempt": attempt.number, "engine": attempt.engine}
        tx.emit(submit.ref(row), reason, seen.message, actor="engine", data=data)


def _moved(before: float | None, now: float | None) -> bool:
    if before is None or now is None:
        return before is not now
    return abs(before - now) > ESTIMATE_MOVED_S


def placed(tx: Tx, row: Row[Any], attempt: Row[Any], seen: Observation) -> None:
    """It runs, or ran: where and since when the engine says. Usage begins."""
    spec = JobSpec.model_validate_json(row.spec)
    devices = spec.resources.devices or any(group.gpus for group in seen.groups)
    there = inventory.some_nodes(tx.conn, {group.node for group in seen.groups}) if devices else ()
    known = {one.name: json.loads(one.gpus) for one in there}
    groups = [_group(one, spec, known.get(one.node, ()), seen.gpu_model) for one in seen.groups]
    nodes = [group.node for group in seen.groups]
    job = {"engine_job": seen.engine_job or attempt.engine_job}
    _update(tx, attempt, phase=Phase.RUNNING, groups=json.dumps(groups), help=None, **job)
    submit.update(tx, row.id, nodes=json.dumps(nodes), held=None, start_estimate=None, **job)
    tx.emit(
        submit.ref(row),
        Reason.AttemptStarted,
        f"attempt {attempt.number} placed by {attempt.engine} on {', '.join(nodes[:4])}"
        + (f" and {len(nodes) - 4} more" if len(nodes) > 4 else "")
        + (f", {len(nodes)} of the {spec.nodes} nodes that it would have" if len(nodes) < spec.nodes else ""),
        actor="engine",
        data={
            "job_id": row.id,
            "attempt": attempt.number,
            "user": row.user,
            "queue": queue_of(live.current(tx.conn), spec, row.project),
            "started_at": began_at(attempt, seen, tx.now),
            "groups": groups,
            "epoch": attempt.epoch,
        },
    )


def began_at(attempt: Row[Any], seen: Observation, now: float) -> float:
    """Not before it was handed over: a site's clock, or its whole seconds, may say so."""
    return max(now if seen.started_at is None else seen.started_at, float(attempt.admitted_at))


def left_at(attempt: Row[Any], seen: Observation) -> float | None:
    """When the run that is known was over, of one that was found in its next run: as it came into the line again, or by the
    start of the next at the latest.
    """
    back, again = seen.queued_at, seen.started_at
    known = back is not None and again is not None and attempt.started_at <= back <= again
    return back if known else again


def _group(group: RankGroup, spec: JobSpec, known: Sequence[Mapping[str, Any]], model: str) -> dict[str, Any]:
    """``known``: the GPUs of its node. An engine that cannot say which it gave has given as many as were asked for."""
    models = {gpu["id"]: gpu["model"] for gpu in known}
    likely = model or next(iter(models.values()), "unknown")
    part = {"milli": group.gpu_milli} if group.gpu_milli else {}
    ids = group.gpus or tuple(f"?{n}" for n in range(spec.resources.devices))
    gpus = [{"id": gpu, "model": models.get(gpu, likely), **part} for gpu in ids]
    return {"node": group.node, "cpus": group.cpus, "memory": group.memory, "gpus": gpus}


def taken_back(tx: Tx, row: Row[Any], attempt: Row[Any], seen: Observation, *, ended_at: float | None) -> None:
    """It ran, and waits in the engine's line again: a restart. Usage ends until it is placed anew."""
    end = max(min(ended_at if ended_at is not None else tx.now, tx.now), attempt.started_at or attempt.admitted_at)
    restarts = max(seen.restarts, attempt.restarts + 1)
    words = f"engine {attempt.engine} took it back into its line" + (f": {seen.message}" if seen.message else "")
    _update(
        tx, attempt, phase=Phase.PENDING, reason=Reason.Requeued, message=words, started_at=None, groups="[]",
        restarts=restarts, gpu_idle=None,
    )  # fmt: skip
    values: Mapping[str, Any] = {"nodes": "[]", "held": "engine"}
    if row.phase == Phase.STOPPING:
        submit.update(tx, row.id, **values)
    else:
        submit.move(tx, row, Phase.PENDING, Reason.Requeued, words, **values)
    data = {"job_id": row.id, "attempt": attempt.number, "user": row.user, "ended_at": end, "restarts": restarts}
    tx.emit(submit.ref(row), Reason.Requeued, words, actor="engine", data=data | {"groups": json.loads(attempt.groups)})


def unknown(tx: Tx, row: Row[Any], seen: Observation, since: float) -> None:
    """Its engine's service does not answer: said of the job while it lasts, and nothing else is changed."""
    words = f"unknown since {(format_time(since) or '')[11:16]} UTC" + (f": {seen.message}" if seen.message else "")
    if row.phase == Phase.STOPPING or (row.reason, row.message) == (Reason.EngineUnreachable, words):
        return
    submit.update(tx, row.id, reason=Reason.EngineUnreachable, message=words)
    if row.reason != Reason.EngineUnreachable:
        tx.emit(submit.ref(row), Reason.EngineUnreachable, words, actor="engine", data={"engine": row.engine})


def reached(tx: Tx, row: Row[Any], attempt: Row[Any]) -> None:
    """It answers again, and the job still runs."""
    nodes = json.loads(row.nodes)
    words = f"attempt {attempt.number} runs on {', '.join(nodes[:4])}" + (" ..." if len(nodes) > 4 else "")
    submit.update(tx, row.id, reason=Reason.Started, message=words)
    said = f"engine {attempt.engine} answers again"
    tx.emit(submit.ref(row), Reason.EngineReached, said, actor="engine", data={"engine": attempt.engine})


def _update(tx: Tx, attempt: Row[Any], **values: Any) -> None:
    tx.do(_SET, {"b_job": attempt.job_id, "b_number": attempt.number, **values})
