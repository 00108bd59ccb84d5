"""What the autoscaler is shown of a service, and its decision back into the service's row."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeGuard

from penstock.base.reasons import Reason
from penstock.serving import autoscaling, versions
from penstock.serving.place import report_of
from penstock.serving.profile import Curve, Point, curve_of, learned
from penstock.serving.spec import Objective
from penstock.serving.state import ReplicaPhase
from penstock.serving.traffic import Load, Traffic
from penstock.serving.versions import Held
from penstock.store.store import Tx

_EVERY_S = 0.9  # between two looks, unless somebody waits for a first replica
_COLD_S = 5.0  # a replica's start, where none was seen yet
Reports = Mapping[str, Mapping[str, Any]]


def scale(tx: Tx, held: Held, traffic: Traffic, progress: Reports, most: int | None = None) -> Held:
    """Asks the planner; the service with what it wants then. ``progress``: what replicas report. ``most``: what quota leaves it;
    below `min` it waits in line.
    """
    config = held.spec.autoscaling
    if config is None:
        return held
    row = held.row
    kept: dict[str, Any] = json.loads(row.scaling)
    wakes = held.wanted == 0 and traffic.held(row.project, row.name) > 0
    if not wakes and tx.now - kept.get("at", 0.0) < _EVERY_S:
        return held
    load = traffic.load(row.project, row.name, tx.now)
    reports = [report_of(progress, one.id) for one in held.replicas if one.phase == ReplicaPhase.READY]
    ready = len(reports)
    seen = _seen(held, load, reports, config.objective, most)
    curve = _curve(held, kept, load, seen)
    memory = autoscaling.memory_of(kept.get("memory", {}))
    stable = held.stable.number if held.stable is not None else None
    if kept.get("version", stable) != stable:
        # Another model: what was found out of the last one's curve is not its own.
        memory = replace(memory, full=None, correction=1.0)
    decided, memory = autoscaling.plan(config, curve, seen, memory, tx.now)
    replicas = max(decided.replicas, config.min)
    told = {
        "at": tx.now,
        "ready": ready,
        "version": stable,
        "memory": memory.to_dict(),
        "curve": curve.to_dict(),
        "why": decided.reason,
        "message": decided.message,
    }
    versions.set_service(tx, row.id, wanted=replicas, scaling=json.dumps(told))
    if replicas != held.wanted:
        data = {"from": held.wanted, "to": replicas, "why": decided.reason, **decided.numbers}
        message = f"{held.wanted} -> {replicas}, {decided.reason}: {decided.message}"
        tx.emit(versions.ref(row), Reason.Scaled, message, actor="system", data=data)
    return versions.held(tx.conn, row.id) or held


def _seen(
    held: Held, load: Load, reports: Sequence[Mapping[str, Any]], objective: Objective, most: int | None
) -> autoscaling.Seen:
    """Times of whole answers are the gateway's, those of tokens the runtimes'. Samples: of what the objective names."""
    ttft, tpot = of_replicas(reports, "ttft"), of_replicas(reports, "tpot")
    wanted = ((objective.p95, load.latency.total), (objective.ttft, ttft[1]), (objective.tpot, tpot[1]))
    samples = min((count for limit, count in wanted if limit is not None), default=load.latency.total)
    return autoscaling.Seen(
        load.active,
        load.arrived,
        load.seconds,
        held.wanted,
        len(reports),
        p95=load.latency.quantile(0.95),
        ttft=ttft[0],
        tpot=tpot[0],
        samples=samples,
        most=most,
    )


def of_replicas(reports: Sequence[Mapping[str, Any]], name: str) -> tuple[float | None, float]:
    """The last minute's P95 and of how many: the replicas' own P95, each as much as it answered."""
    told = [(one.get(f"{name}_p95"), one.get(f"{name}_samples")) for one in reports]
    good = [(p95, count) for p95, count in told if _is_positive(p95) and _is_positive(count)]
    samples = math.fsum(count for _, count in good)
    return (math.fsum(p95 * count for p95, count in good) / samples if samples else None), samples


def _is_positive(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and 0 < value < math.inf


def _curve(held: Held, kept: dict[str, Any], load: Load, seen: autoscaling.Seen) -> Curve:
    """What was learned of this service so far, and of this look; its cold start as its replicas had it."""
    starts = [sum(stages.values()) for one in held.replicas if (stages := json.loads(one.stages))]
    curve = Curve(cold_start=_COLD_S)
    with contextlib.suppress(ValueError):  # none yet
        curve = curve_of(kept.get("curve", {}))
    cold = max(starts) if starts else curve.cold_start
    curve = Curve(curve.points, max(cold, 0.1), curve.source)
    answered = load.recent
    ready = seen.ready
    if not ready or load.recent_s < 1 or answered.requests < 1 or kept.get("ready") != ready:
        return curve  # what replicas that come or go did says nothing of one
    each = load.recent_s * ready
    p95 = answered.latency.quantile(0.95)
    point = Point(answered.seconds / each, answered.requests / each, p95, seen.ttft, seen.tpot)
    return learned(curve, (point,)) if point.concurrency > 0 else curve
