"""What the autoscaler is shown of a service, and its decision back into the service's row."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from penstock.base.reasons import Reason
from penstock.serving import autoscaling, versions
from penstock.serving.profile import Curve, Point, curve_of, learned
from penstock.serving.state import ReplicaPhase
from penstock.serving.traffic import Load, Traffic
from penstock.serving.versions import Held
from penstock.store.store import Tx

_EVERY_S = 0.9  # between two looks, unless somebody waits for a first replica
_COLD_S = 5.0  # a replica's start, where none was seen yet


def scale(tx: Tx, held: Held, traffic: Traffic, most: int | None = None) -> Held:
    """Asks the planner; the service with what it wants then. ``most``: what quota leaves it; below `min` it waits in line."""
    config = held.spec.autoscaling
    if config is None:
        return held
    row = held.row
    kept: dict[str, Any] = json.loads(row.scaling)
    wakes = held.wanted == 0 and traffic.held(row.project, row.name) > 0
    if not wakes and tx.now - kept.get("at", 0.0) < _EVERY_S:
        return held
    load = traffic.load(row.project, row.name, tx.now)
    ready = sum(one.phase == ReplicaPhase.READY for one in held.replicas)
    curve = _curve(held, kept, load, ready)
    p95, samples = load.latency.quantile(0.95), load.latency.total
    seen = autoscaling.Seen(
        load.active, load.arrived, load.seconds, held.wanted, ready, p95=p95, samples=samples, most=most
    )
    memory = autoscaling.memory_of(kept.get("memory", {}))
    decided, memory = autoscaling.plan(config, curve, seen, memory, tx.now)
    replicas = max(decided.replicas, config.min)
    told = {
        "at": tx.now,
        "ready": ready,
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


def _curve(held: Held, kept: dict[str, Any], load: Load, ready: int) -> Curve:
    """What was learned of this service so far, and of this look; its cold start as its replicas had it."""
    starts = [sum(stages.values()) for one in held.replicas if (stages := json.loads(one.stages))]
    curve = Curve(cold_start=_COLD_S)
    with contextlib.suppress(ValueError):  # none yet
        curve = curve_of(kept.get("curve", {}))
    cold = max(starts) if starts else curve.cold_start
    curve = Curve(curve.points, max(cold, 0.1), curve.source)
    answered = load.recent
    if not ready or load.recent_s < 1 or answered.requests < 1 or kept.get("ready") != ready:
        return curve  # what replicas that come or go did says nothing of one
    each = load.recent_s * ready
    seen = Point(answered.seconds / each, answered.requests / each, answered.latency.quantile(0.95))
    return learned(curve, (seen,)) if seen.concurrency > 0 else curve
