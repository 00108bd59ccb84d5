"""A rollout's rows before its planner, and the planner's decision back into rows."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy.engine import Row

from penstock.base.reasons import Reason
from penstock.serving import rollout, versions
from penstock.serving.place import report_of
from penstock.serving.spec import Analysis, Rollout
from penstock.serving.state import WHOLE, ReplicaPhase, RolloutDecision, RolloutPhase, RolloutSeen, Want
from penstock.serving.traffic import Traffic
from penstock.serving.versions import Held
from penstock.store.store import Tx

_ENTRIES = 500  # of evidence that are kept
# Back to a version that has served: all requests once its replicas are ready. What it replaces is no measure for it.
AT_ONCE = Rollout(
    strategy="blue_green", keep=1.0, analysis=Analysis(error_rate=None, p95_ratio=None, p50_ratio=None, agreement=None)
)


def wants(
    tx: Tx,
    held: Held,
    traffic: Traffic,
    progress: Mapping[str, Mapping[str, Any]],
) -> Mapping[int, Want]:
    """What each version is to have; the planner says so while a rollout is under way."""
    stable = held.stable
    if held.rollout is None:
        return {} if stable is None else {stable.number: Want(held.wanted, WHOLE)}
    how = AT_ONCE if held.rollout.asked == versions.BACK else held.spec.rollout
    decided = rollout.decide(how, seen_of(held, held.rollout, traffic, progress), tx.now)
    candidate = next((one for one in held.versions if one.number == held.rollout.candidate), None)
    if decided.phase is RolloutPhase.ROLLED_BACK and candidate is not None and candidate.failures and candidate.message:
        decided = replace(decided, message=f"{decided.message}: {candidate.message}")  # how the last of them ended
    _keep(tx, held, held.rollout, decided)
    return decided.wants


def seen_of(
    held: Held,
    row: Row[Any],
    traffic: Traffic,
    progress: Mapping[str, Mapping[str, Any]],
) -> RolloutSeen:
    both = (row.stable, row.candidate)
    key, counts = (held.row.project, held.row.name), traffic.counts
    shadowed = traffic.shadowed(*key, row.candidate) if held.spec.rollout.strategy == "shadow" else None
    candidate = next((one for one in held.versions if one.number == row.candidate), None)
    return RolloutSeen(
        row.stable,
        row.candidate,
        RolloutPhase(row.phase),
        row.step,
        row.since,
        held.wanted,
        {
            number: sum(one.version == number and one.phase == ReplicaPhase.READY for one in held.replicas)
            for number in both
        },
        {number: counts[*key, number] for number in both if (*key, number) in counts},
        shadowed.agreement if shadowed is not None else None,
        {number: _means(held, number, progress) for number in both},
        candidate.failures if candidate is not None else 0,
        "" if row.asked == versions.BACK else row.asked,
        json.loads(row.memory),
    )


def _means(held: Held, version: int, progress: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Of what the ready replicas of a version report, the mean."""
    sums: dict[str, list[float]] = {}
    for one in held.replicas:
        if one.version == version and one.phase == ReplicaPhase.READY:
            for name, value in report_of(progress, one.id).items():
                if isinstance(value, int | float) and math.isfinite(value):
                    sums.setdefault(name, []).append(float(value))
    return {name: sum(values) / len(values) for name, values in sums.items()}


def _keep(tx: Tx, held: Held, row: Row[Any], decided: RolloutDecision) -> None:
    moved = (decided.phase, decided.step) != (row.phase, row.step)
    evidence = [*json.loads(row.evidence), *(dict(one) for one in decided.evidence)][-_ENTRIES:]
    values: dict[str, Any] = {
        "phase": decided.phase,
        "step": decided.step,
        "since": decided.since,
        "memory": json.dumps(dict(decided.memory)),
        "evidence": json.dumps(evidence),
        "message": decided.message or row.message,
    }
    if moved and row.asked not in ("", versions.BACK):
        values |= {"asked": "", "asked_by": ""}
    versions.set_rollout(tx, row.id, **values)
    by = row.asked_by or "system"
    if decided.phase in (RolloutPhase.PROMOTED, RolloutPhase.ROLLED_BACK):
        versions.end_rollout(tx, held.row, row, decided.phase, decided.message, actor=by)
    elif decided.reason:
        data = {"stable": row.stable, "candidate": row.candidate, "step": decided.step, "rollout": row.id}
        message = f"version {row.candidate}: {decided.message}"
        tx.emit(versions.ref(held.row), Reason(decided.reason), message, actor=by if moved else "system", data=data)
