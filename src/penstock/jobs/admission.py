"""One scheduling cycle over the database: load the snapshot, plan, write the admissions."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import bindparam, or_, select
from sqlalchemy.engine import Connection, Row

from penstock.base.reasons import Reason
from penstock.fleet import inventory
from penstock.jobs import submit
from penstock.jobs.spec import JobSpec
from penstock.jobs.state import ACTIVE, Phase
from penstock.jobs.tables import attempts, jobs
from penstock.scheduling.old.plan import plan
from penstock.scheduling.old.state import Admit, Decision, NodeState, Wait, Workload
from penstock.store.store import Tx

PAGE = 32
_LINE = (
    select(jobs)
    .where(
        jobs.c.phase == Phase.PENDING,
        jobs.c.held.is_(None),
        or_(jobs.c.next_at.is_(None), jobs.c.next_at <= bindparam("now")),
    )
    .order_by(jobs.c.priority.desc(), jobs.c.queued_at, jobs.c.seq)
    .limit(bindparam("page"))
    .offset(bindparam("start"))
)
_HELD = select(attempts.c.job_id, attempts.c.number, attempts.c.groups).where(
    attempts.c.phase.in_([p.value for p in ACTIVE])
)
_ADMIT = jobs.update().where(jobs.c.id == bindparam("b_id"))
_ATTEMPT = attempts.insert()


@dataclass(slots=True)
class Memory:
    """Parsed specs and groups, so that a cycle over a long line parses nothing twice. Bounded."""

    specs: OrderedDict[tuple[str, int], JobSpec] = field(default_factory=OrderedDict)
    groups: OrderedDict[tuple[str, int], list[dict[str, Any]]] = field(default_factory=OrderedDict)

    def spec(self, row: Row[Any]) -> JobSpec:
        key = (row.id, row.generation)
        found = self.specs.get(key)
        if found is None:
            found = self.specs[key] = JobSpec.model_validate_json(row.spec)
            if len(self.specs) > 2048:
                self.specs.popitem(last=False)
        return found

    def placed(self, row: Row[Any, Any, Any]) -> list[dict[str, Any]]:
        key = (row.job_id, row.number)
        found = self.groups.get(key)
        if found is None:
            found = self.groups[key] = json.loads(row.groups)
            if len(self.groups) > 4096:
                self.groups.popitem(last=False)
        return found


@dataclass(frozen=True, slots=True)
class Setting:
    """What an admission writes besides the plan: where run folders lie, which engine, under which lease."""

    jobs_dir: str
    engine: str
    epoch: int
    memory: Memory


def snapshot(conn: Connection, memory: Memory) -> list[NodeState]:
    """Every node with what is free on it."""
    used: dict[str, list[Any]] = {}
    for row in conn.execute(_HELD):
        for group in memory.placed(row):
            sums = used.setdefault(group["node"], [0.0, 0, set()])
            sums[0] += group["cpus"]
            sums[1] += group["memory"] or 0
            sums[2] |= {gpu["id"] for gpu in group["gpus"]}
    return [_node_state(row, used.get(row.name)) for row in inventory.all_nodes(conn)]


def _node_state(row: Row[Any], used: list[Any] | None) -> NodeState:
    cpus, memory, taken = used or (0.0, 0, set())
    gpus = json.loads(row.gpus)
    why = inventory.closed_because(row)
    return NodeState(
        name=row.name,
        cpus=row.cpus,
        memory=int(row.memory),
        gpus=len(gpus),
        free_cpus=row.cpus - cpus,
        free_memory=int(row.memory) - memory,
        free_gpus=tuple((g["id"], g["model"]) for g in gpus if g["id"] not in taken),
        gpu_models=tuple(g["model"] for g in gpus),
        open=not why,
        why_closed=why,
    )


def workload(row: Row[Any], spec: JobSpec) -> Workload:
    ask = spec.resources
    return Workload(row.id, row.name, row.queued_at, spec.nodes, ask.cpus, ask.memory or 0, ask.gpus, ask.gpu_model)


def line(conn: Connection, now: float, memory: Memory, rows: dict[str, Row[Any]]) -> Iterator[Workload]:
    """Pending jobs in their order of service, read a page at a time; ``rows`` collects them by id."""
    start = 0
    while True:
        page = conn.execute(_LINE, {"now": now, "page": PAGE, "start": start}).all()
        for row in page:
            rows[row.id] = row
            yield workload(row, memory.spec(row))
        if len(page) < PAGE:
            return
        start += PAGE


def cycle(tx: Tx, setting: Setting) -> list[tuple[Row[Any], dict[str, Any]]]:
    """Admit what fits. Returns each job's row as it was, with its new attempt's values, to hand to the engine after the
    commit.
    """
    rows: dict[str, Row[Any]] = {}
    nodes = snapshot(tx.conn, setting.memory)
    decision = plan(line(tx.conn, tx.now, setting.memory, rows), nodes)
    admitted = _write_admissions(tx, decision, rows, nodes, setting) if decision.admit else []
    for wait in decision.wait:
        _write_wait(tx, rows[wait.job_id], wait)
    return admitted


def _write_wait(tx: Tx, row: Row[Any], wait: Wait) -> None:
    if (row.reason, row.message) != (wait.reason, wait.message):
        if row.reason != wait.reason:
            tx.emit(submit.ref(row), wait.reason, wait.message, actor="system")
        submit.update(tx, row.id, reason=wait.reason, message=wait.message)


def _write_admissions(
    tx: Tx, decision: Decision, rows: dict[str, Row[Any]], nodes: list[NodeState], setting: Setting
) -> list[tuple[Row[Any], dict[str, Any]]]:
    models = {gpu: model for node in nodes for gpu, model in node.free_gpus}
    job_values, attempt_values, pairs = [], [], []
    for admit in decision.admit:
        row = rows[admit.job_id]
        number = row.attempt + 1
        groups = _groups(admit, setting.memory.spec(row), models)
        job_values.append(
            {
                "b_id": row.id,
                "phase": Phase.STARTING,
                "reason": Reason.Admitted,
                "message": admit.message,
                "nodes": json.dumps([share.node for share in admit.shares]),
                "attempt": number,
                "phase_at": tx.now,
                "next_at": None,
                "exit_code": None,
                "signal": None,
            }
        )
        attempt_values.append(_attempt(tx, row, number, groups, setting))
        pairs.append((row, attempt_values[-1]))
        tx.emit(
            submit.ref(row),
            Reason.AttemptStarted,
            f"attempt {number} admitted {admit.message}",
            actor="system",
            data={
                "job_id": row.id,
                "attempt": number,
                "user": row.user,
                "started_at": tx.now,
                "groups": groups,
                "epoch": setting.epoch,
            },
        )
    tx.conn.execute(_ADMIT, job_values)
    tx.conn.execute(_ATTEMPT, attempt_values)
    return pairs


def _groups(admit: Admit, spec: JobSpec, models: dict[str, str]) -> list[dict[str, Any]]:
    ask = spec.resources
    return [
        {
            "node": share.node,
            "cpus": ask.cpus,
            "memory": ask.memory,
            "gpus": [{"id": gpu, "model": models.get(gpu, "")} for gpu in share.gpus],
        }
        for share in admit.shares
    ]


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
