"""One scheduling cycle over the database: bring the view up to date, decide, write evictions and admissions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from heapq import nsmallest
from itertools import islice
from typing import Any

from sqlalchemy import bindparam
from sqlalchemy.engine import Row

from penstock.base.reasons import Reason
from penstock.engines.several import Engines
from penstock.jobs import avoided, faults, progression, submit
from penstock.jobs.spec import JobSpec
from penstock.jobs.state import Phase
from penstock.jobs.tables import attempts, jobs
from penstock.jobs.view import Memory, View, engine_of, node_names, queue_of
from penstock.scheduling import kept, outlook, windows
from penstock.scheduling.cycle import Scheduler
from penstock.scheduling.state import Admit, Evict, Share, Wait
from penstock.store.store import Tx

SENTENCES = 12  # that one cycle writes about heads of lines (all others stand behind one), and about the hopeless
AGAIN_S = 0.05  # until the next ones, while somebody was told nothing yet
HANDED_OVER = 100  # in one cycle
_ADMIT = jobs.update().where(
    jobs.c.id == bindparam("b_id"),
    jobs.c.phase == bindparam("b_phase"),
    jobs.c.held.is_(None),
    jobs.c.generation == bindparam("b_generation"),
)
_ATTEMPT = attempts.insert()
Pair = tuple[Row[Any], dict[str, Any]]


class Stale(Exception):
    """A row is not what the view takes it for: nothing of the cycle may stand. It is run again on a new view."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What an admission writes besides the plan: where run folders lie, which engine, under which lease."""

    jobs_dir: str
    engine: str
    epoch: int
    memory: Memory
    engines: Engines | None = None  # where there are others than the own


@dataclass(slots=True)
class Done:
    """What is left for the caller after the commit: attempts to hand to the engine (each job's row as it was, and the
    attempt's values), jobs whose engine must be told to stop, and when to look again though nothing happens.
    """

    admitted: list[Pair] = field(default_factory=list)
    handed_over: list[tuple[Row[Any], dict[str, Any], str]] = field(
        default_factory=list
    )  # and to which queue it belongs
    evicted: list[str] = field(default_factory=list)
    again_at: float = float("inf")


def cycle(tx: Tx, view: View, setting: Setting) -> Done:
    """Evict and admit. Raises Stale."""
    scheduler = view.refresh(tx.conn, tx.now)
    while view.unavoidable:
        _use_again(tx, *view.unavoidable.popitem())
    done = Done(evicted=_empty_windows(tx, scheduler))
    decision = scheduler.plan(tx.now)
    done.evicted += [evict.id for evict in decision.evict if _evict(tx, view, evict)]
    if decision.admit:
        done.admitted = _admit(tx, view, decision.admit, setting)
        outlook.began(tx, view.outlooks, (admit.id for admit in decision.admit))
    if view.elsewhere and setting.engines is not None:
        done.handed_over = _hand_over(tx, view, setting, setting.engines)
    kept.save(tx, scheduler, view.stored, view.tag)
    done.again_at = scheduler.wake_at()
    if _say_why(tx, view, scheduler) or view.elsewhere:
        done.again_at = min(done.again_at, tx.now + AGAIN_S)
    return done


def tell_outlooks(tx: Tx, view: View) -> None:
    """Everybody in line who was told no start yet is, so that it can be measured how right that was. Apart from cycles,
    since to estimate everybody's start costs more than one.
    """
    scheduler = view.scheduler
    if scheduler is None:
        return  # the next cycle reads everything, and there is another look after it
    entries = scheduler.lines.entries
    line = {id_: (row.attempt + 1, entries[id_].w.queue) for id_, row in view.rows.items() if id_ in entries}
    if any(id_ not in view.outlooks for id_ in line) or any(id_ not in line for id_ in view.outlooks):
        outlook.tell(tx, view.outlooks, line, scheduler.start_estimates(tx.now))


def _empty_windows(tx: Tx, scheduler: Scheduler) -> list[str]:
    """Windows that drain and have begun: who is on their nodes and may not be is told to leave. Their ids."""
    known = scheduler.reservations.known
    begun = [one for one in known.values() if one.drain and one.start <= tx.now < one.end]
    told: list[str] = []
    for one in begun:
        there = [
            holding.held
            for holding in scheduler.held.values()
            if one.keeps_out(holding.held.workload) and not one.nodes.isdisjoint(node_names(holding.held.shares))
        ]
        left = []
        for held in there:
            row = submit.by_id(tx.conn, held.workload.id)
            node = next(name for name in node_names(held.shares) if name in one.nodes)
            words = f"{one.kind} {one.name} begins on {node}"
            if row is not None and progression.evict(tx, row, Reason.NodeDrained, words):
                left.append(row)
        windows.drained(tx, one, [f"{row.project}/{row.name}" for row in left])
        known[one.name] = replace(one, drain=False)
        told += [row.id for row in left]
    return told


def _use_again(tx: Tx, job_id: str, nodes: frozenset[str]) -> None:
    row = submit.by_id(tx.conn, job_id)
    if row is not None:
        faults.forget(tx, row, nodes, "no other node fits")


def _evict(tx: Tx, view: View, evict: Evict) -> bool:
    """Its attempt is to end, blamelessly; whether it still runs."""
    row = submit.by_id(tx.conn, evict.id)
    if row is None or not progression.evict(tx, row, evict.reason, evict.message):
        view.touch(evict.id)
        return False
    if evict.reason is not Reason.Resizing:
        view.evictions[evict.id] = view.evictions.get(evict.id, 0) + 1
    elif row.avoided:
        back = {one.node for one in avoided.load(row.avoided, tx.now) if one.lost}
        faults.forget(tx, row, back, "the job grows, and it is back")
    return True


def _say_why(tx: Tx, view: View, scheduler: Scheduler) -> bool:
    """In the rows of those who stand first, and of those who could never run: a few in each cycle, who were told longest
    ago, since many a sentence costs more than the decision. Whether there are some who were told nothing yet.
    """
    told, heads = view.told, [line.head.w.id for line in scheduler.lines.lines.values() if line.entries]
    for group in (scheduler.aside, heads):
        for id_ in nsmallest(SENTENCES, group, key=lambda id_: told.get(id_, -math.inf)):
            told[id_] = tx.now
            row = view.rows.get(id_)
            if row is not None:
                view.rows[id_] = _write_wait(tx, row, scheduler.why(id_, tx.now, estimate=False))
    return not (scheduler.aside.keys() <= told.keys() and told.keys() >= set(heads))


def _write_wait(tx: Tx, row: Row[Any], why: Wait) -> Row[Any]:
    if (row.reason, row.message) == (why.reason, why.message):
        return row
    if row.reason != why.reason:
        tx.emit(submit.ref(row), why.reason, why.message, actor="system")
    submit.update(tx, row.id, reason=why.reason, message=why.message)
    return submit.by_id(tx.conn, row.id) or row


def _admit(tx: Tx, view: View, admissions: tuple[Admit, ...], setting: Setting) -> list[Pair]:
    job_values, attempt_values, pairs = [], [], []
    for admit in admissions:
        row = view.rows.pop(admit.id)
        view.told.pop(admit.id, None)
        number = row.attempt + 1
        on = where(admit, setting.memory.spec(row).nodes)
        groups = _groups(view, admit, setting.memory.spec(row))
        job_values.append(
            {
                "b_id": row.id,
                "b_generation": row.generation,
                "b_phase": Phase.PENDING,
                "phase": Phase.STARTING,
                "reason": Reason.Admitted,
                "message": on,
                "nodes": json.dumps(node_names(admit.shares)),
                "attempt": number,
                "phase_at": tx.now,
                "next_at": None,
                "exit_code": None,
                "signal": None,
            }
            | ({"engine": None, "engine_job": None} if row.engine is not None else {})
        )
        attempt_values.append(_attempt(tx, row, number, groups, setting))
        pairs.append((row, attempt_values[-1]))
        tx.emit(
            submit.ref(row),
            Reason.AttemptStarted,
            f"attempt {number} admitted {on}",
            actor="system",
            data={
                "job_id": row.id,
                "attempt": number,
                "user": row.user,
                "queue": queue_of(view.setup, setting.memory.spec(row), row.project),
                "started_at": tx.now,
                "groups": groups,
                "epoch": setting.epoch,
            },
        )
    if sum(tx.do(_ADMIT, values) for values in job_values) != len(job_values):
        raise Stale
    tx.conn.execute(_ATTEMPT, attempt_values)
    return pairs


def _hand_over(tx: Tx, view: View, setting: Setting, engines: Engines) -> list[tuple[Row[Any], dict[str, Any], str]]:
    """Those that are ready and whose engine schedules itself: the next attempt of each waits in that one's line from now on.
    Not all at once, so that a cycle stays short.
    """
    done = []
    for row in [*islice(view.elsewhere.values(), HANDED_OVER)]:
        del view.elsewhere[row.id]
        spec = setting.memory.spec(row)
        name = engine_of(view.setup, spec, row.project)
        engine = engines.find(name)
        if engine is None:
            view.stranded[row.id] = _write_wait(
                tx, row, Wait(row.id, Reason.Unschedulable, f"there is no engine {name!r}")
            )
            continue
        if row.avoided and not faults.others_enough(tx, row, engine.name):
            faults.forget(tx, row, {one.node for one in avoided.load(row.avoided, tx.now)}, "no other node fits")
            row = submit.by_id(tx.conn, row.id) or row  # noqa: PLW2901 - as it is now
        attempt = _attempt(tx, row, row.attempt + 1, [], replace(setting, engine=engine.name)) | {
            "phase": Phase.PENDING,
            "reason": Reason.HandedOver,
            "run_dir": f"{setting.jobs_dir}/{row.id}/{row.attempt + 1}.{engine.name}",
        }
        words = f"handed over to engine {engine.name}"
        values = {
            "held": "engine", "engine": engine.name, "engine_job": None, "attempt": attempt["number"], "nodes": "[]",
            "reason": Reason.HandedOver, "message": words, "next_at": None, "exit_code": None, "signal": None,
        }  # fmt: skip
        key = {"b_id": row.id, "b_generation": row.generation, "b_phase": Phase.PENDING}
        if tx.do(_ADMIT, key | values) != 1:
            raise Stale
        tx.do(_ATTEMPT, attempt)
        data = {"attempt": attempt["number"], "engine": engine.name}
        tx.emit(submit.ref(row), Reason.HandedOver, words, actor="system", data=data)
        done.append((row, attempt, queue_of(view.setup, spec, row.project)))
    return done


def where(admit: Admit, asked: int = 0) -> str:
    """Its nodes in words; ``asked``: how many it would have."""
    names = node_names(admit.shares)
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    fewer = f", {len(names)} of the {asked} nodes that it would have" if len(names) < asked else ""
    return f"on {shown}{fewer}" + (", ahead of its turn (backfill)" if admit.backfilled else "")


def _groups(view: View, admit: Admit, spec: JobSpec) -> list[dict[str, Any]]:
    ask = spec.resources
    return [
        {"node": share.node, "cpus": ask.cpus, "memory": ask.memory, "gpus": _gpus(view, share)}
        for share in admit.shares
    ]


def _gpus(view: View, share: Share) -> list[dict[str, Any]]:
    """Of a part of a GPU also which part: ``milli`` thousandths, or the instance ``mig`` on its ``gpu``."""
    if not share.gpus or view.scheduler is None:
        return []
    pool = view.scheduler.pool
    node = pool.nodes[pool.index(share.node)]
    models: Mapping[str, str] = {gpu.id: gpu.model for gpu in node.gpus} if node is not None else {}
    if not share.ask.mig:
        part = {"milli": share.ask.gpu_milli} if share.ask.gpu_milli else {}
        return [{"id": gpu, "model": models.get(gpu, ""), **part} for gpu in share.gpus]
    found = []
    for instance in share.gpus:
        gpu, _, n = instance.rpartition(":")
        id_ = view.mig[share.node][instance]["id"]
        found.append({"id": id_, "model": models.get(gpu, ""), "mig": share.ask.mig, "gpu": gpu, "instance": int(n)})
    return found


def _attempt(tx: Tx, row: Row[Any], number: int, groups: list[dict[str, Any]], setting: Setting) -> dict[str, Any]:
    return {
        "job_id": row.id,
        "number": number,
        "generation": row.generation,
        "phase": Phase.STARTING,
        "reason": Reason.Admitted,
        "message": "",
        "engine": setting.engine,
        "epoch": setting.epoch,
        "groups": json.dumps(groups),
        "run_dir": f"{setting.jobs_dir}/{row.id}/{number}",
        "stop_reason": None,
        "admitted_at": tx.now,
        "started_at": None,
        "ended_at": None,
        "exit_code": None,
        "signal": None,
        "restarts": 0,
        "ranks": "[]",
    }
